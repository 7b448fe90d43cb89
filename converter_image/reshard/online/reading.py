"""Read the tensors of a rank into memory, with several threads. Long runs of bytes are read straight into their place."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import cached_property
from itertools import pairwise
from threading import local
from typing import TYPE_CHECKING

import numpy as np

from reshard.engine.cast import cast
from reshard.engine.execute import fill
from reshard.engine.gather import Gatherer, element_type
from reshard.engine.memory import TILE_BYTES, Budget
from reshard.engine.small import Small
from reshard.online.parts import GAP_BYTES, Division, Run, buffered_reads

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from reshard.checkpoint.arrays import Array
    from reshard.engine.gather import Elements, SourceFiles
    from reshard.online.parts import Part, Piece
    from reshard.plan import RankPlan

# A thread gets parts with about this many bytes at a time, and has a few such jobs waiting.
_JOB_BYTES = 4 << 20
_JOBS_PER_WORKER = 8
# Number of threads, at least, if most of their time passes with waiting.
_LEAST_WAITING = 8
# From remote storage, everything that is not read straight into its place is prefetched.
_PREFETCH_BYTES = 32 << 20


def read(
    files: SourceFiles, plan: RankPlan, places: Iterable[Array], *, workers: int, ahead: int | None = None
) -> Iterator[Array]:
    """Read the tensors of a rank, and yield the place of each when it is complete, in order.

    Args:
        files: files of the source.
        plan: plan of the rank.
        places: memory of each tensor in its target type, as a contiguous array of bytes. It is taken when reading starts.
        workers: number of threads. If reads wait for a server or a disk, more threads read.
        ahead: number of bytes that are read ahead of the tensor that is yielded. With 0, a place is taken when the previous one
            has been yielded. None: all places are taken first, and everything is read, in the order of the source's files.

    Raises:
        DataError, StorageError: the source cannot be read. The content of places that were not yielded is undefined.
    """
    if (sources := plan.sources) and files.opened(sources[0]).waits:
        workers = max(workers, _LEAST_WAITING)
    together = TILE_BYTES if ahead is None else min(ahead, TILE_BYTES)
    division = Division(plan, remote=files.remote, workers=workers, together=together)
    with closing(_Reading(files, plan, workers)) as reading:
        if ahead is None:
            yield from _read_all(division, reading, list(places))
        else:
            yield from _read_ahead(division, reading, places, ahead)


def _read_all(division: Division, reading: _Reading, places: Sequence[Array]) -> Iterator[Array]:
    reading.expect(division.by_source())
    found = dict(enumerate(places))
    for numbers in division.sequences():
        reading.pad(numbers, found)
    for part in division.by_source():
        reading.start(part, found)
    reading.wait(reading.jobs)
    yield from places


def _read_ahead(division: Division, reading: _Reading, places: Iterable[Array], ahead: int) -> Iterator[Array]:
    reading.expect(part for numbers in division.sequences() for part in division.parts(numbers))
    waiting: deque[tuple[list[Array], int]] = deque()
    taken, kept = iter(places), 0
    for numbers in division.sequences():
        found = {number: next(taken) for number in numbers}
        reading.pad(numbers, found)
        for part in division.parts(numbers):
            reading.start(part, found)
        waiting.append((list(found.values()), reading.jobs))
        kept += sum(place.nbytes for place in found.values())
        while kept > ahead:
            complete, jobs = waiting.popleft()
            reading.wait(jobs)
            kept -= sum(place.nbytes for place in complete)
            yield from complete
    for complete, jobs in waiting:
        reading.wait(jobs)
        yield from complete


class _Reading:
    """Parts that are being read. Threads get several at a time, as a job. Jobs end in any order, and are waited for in theirs."""

    def __init__(self, files: SourceFiles, plan: RankPlan, workers: int) -> None:
        self._files, self._plan = files, plan
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="reshard-load")
        self._threads, self._own = local(), _Worker(files, plan)
        self._most = workers * _JOBS_PER_WORKER
        self._job: list[tuple[Part, Mapping[int, Array]]] = []
        self._nbytes = self._submitted = self._done = 0
        self._running: deque[Future[None]] = deque()

    @property
    def jobs(self) -> int:
        """The number of jobs that read all parts so far."""
        return self._submitted + bool(self._job)

    def expect(self, parts: Iterable[Part]) -> None:
        """Prefetch what follows from remote storage, in this order, unless it is read straight into its place."""
        if self._files.remote:
            self._files.expect(self._plan.sources, buffered_reads(parts), Budget(ahead=_PREFETCH_BYTES))

    def pad(self, numbers: range, places: Mapping[int, Array]) -> None:
        """Write the zeros that pad a tensor. Small tensors are padded when they are read."""
        if self._plan.small[numbers.start]:
            return
        for box in self._plan.groups[self._plan.group_of[numbers.start]].geometry.padding:
            _elements(self._plan, numbers.start, places[numbers.start])[box.slices()] = 0

    def start(self, part: Part, places: Mapping[int, Array]) -> None:
        """Start reading a part into the places of its tensors, by their numbers. If too much is waiting, wait for half of it.

        Raises:
            ReshardError: a part cannot be read.
        """
        if self._files.remote and not isinstance(part, Run):
            self._own.read(part, places)  # only this thread can use what is prefetched
            return
        self._job.append((part, places))
        self._nbytes += part.nbytes
        if self._nbytes >= _JOB_BYTES:
            self._submit()

    def wait(self, jobs: int) -> None:
        """Wait for the first jobs.

        Raises:
            ReshardError: a part cannot be read.
        """
        if jobs > self._submitted:
            self._submit()
        if jobs > self._done:
            self._running[jobs - self._done - 1].exception()  # wakes this thread once, rather than after each job
        while self._done < jobs:
            self._running.popleft().result()
            self._done += 1

    def close(self) -> None:
        """Cancel what is waiting, and end the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _submit(self) -> None:
        if len(self._running) == self._most:
            self.wait(self._done + self._most // 2)
        self._running.append(self._pool.submit(self._run, self._job))
        self._submitted += 1
        self._job, self._nbytes = [], 0

    def _run(self, job: Iterable[tuple[Part, Mapping[int, Array]]]) -> None:
        worker = self._threads.__dict__.setdefault("worker", _Worker(self._files, self._plan))
        for part, places in job:
            worker.read(part, places)


class _Worker:
    """Reads one part after another, with buffers that are reused."""

    def __init__(self, files: SourceFiles, plan: RankPlan) -> None:
        self._files, self._plan = files, plan

    @cached_property
    def _gatherer(self) -> Gatherer:
        return Gatherer(self._files, TILE_BYTES, GAP_BYTES)

    @cached_property
    def _buffer(self) -> memoryview:
        return memoryview(bytearray(TILE_BYTES))

    def read(self, part: Part, places: Mapping[int, Array]) -> None:
        """Read a part into the places of its tensors, by their numbers."""
        if isinstance(part, Run):
            self._read_run(part, _view(places[part.number]))
        elif isinstance(part, Small):
            fill([part], self._gatherer, self._buffer)
            ends = (part.plan.ends[part.first : part.end + 1] - part.plan.ends[part.first]).tolist()
            for number, (first, end) in zip(range(part.first, part.end), pairwise(ends), strict=True):
                _view(places[number])[:] = self._buffer[first:end]
        else:
            self._read_piece(part, places[part.number])

    def _read_run(self, run: Run, view: memoryview) -> None:
        reader, target = self._files.opened(run.rank), run.target
        for offset, n in run.entry.located(run.source, run.nbytes):
            reader.read_into(view[target : target + n], offset)
            target += n

    def _read_piece(self, piece: Piece, place: Array) -> None:
        parameter, window = self._plan.parameters[piece.number], (*piece.target.slices(), ...)
        into = _elements(self._plan, piece.number, place)[window]  # type: ignore[index]  # numpy's stubs do not support this tuple
        if parameter.cast is None:
            self._gatherer.read(piece.rank, piece.entry, piece.source, into)
            return
        before = np.empty(into.shape, element_type(parameter.dtype))
        self._gatherer.read(piece.rank, piece.entry, piece.source, before)
        after = np.empty(into.shape, into.dtype)
        cast(_view(before), parameter.dtype, _view(after), parameter.cast)
        into[...] = after


def _elements(plan: RankPlan, number: int, content: Array) -> Elements:
    """Return the content of a tensor as an array of its shape, whose elements can be moved."""
    dtype, group = plan.parameters[number].target_dtype, plan.groups[plan.group_of[number]]
    return content.view(element_type(dtype)).reshape(group.geometry.box.shape)


def _view(array: Array) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8).data)
