"""Make several files in one pass over the source: fetch each batch once, and scatter it to the files."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from reshard.engine.execute import Tiles
from reshard.engine.gather import Gatherer
from reshard.engine.overlap import Output
from reshard.storage.buffers import ALIGNMENT, BufferPool, buffers
from reshard.storage.fetched import Fetched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractContextManager

    from reshard.engine.bands import Batch
    from reshard.engine.cast import Losses
    from reshard.engine.file_fingerprints import FileFingerprints
    from reshard.engine.gather import SourceFiles
    from reshard.engine.memory import PassBudget
    from reshard.engine.moves import Move
    from reshard.engine.overlap import Receiver
    from reshard.progress import Cancellation
    from reshard.storage.protocol import Reader


@dataclass(frozen=True, slots=True)
class Sink:
    """Where the content of one file goes.

    Attributes:
        opened: context in which the file is written. It yields a receiver of its content. The file is complete when the context
            ends without an error.
        losses: counters of the elements that casts change.
        fingerprints: fingerprints of the tensors of the file.
    """

    opened: AbstractContextManager[Receiver]
    losses: Losses
    fingerprints: FileFingerprints | None = None


def carry_out_together(
    batches: Iterable[Batch], files: SourceFiles, sinks: Sequence[Sink], budget: PassBudget, cancellation: Cancellation
) -> None:
    """Carry out the batches of a pass. Each sink gets its parts in order, and is called by one thread at a time.

    The first failure cancels the work, so that no thread repeats requests.

    Raises:
        DataError, StorageError: the source cannot be read.
        Exception: a sink failed. No sink is called again.
    """
    with (
        ThreadPoolExecutor(budget.fetchers, thread_name_prefix="reshard-fetch") as fetchers,
        ThreadPoolExecutor(budget.workers, thread_name_prefix="reshard-write") as workers,
    ):
        running = _Pass(files, sinks, budget, cancellation, fetchers, workers)
        try:
            for batch in batches:
                running.start(batch)
            running.wait()
        except BaseException as error:  # noqa: BLE001 - raised by `end`
            running.fail(error)
            fetchers.shutdown(wait=False, cancel_futures=True)  # what waits for a request gets an error
    running.end()


class _Pass:
    """The batches in memory, and the files that are made of them."""

    def __init__(
        self,
        files: SourceFiles,
        sinks: Sequence[Sink],
        budget: PassBudget,
        cancellation: Cancellation,
        fetchers: ThreadPoolExecutor,
        workers: ThreadPoolExecutor,
    ) -> None:
        self._files, self._budget, self._cancellation, self._fetchers = files, budget, cancellation, fetchers
        tiles = buffers(budget.tile + ALIGNMENT, len(sinks))
        self._outputs = [_Output(files, *each, budget.tile) for each in zip(sinks, tiles, strict=True)]
        self._queues = [_Queue(workers) for _ in sinks]
        self._room = threading.Semaphore(budget.batches)
        self._idle = BufferPool()
        self._failure: BaseException | None = None

    def start(self, batch: Batch) -> None:
        """Fetch a batch and carry out its moves in other threads, as soon as there is memory for it.

        Raises:
            Exception: an earlier batch failed, or this one cannot start. Do not call `start` or `wait` again.
        """
        self._room.acquire()
        if self._failure is not None:
            raise self._failure
        budget, total = self._budget, sum(r.end - r.start for r in batch.ranges)
        memory = self._idle.take(max(total, budget.batch))
        fetched = Fetched(batch.ranges, memory, self._fetch, self._fetchers, longest=budget.longest, grouped=budget.grouped)
        users = _Users(len(batch.moves), partial(self._release, fetched))
        for number, moves in batch.moves:
            self._queues[number].add(partial(self._use, number, moves, fetched, users, last=number in batch.ended))

    def fail(self, error: BaseException) -> None:
        """Skip everything that has not started. The first failure is kept."""
        self._failure = self._failure or error
        self._cancellation.cancel()

    def wait(self) -> None:
        """Wait until all batches were carried out or skipped."""
        for _ in range(self._budget.batches):
            self._room.acquire()

    def end(self) -> None:
        """Abort all files that are not complete, if a batch failed. No thread may use the pass any more.

        Raises:
            Exception: a batch failed.
        """
        if self._failure is not None:
            for output in self._outputs:
                output.abort(self._failure)
            raise self._failure

    def _use(self, number: int, moves: Sequence[Move], fetched: Fetched, users: _Users, *, last: bool) -> None:
        try:
            if self._failure is None:
                self._outputs[number].carry_out(moves, fetched, last=last)
        except BaseException as error:  # noqa: BLE001 - the thread that waits raises it
            self.fail(error)
        users.leave()

    def _fetch(self, file: int, view: memoryview, offset: int) -> None:
        self._files.reader(file).read_into(view, offset)

    def _release(self, fetched: Fetched) -> None:
        fetched.close()
        if len(fetched.memory) == self._budget.batch:
            self._idle.give(fetched.memory)
        self._room.release()


class _Users:
    """Counts the users of something, and calls `release` after the last one has left."""

    def __init__(self, count: int, release: Callable[[], None]) -> None:
        self._left, self._release = count, release
        self._lock = threading.Lock()

    def leave(self) -> None:
        """Stop using it."""
        with self._lock:
            self._left -= 1
            last = not self._left
        if last:
            self._release()


class _Queue:
    """Work that threads of a pool do in order, one piece at a time."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._waiting: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self._runs = False

    def add(self, work: Callable[[], None]) -> None:
        """Add work, which must not raise an error."""
        with self._lock:
            self._waiting.append(work)
            idle, self._runs = not self._runs, True
        if idle:
            self._pool.submit(self._run)

    def _run(self) -> None:
        """Do the next piece of work, and let other queues go first before the one after it."""
        self._waiting.popleft()()
        with self._lock:
            again = self._runs = bool(self._waiting)
        if again:
            self._pool.submit(self._run)


class _Output:
    """One file: the context in which it is written, its tile, and what is left to calculate for it."""

    def __init__(self, files: SourceFiles, sink: Sink, buffer: memoryview, tile_bytes: int) -> None:
        self._sink, self._buffer, self._tile_bytes = sink, buffer, tile_bytes
        self._stack = ExitStack()
        self._batch = _BatchFiles(files)
        self._tiles: Tiles | None = None

    def carry_out(self, moves: Sequence[Move], fetched: Fetched, *, last: bool) -> None:
        """Carry out the next moves, which use a batch. Complete the file if they are the last."""
        if self._tiles is None:
            receiver = self._stack.enter_context(self._sink.opened)
            output = Output(receiver.emit, self._buffer, receiver.room)
            gatherer, sink = Gatherer(self._batch, self._tile_bytes), self._sink
            self._tiles = Tiles(gatherer, output, self._tile_bytes, sink.losses, sink.fingerprints)
        self._batch.fetched = fetched
        for move in moves:
            self._tiles.carry_out(move)
        self._tiles.settle()  # what is left to be read is in this batch
        if last:
            self._tiles.finish()
            self._stack.close()

    def abort(self, error: BaseException) -> None:
        """Leave the context because of an error, unless the file is complete."""
        with suppress(BaseException):  # which the caller raises
            self._stack.__exit__(type(error), error, error.__traceback__)


class _BatchFiles:
    """The files of a source, of which a batch is in memory. Everything else is read on demand."""

    def __init__(self, files: SourceFiles) -> None:
        self.fetched: Fetched | None = None
        self._files = files

    def reader(self, rank: int) -> Reader:
        """See `OpenFiles.reader`."""
        return self._files.reader(rank)

    def view(self, rank: int, offset: int, length: int) -> memoryview | None:
        """See `OpenFiles.view`."""
        return None if self.fetched is None else self.fetched.view(rank, offset, length)
