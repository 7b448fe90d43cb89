"""Count the bytes and requests of stores where they are fetched, rather than where the bytes are used."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


class Traffic(NamedTuple):
    """What was fetched from stores.

    Attributes:
        nbytes: number of bytes that a system call or a response returned, including those of responses that broke off or were
            not used.
        requests: number of requests for content: system calls that read a local file, and GET requests for objects, including
            repeated ones. Listings are not counted.
        copied: number of bytes that the server copied, without transferring them to this process.
    """

    nbytes: int = 0
    requests: int = 0
    copied: int = 0

    @classmethod
    def sum(cls, several: Iterable[Traffic]) -> Traffic:
        """Return the sum of several."""
        return cls(*map(sum, zip(cls(), *several, strict=True)))

    def divided(self, weights: Sequence[int]) -> tuple[Traffic, ...]:
        """Divide what was fetched for several target ranks among them, in proportion to their weights. The sums are exact.

        >>> [share.nbytes for share in Traffic(10, 3).divided([1, 1, 2])]
        [2, 3, 5]
        """
        bounds = [*accumulate(weights, initial=0)]
        total = bounds[-1]
        if not total:
            return self.divided([1] * len(weights))
        columns = ([b * n // total - a * n // total for a, b in pairwise(bounds)] for n in self)
        return tuple(map(Traffic._make, zip(*columns, strict=True)))


class Meter:
    """Adds up what is fetched. Threads may share it."""

    __slots__ = ("_copied", "_lock", "_nbytes", "_requests")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._nbytes = self._requests = self._copied = 0

    def add(self, nbytes: int = 0, requests: int = 0, *, copied: int = 0) -> None:
        """Count bytes and requests, see `Traffic`."""
        with self._lock:
            self._nbytes += nbytes
            self._requests += requests
            self._copied += copied

    @property
    def traffic(self) -> Traffic:
        """What was fetched so far."""
        with self._lock:
            return Traffic(self._nbytes, self._requests, self._copied)


_operation: ContextVar[Meter | None] = ContextVar("reshard_meter", default=None)


@contextmanager
def metered() -> Iterator[Meter]:
    """Yield a meter of everything that is fetched from stores that are opened in this context."""
    meter = Meter()
    token = _operation.set(meter)
    try:
        yield meter
    finally:
        _operation.reset(token)


def current_meter() -> Meter:
    """Return the meter of the current context, for a store that is opened in it."""
    return _operation.get() or Meter()
