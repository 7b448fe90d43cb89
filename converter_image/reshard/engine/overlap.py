"""Emit the parts of a file in a second thread, while the next part is produced."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import copy_context
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Buffers of a file: one that is filled, one that is emitted, and one that waits between them.
BUFFERS = 3


@contextmanager
def emitting(
    emit: Callable[[memoryview], None], buffer_bytes: int, *, overlap: bool
) -> Iterator[Callable[[memoryview, int], memoryview]]:
    """Yield a function that emits the first bytes of a buffer, and returns a buffer of `buffer_bytes` to fill next.

    Its first argument is a buffer that it has returned, or, at the first call, any other buffer of that size. All parts have been
    emitted, in order, when the context ends without an error.

    Args:
        emit: callback with the next part of the file.
        buffer_bytes: size of each buffer.
        overlap: whether a second thread calls `emit`, in the context of this thread.

    Raises:
        Exception: `emit` failed. It is not called again.
    """

    def at_once(buffer: memoryview, filled: int) -> memoryview:
        emit(buffer[:filled])
        return buffer

    if not overlap:
        yield at_once
        return
    second = _Second(emit, buffer_bytes)
    try:
        yield second.pass_on
    except BaseException as error:
        second.end(error)
        raise
    second.end()


class _Second:
    """The second thread, its buffers, and the first failure."""

    def __init__(self, emit: Callable[[memoryview], None], buffer_bytes: int) -> None:
        self._emit = emit
        self._failure: BaseException | None = None
        self._full: SimpleQueue[tuple[memoryview, int] | None] = SimpleQueue()
        self._free: SimpleQueue[memoryview] = SimpleQueue()
        for _ in range(BUFFERS - 1):  # the caller brings one
            self._free.put(memoryview(bytearray(buffer_bytes)))
        self._thread = Thread(target=copy_context().run, args=(self._run,), name="reshard-emit")
        self._thread.start()

    def _run(self) -> None:
        while (part := self._full.get()) is not None:
            buffer, filled = part
            if self._failure is None:
                try:
                    self._emit(buffer[:filled])
                except BaseException as error:  # noqa: BLE001 - the other thread raises it
                    self._failure = error
            self._free.put(buffer)

    def pass_on(self, buffer: memoryview, filled: int) -> memoryview:
        """See `emitting`."""
        self._full.put((buffer, filled))
        following = self._free.get()
        if self._failure is not None:
            raise self._failure
        return following

    def end(self, failure: BaseException | None = None) -> None:
        """Wait for the thread. After a failure, parts that wait are not emitted.

        Raises:
            Exception: `emit` failed, and there is no other failure.
        """
        self._failure = self._failure or failure
        self._full.put(None)
        self._thread.join()
        if failure is None and self._failure is not None:
            raise self._failure
