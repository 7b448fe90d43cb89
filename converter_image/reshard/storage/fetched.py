"""Ranges of files that are fetched into one buffer by several threads."""

from __future__ import annotations

from bisect import bisect_right
from concurrent.futures import wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from concurrent.futures import Executor, Future


@dataclass(frozen=True, slots=True)
class Range:
    """A range of one file.

    Attributes:
        file: number of the file.
        start: offset of the first byte.
        end: offset after the last byte.
    """

    file: int
    start: int
    end: int


class Fetched:
    """Ranges in a buffer, some of which are still being fetched.

    Args:
        ranges: ranges to fetch.
        memory: buffer that is large enough for all of them.
        fetch: function that fills a view with the bytes of a file from an offset.
        pool: threads that call `fetch`.
        longest: maximum length of a request. Longer ranges take several requests.
        grouped: total length up to which shorter ranges are fetched one after the other by one thread.
    """

    def __init__(
        self,
        ranges: Iterable[Range],
        memory: memoryview,
        fetch: Callable[[int, memoryview, int], None],
        pool: Executor,
        *,
        longest: int,
        grouped: int = 0,
    ) -> None:
        self.memory = memory
        self._longest = longest
        self._starts: dict[int, list[int]] = {}
        self._ranges: dict[int, list[tuple[Range, memoryview, list[Future[None]]]]] = {}
        self._requests: list[Future[None]] = []

        def submit(parts: Sequence[tuple[int, memoryview, int]], *users: list[Future[None]]) -> None:
            future = pool.submit(_fetch_all, fetch, parts)
            self._requests.append(future)
            for user in users:
                user.append(future)

        at = size = 0
        group: list[tuple[int, memoryview, int]] = []
        users: list[list[Future[None]]] = []
        for each in sorted(ranges, key=lambda r: (r.file, r.start)):
            n = each.end - each.start
            held, requests = memory[at : at + n], list["Future[None]"]()
            at += n
            self._starts.setdefault(each.file, []).append(each.start)
            self._ranges.setdefault(each.file, []).append((each, held, requests))
            if n > grouped:
                for a in range(0, n, longest):
                    submit([(each.file, held[a : a + longest], each.start + a)], requests)
                continue
            if size + n > grouped:
                submit(group, *users)
                group, users, size = [], [], 0
            group.append((each.file, held, each.start))
            users.append(requests)
            size += n
        if group:
            submit(group, *users)

    def view(self, file: int, offset: int, length: int) -> memoryview | None:
        """Return bytes of a file when they have been fetched, or None if no range contains them.

        Raises:
            DataError, StorageError: they could not be fetched.
        """
        position = bisect_right(self._starts.get(file, ()), offset) - 1
        if position < 0:
            return None
        found, held, requests = self._ranges[file][position]
        first, last = offset - found.start, offset + length - found.start
        if offset + length > found.end:
            return None
        for request in requests[first // self._longest : -(-last // self._longest)]:
            request.result()
        return held[first:last]

    def close(self) -> None:
        """Cancel requests that have not started, and wait for the others, which must not write into memory that is reused."""
        wait([request for request in self._requests if not request.cancel()])


def _fetch_all(fetch: Callable[[int, memoryview, int], None], parts: Iterable[tuple[int, memoryview, int]]) -> None:
    for part in parts:
        fetch(*part)
