"""A queue of keys with due times, like client-go's delaying queue. One worker at a time processes a key. Not thread-safe."""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

K = TypeVar("K")


class WorkQueue(Generic[K]):
    """A queue of keys with due times. `add` and `pop` take O(log n) time.

    A key that is added while it is being processed waits until `done` is called.
    """

    def __init__(self) -> None:
        self._due: dict[K, float] = {}
        self._busy: set[K] = set()
        # Holds the current entry of each key that is not busy. Entries that an earlier due time replaced are skipped when popped.
        self._heap: list[tuple[float, K]] = []

    def add(self, key: K, due: float) -> None:
        """Add a key. If it is already in the queue, the earlier due time applies."""
        if due >= self._due.get(key, float("inf")):
            return
        self._due[key] = due
        if key not in self._busy:
            heapq.heappush(self._heap, (due, key))

    def pop(self, now: float) -> K | None:
        """Return the key that has been due for the longest time, and mark it as busy, or return None if no free key is due."""
        due = self.next_due()
        if due is None or due > now:
            return None
        key = heapq.heappop(self._heap)[1]
        del self._due[key]
        self._busy.add(key)
        return key

    def next_due(self) -> float | None:
        """Return the due time of the next free key, or None if there is none."""
        while self._heap:
            due, key = self._heap[0]
            if self._due.get(key) == due and key not in self._busy:
                return due
            heapq.heappop(self._heap)
        return None

    def done(self, key: K) -> None:
        """Free a key that `pop` returned."""
        self._busy.discard(key)
        if key in self._due:
            heapq.heappush(self._heap, (self._due[key], key))
