"""Prefetch reads that are known in advance, because each read from an object store costs a round trip.

The known reads are only a hint. Other reads are made on demand, so an error in this module cannot affect the result.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from mmap import mmap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from reshard.storage.protocol import Reader
    from reshard.storage.traffic import Meter

# File number, offset, length.
Read = tuple[int, int, int]

# Reading a gap of this many bytes takes less time than another request.
GAP_BYTES = 512 << 10
# Long enough that transfer dominates the overhead of a request: a GiB takes the client 1.6 s of CPU time in requests of 3.5 MiB,
# and 0.8 s in requests of 7 MiB.
_LONGEST_REQUEST = 8 << 20
# Number of files that are handled concurrently.
_FILES = 8
# Number of windows: one is read while the others are fetched.
_WINDOWS = 4


@dataclass(frozen=True, slots=True)
class Range:
    """A range of one file that is fetched with one request.

    Attributes:
        file: number of the file.
        start: offset of the first byte.
        end: offset after the last byte.
    """

    file: int
    start: int
    end: int


def windows(reads: Iterable[Read], *, most: int, gap: int = GAP_BYTES) -> Iterator[tuple[Range, ...]]:
    """Divide reads, in their order, into windows of at most `most` bytes.

    In a window, reads with small gaps between them are fetched together. A longer read than `most` gets a separate window.

    >>> list(windows([(0, 0, 10), (1, 0, 10), (0, 12, 8), (0, 90, 10)], most=30, gap=4))
    [(Range(file=0, start=0, end=20), Range(file=1, start=0, end=10)), (Range(file=0, start=90, end=100),)]
    """
    window: dict[int, list[tuple[int, int]]] = {}
    total = 0
    for file, offset, length in reads:
        found = window.get(file, [])
        first, last, whole = _joined(found, offset, offset + length, gap)
        more = whole[1] - whole[0] - sum(end - start for start, end in found[first:last])
        if total and total + more > most:
            yield _ranges(window)
            window, total = {}, 0
            found, first, last, whole, more = [], 0, 0, (offset, offset + length), length
        found[first:last] = [whole]
        window[file] = found
        total += more
    if total:
        yield _ranges(window)


def _joined(found: list[tuple[int, int]], start: int, end: int, gap: int) -> tuple[int, int, tuple[int, int]]:
    """Merge a range with neighbouring ranges across small gaps. Return the slice of merged ranges, and the new range.

    The ranges in `found` are disjoint and in ascending order.
    """
    first = last = len(found)
    if found and start < found[-1][0]:  # nearly always `start` follows all ranges
        last = bisect_right(found, end + gap, key=lambda r: r[0])
    while first and found[first - 1][1] + gap >= start:
        first -= 1
    first = min(first, last)
    parts = found[first:last]
    return first, last, (min([start, *(a for a, _ in parts)]), max([end, *(b for _, b in parts)]))


def _ranges(window: dict[int, list[tuple[int, int]]]) -> tuple[Range, ...]:
    return tuple(Range(file, start, end) for file, found in window.items() for start, end in found)


def requests(reads: Iterable[Read], memory: int) -> int:
    """Return the number of requests that fetch these reads."""
    longest = _longest_request(memory)
    return sum(-(-(r.end - r.start) // longest) for window in windows(reads, most=memory // _WINDOWS) for r in window)


def files_at_once(workers: int, *, remote: bool) -> int:
    """Return the number of files to process concurrently. Over a network, latency matters more than bandwidth."""
    return max(workers, _FILES) if remote else workers


def _longest_request(memory: int) -> int:
    return min(_LONGEST_REQUEST, memory // _WINDOWS)


@dataclass(slots=True)
class _Fetched:
    """A window that is being fetched: the ranges of each file, their offsets in memory, and the requests."""

    memory: mmap
    starts: dict[int, list[int]] = field(default_factory=dict)
    ranges: dict[int, list[tuple[Range, int, list[Future[None]]]]] = field(default_factory=dict)

    def copy(self, file: int, offset: int, view: memoryview, request_bytes: int) -> bool:
        """Fill `view` when the bytes have been fetched. Return whether this window contains them."""
        position = bisect_right(self.starts.get(file, ()), offset) - 1
        if position < 0:
            return False
        found, at, requests = self.ranges[file][position]
        end = offset + len(view)
        if end > found.end:
            return False
        first, last = offset - found.start, end - found.start
        for request in requests[first // request_bytes : -(-last // request_bytes)]:
            request.result()
        view[:] = memoryview(self.memory)[at + first : at + last]
        return True


class Ahead:
    """Fetches the reads of one thread a few windows ahead."""

    def __init__(self, reads: Iterable[Read], opened: Callable[[int], Reader], memory: int) -> None:
        self._window_bytes = memory // _WINDOWS
        self._request_bytes = _longest_request(memory)
        self._left = windows(reads, most=self._window_bytes)
        self._opened = opened
        self._pool = ThreadPoolExecutor(memory // self._request_bytes, thread_name_prefix="reshard-fetch")
        self._fetched: deque[_Fetched] = deque()
        self._idle: list[mmap] = []  # own pages, which return to the system: a heap would keep and fragment them

    def reader(self, file: int) -> Reader:
        """Return a reader of a file that uses fetched bytes."""
        return _AheadReader(self, file, self._opened(file))

    def read_into(self, file: int, view: memoryview, offset: int) -> None:
        """Fill `view` with the bytes of a file from `offset`, and release the windows before it."""
        self._fetch()
        for passed, window in enumerate(self._fetched):
            if window.copy(file, offset, view, self._request_bytes):
                for _ in range(passed):
                    self._let_go()
                return
        self._opened(file).read_into(view, offset)

    def close(self) -> None:
        """Stop fetching."""
        self._left = iter(())
        while self._fetched:
            self._let_go()
        self._pool.shutdown(cancel_futures=True)
        self._idle.clear()

    def _fetch(self) -> None:
        while len(self._fetched) < _WINDOWS and (window := next(self._left, None)) is not None:
            total = sum(r.end - r.start for r in window)
            if total > self._window_bytes:
                memory = mmap(-1, total)
            else:
                memory = self._idle.pop() if self._idle else mmap(-1, self._window_bytes)
            fetched, at = _Fetched(memory), 0
            for found in sorted(window, key=lambda r: (r.file, r.start)):
                requests = [
                    self._pool.submit(self._request, found, a, memoryview(memory)[at + a - found.start :])
                    for a in range(found.start, found.end, self._request_bytes)
                ]
                fetched.starts.setdefault(found.file, []).append(found.start)
                fetched.ranges.setdefault(found.file, []).append((found, at, requests))
                at += found.end - found.start
            self._fetched.append(fetched)

    def _request(self, found: Range, start: int, view: memoryview) -> None:
        length = min(self._request_bytes, found.end - start)
        self._opened(found.file).read_into(view[:length], start)

    def _let_go(self) -> None:
        """Release the oldest window. Wait for its pending requests, which must not write into memory that is reused."""
        window = self._fetched.popleft()
        for found in window.ranges.values():
            for _, _, requests in found:
                for request in requests:
                    if not request.cancel():
                        request.exception()
        if len(window.memory) == self._window_bytes:
            self._idle.append(window.memory)


class _AheadReader:
    """A file that is read through an `Ahead`."""

    def __init__(self, ahead: Ahead, file: int, opened: Reader) -> None:
        self._ahead, self._file = ahead, file
        self._opened = opened
        self.name, self.size, self.version, self.changed = opened.name, opened.size, opened.version, opened.changed

    def read(self, offset: int, length: int) -> bytes:
        """See `Reader.read`."""
        content = bytearray(length)
        self._ahead.read_into(self._file, memoryview(content), offset)
        return bytes(content)

    def read_into(self, view: memoryview, offset: int) -> None:
        """See `Reader.read_into`."""
        self._ahead.read_into(self._file, view, offset)

    def read_runs(self, view: memoryview, length: int, offsets: Sequence[int]) -> None:
        """See `Reader.read_runs`."""
        read_into, file = self._ahead.read_into, self._file
        for at, offset in enumerate(offsets):
            read_into(file, view[at * length : (at + 1) * length], offset)

    def count_in(self, meter: Meter) -> None:
        """See `Reader.count_in`. Counts what is fetched from now on, also ahead of its use."""
        self._opened.count_in(meter)

    def close(self) -> None:
        """See `Reader.close`. Does nothing, because the caller of `Ahead` closes the file."""


@contextmanager
def prefetched(reader: Reader, reads: Iterable[tuple[int, int]], memory: int, *, remote: bool) -> Iterator[Reader]:
    """Yield a reader that prefetches the known reads of one file.

    Args:
        reader: reader of the file.
        reads: known reads as (offset, length), in order. They are not consumed if nothing is prefetched.
        memory: maximum number of prefetched bytes.
        remote: whether a read costs a round trip. Otherwise, `reader` is yielded and nothing is prefetched.
    """
    if not remote:
        yield reader
        return
    ahead = Ahead(((0, offset, length) for offset, length in reads), lambda _: reader, memory)
    try:
        yield ahead.reader(0)
    finally:
        ahead.close()
