"""Write the parts of a file in other threads, while the next parts are produced."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import copy_context
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Protocol

from reshard.storage.buffers import buffers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from reshard.storage.protocol import Write

    Emit = Callable[[memoryview], Write | None]
    Room = Callable[[int], memoryview | None]


class Receiver(Protocol):
    """Receiver of the content of a file."""

    def emit(self, part: memoryview) -> None:
        """Receive the next part, whose buffer is used again after this returns."""

    def room(self, nbytes: int) -> memoryview | None:
        """Return memory of the writer, see `Writer.room`."""


def no_room(_: int) -> None:
    """Return no memory of a writer, see `Writer.room`."""


@contextmanager
def emitting(emit: Emit, nbytes: int, threads: int, room: Room = no_room) -> Iterator[Output]:
    """Yield the output of a file. All parts have been written when the context ends without an error.

    Args:
        emit: callback with the next part of the file. If it does not write the part, it returns a function that does.
        nbytes: length of each buffer.
        threads: number of threads that call what `emit` returns. One thread keeps the order of the parts. 0: no other thread.
        room: function that returns memory of the writer, see `Writer.room`. If there is any, no other thread writes.

    Raises:
        Exception: `emit` or a write failed. Neither is called again.
    """
    if not threads or room(nbytes) is not None:
        yield Output(emit, buffers(nbytes, 1)[0], room)
        return
    output = _ThreadedOutput(emit, nbytes, threads)
    try:
        yield output
    except BaseException as error:
        output.end(error)
        raise
    output.end()


class Output:
    """Takes the parts of a file in order, and writes each of them at once.

    Args:
        emit: callback with the next part of the file, see `emitting`.
        own: memory to produce parts in if the writer has none.
        room: function that returns memory of the writer, see `Writer.room`.

    Attributes:
        buffer: memory to produce the next parts in. It starts at a page, as writes past the page cache require.
    """

    def __init__(self, emit: Emit, own: memoryview, room: Room = no_room) -> None:
        self._emit, self._own, self._room = emit, own, room
        self.buffer = room(len(own)) or own

    def emit(self, start: int, end: int) -> None:
        """Take a part of the buffer, which must not be modified before `exchange`."""
        if (write := self._emit(self.buffer[start:end])) is not None:
            write()

    def exchange(self) -> None:
        """Replace the buffer by one whose parts have been written. Parts that were not emitted are lost."""
        self.buffer = self._room(len(self._own)) or self._own


class _ThreadedOutput(Output):
    """Hands each buffer with its writes to one of several threads. Keeps the first failure."""

    def __init__(self, emit: Emit, nbytes: int, threads: int) -> None:
        first, *free = buffers(nbytes, threads + 1)
        super().__init__(emit, first)
        self._failure: BaseException | None = None
        self._writes: list[Write] = []  # of the buffer that is being filled
        self._full: SimpleQueue[tuple[memoryview, list[Write]] | None] = SimpleQueue()
        self._free: SimpleQueue[memoryview] = SimpleQueue()
        for buffer in free:
            self._free.put(buffer)
        context = copy_context()
        self._threads = [Thread(target=context.copy().run, args=(self._run,), name="reshard-write") for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def emit(self, start: int, end: int) -> None:
        """See `Output.emit`.

        Raises:
            Exception: an earlier write failed.
        """
        if self._failure is not None:
            raise self._failure
        if (write := self._emit(self.buffer[start:end])) is not None:
            self._writes.append(write)

    def exchange(self) -> None:
        """See `Output.exchange`. If all parts were written when they were emitted, the buffer remains."""
        if not self._writes:
            return
        self._full.put((self.buffer, self._writes))
        self.buffer, self._writes = self._free.get(), []

    def _run(self) -> None:
        while (part := self._full.get()) is not None:
            buffer, writes = part
            try:
                for write in writes:
                    if self._failure is None:
                        write()
            except BaseException as error:  # noqa: BLE001 - the first thread raises it
                self._failure = self._failure or error
            self._free.put(buffer)

    def end(self, failure: BaseException | None = None) -> None:
        """Wait for all threads. After a failure, nothing else is written.

        Raises:
            Exception: a write failed, and there is no other failure.
        """
        self._failure = self._failure or failure
        self._full.put((self.buffer, self._writes))
        for _ in self._threads:
            self._full.put(None)
        for thread in self._threads:
            thread.join()
        if failure is None and self._failure is not None:
            raise self._failure
