"""Prefetch reads that are known in advance, because each read from an object store costs a round trip.

The known reads are only a hint. Other reads are made on demand, so an error in this module cannot affect the result.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from reshard.storage.buffers import ALIGNMENT, BufferPool
from reshard.storage.fetched import Fetched, Range

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from reshard.storage.protocol import Reader
    from reshard.storage.traffic import Meter

# File number, offset, length.
Read = tuple[int, int, int]

# Reading a gap of this many bytes takes less time than another request.
GAP_BYTES = 512 << 10
_DISK_GAP = 16 << 10
# Long enough that transfer dominates the overhead of a request: a GiB takes the client 1.6 s of CPU time in requests of 3.5 MiB,
# and 0.8 s in requests of 7 MiB.
_LONGEST_REQUEST = 8 << 20
# Number of files that are handled concurrently.
_FILES = 8
# Number of windows: one is read while the other is fetched. With more of them, reads from several files would take more requests.
_WINDOWS = 2


class Window:
    """Ranges that are fetched together. Reads with gaps of at most `gap` bytes between them are fetched with the gaps.

    Ranges consist of whole blocks of `block` bytes. The last one may end after the end of the file.

    Attributes:
        nbytes: number of bytes to fetch.
    """

    def __init__(self, gap: int = GAP_BYTES, block: int = 1) -> None:
        self.nbytes = 0
        self._gap, self._block = gap, block
        self._found: dict[int, list[tuple[int, int]]] = {}  # disjoint ranges of each file, in ascending order

    def add(self, read: Read, most: int | None = None) -> bool:
        """Add a read, unless the window would then exceed `most` bytes and already has some. Return whether it was added."""
        file, start, length = read
        found, end, gap, block = self._found.get(file, []), start + length, self._gap, self._block
        start, end = start - start % block, end + -end % block
        first = last = len(found)
        if found and start < found[-1][0]:  # nearly always `start` follows all ranges
            last = bisect_right(found, end + gap, key=lambda r: r[0])
        while first and found[first - 1][1] + gap >= start:
            first -= 1
        first = min(first, last)
        parts = found[first:last]
        start, end = min([start, *(a for a, _ in parts)]), max([end, *(b for _, b in parts)])
        more = end - start - sum(b - a for a, b in parts)
        if most is not None and self.nbytes and self.nbytes + more > most:
            return False
        found[first:last] = [(start, end)]
        self._found[file] = found
        self.nbytes += more
        return True

    def ranges(self) -> tuple[Range, ...]:
        """Return the ranges of each file, in ascending order."""
        return tuple(Range(file, start, end) for file, found in self._found.items() for start, end in found)


def windows(reads: Iterable[Read], *, most: int, gap: int = GAP_BYTES, block: int = 1) -> Iterator[tuple[Range, ...]]:
    """Divide reads, in their order, into windows of at most `most` bytes. A longer read gets a separate window.

    >>> list(windows([(0, 0, 10), (1, 0, 10), (0, 12, 8), (0, 90, 10)], most=30, gap=4))
    [(Range(file=0, start=0, end=20), Range(file=1, start=0, end=10)), (Range(file=0, start=90, end=100),)]
    """
    window = Window(gap, block)
    for read in reads:
        if not window.add(read, most):
            yield window.ranges()
            window = Window(gap, block)
            window.add(read)
    if window.nbytes:
        yield window.ranges()


def requests(reads: Iterable[Read], memory: int) -> int:
    """Return the number of requests that fetch these reads."""
    longest = longest_request(memory)
    return sum(-(-(r.end - r.start) // longest) for window in windows(reads, most=memory // _WINDOWS) for r in window)


def files_at_once(workers: int, *, remote: bool) -> int:
    """Return the number of files to process concurrently. Over a network, latency matters more than bandwidth."""
    return max(workers, _FILES) if remote else workers


def longest_request(memory: int) -> int:
    """Return the length of the longest request that prefetches with this memory."""
    return min(_LONGEST_REQUEST, memory // _WINDOWS)


class Ahead:
    """Fetches the reads of one thread a few windows ahead.

    Args:
        reads: reads in their order.
        opened: function that returns the reader of a file.
        memory: number of bytes of all windows.
        pool: pool for the windows. It must not contain larger buffers.
        disk: whether the files are on a disk, so that whole blocks are read, and small gaps are not.
    """

    def __init__(
        self,
        reads: Iterable[Read],
        opened: Callable[[int], Reader],
        memory: int,
        pool: BufferPool | None = None,
        *,
        disk: bool = False,
    ) -> None:
        gap, block = (_DISK_GAP, ALIGNMENT) if disk else (GAP_BYTES, 1)
        self._window_bytes, self._request_bytes = memory // _WINDOWS, longest_request(memory)
        self._left = windows(reads, most=self._window_bytes, gap=gap, block=block)
        self._opened = opened
        self._pool = ThreadPoolExecutor(-(-memory // self._request_bytes), thread_name_prefix="reshard-fetch")
        self._fetched: deque[Fetched] = deque()
        self._idle = pool or BufferPool()

    def reader(self, file: int) -> Reader:
        """Return a reader of a file that uses fetched bytes."""
        return _AheadReader(self, file, self._opened(file))

    def view(self, file: int, offset: int, length: int) -> memoryview | None:
        """Return bytes of a file until the next call, or None if they are not prefetched. Release the windows before them."""
        self._fetch()
        for passed, window in enumerate(self._fetched):
            if (found := window.view(file, offset, length)) is not None:
                for _ in range(passed):
                    self._let_go()
                return found
        return None

    def read_into(self, file: int, view: memoryview, offset: int) -> None:
        """Fill `view` with the bytes of a file from `offset`, and release the windows before it."""
        if (found := self.view(file, offset, len(view))) is not None:
            view[:] = found
        else:
            self._opened(file).read_into(view, offset)

    def close(self) -> None:
        """Stop fetching."""
        self._left = iter(())
        while self._fetched:
            self._let_go()
        self._pool.shutdown(cancel_futures=True)

    def _fetch(self) -> None:
        while len(self._fetched) < _WINDOWS and (window := next(self._left, None)) is not None:
            total = sum(r.end - r.start for r in window)
            memory = self._idle.take(max(total, self._window_bytes))
            self._fetched.append(Fetched(window, memory, self._request, self._pool, longest=self._request_bytes))

    def _request(self, file: int, view: memoryview, offset: int) -> None:
        reader = self._opened(file)
        reader.read_into(view[: reader.size - offset], offset)

    def _let_go(self) -> None:
        """Release the oldest window."""
        window = self._fetched.popleft()
        window.close()
        if len(window.memory) == self._window_bytes:
            self._idle.give(window.memory)


class _AheadReader:
    """A file that is read through an `Ahead`."""

    def __init__(self, ahead: Ahead, file: int, opened: Reader) -> None:
        self._ahead, self._file = ahead, file
        self._opened = opened
        self.name, self.size, self.version, self.changed = opened.name, opened.size, opened.version, opened.changed

    @property
    def waits(self) -> bool:
        """See `Reader.waits`. The reads are prefetched."""
        return False

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

    def will_read(self, offset: int, length: int) -> None:
        """See `Reader.will_read`. Does nothing, because the reads are prefetched."""

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
