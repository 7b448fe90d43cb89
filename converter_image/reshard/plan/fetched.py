"""Bytes of the source that passes over it will fetch: short gaps between the required bytes are fetched as well."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from functools import lru_cache
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from reshard.checkpoint.dtypes import DTYPES
from reshard.layout.box import Box
from reshard.plan.distinct import bytes_needed
from reshard.plan.geometry import composition
from reshard.plan.model import Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from reshard.plan.geometry import Cell
    from reshard.plan.model import Kind
    from reshard.plan.planner import Planner

# Gaps of any length are fetched if the total is at most this multiple of the required bytes.
MOST_OVERREAD = 1.25


class Reading(NamedTuple):
    """How the source is fetched.

    Attributes:
        gap: gaps of at most this many bytes between two ranges of a file are fetched as well.
        most: number of bytes that are fetched together. Ranges that are further apart in time are never joined.
    """

    gap: int
    most: int


class Fetching:
    """Calculates how many bytes passes over the source fetch for target ranks of one model. Results are cached.

    The gaps between tensors are estimated: those of one kind are taken to follow each other in the file.
    """

    def __init__(self, planner: Planner, reading: Reading) -> None:
        self._planner, self._reading = planner, reading
        self._known: dict[Hashable, tuple[int, int]] = {}

    def nbytes(self, ranks: Sequence[int]) -> int:
        """Return the number of bytes that one pass fetches for all these ranks."""
        if self._planner.model.same:  # each rank reads its own file
            return bytes_needed(self._planner, ranks).total
        found = 0
        for kind, count, readers in self._readers(ranks):
            nbytes, between = self._of_kind(kind, readers)
            found += count * nbytes + (count - 1) * between
        return found

    def _readers(self, ranks: Sequence[int]) -> Iterator[tuple[Kind, int, list[int]]]:
        """Yield each kind with a number of its parameters, and those of the ranks that read these parameters."""
        planner, devices = self._planner, self._planner.model.target_devices
        stages: dict[int, list[int]] = defaultdict(list)
        for rank in ranks:
            stages[rank // devices].append(rank)
        readers: dict[Kind, list[int]] = defaultdict(list)
        counts: dict[Kind, int] = {}
        for stage, some in stages.items():
            for kind, numbers in planner.members_of_group[stage].items():
                if planner.divides:
                    written = planner.shares[stage][[rank % devices for rank in some]][:, numbers]
                    patterns, found = np.unique(written, axis=1, return_counts=True)
                    for pattern, count in zip(patterns.T.tolist(), found.tolist(), strict=True):
                        yield kind, count, [rank for rank, writes in zip(some, pattern, strict=True) if writes]
                else:
                    readers[kind] += some
                    counts[kind] = len(numbers)
        for kind, several in readers.items():
            yield kind, counts[kind], several

    def _of_kind(self, kind: Kind, ranks: Iterable[int]) -> tuple[int, int]:
        """Return the number of bytes that are fetched of one parameter, and between two parameters of the kind."""
        cells, devices, first = kind.target.cells, self._planner.model.target_devices, dict[Hashable, int]()
        own = kind.per_rank or kind.role is Role.OWN
        for rank in ranks:
            copy = tuple(holders for _, holders in self._planner.needs(kind, rank)) if own else None
            first.setdefault((copy, cells[rank % devices]), rank)
        key = (kind.dtype, kind.shape, kind.new_shape, kind.source, id(kind.placement), kind.target, frozenset(first))
        if key not in self._known:
            slices: dict[tuple[Hashable, Cell], dict[Box, None]] = defaultdict(dict)
            shapes: dict[Cell, tuple[int, ...]] = {}
            for (copy, _), rank in first.items():  # type: ignore[misc]  # the keys are those from above
                found = composition(kind, kind.box(rank % devices))
                for cell, overlap in zip(found.cells, found.overlaps, strict=True):
                    slices[copy, cell][overlap.source] = None
                    shapes[cell] = overlap.source_shape
            self._known[key] = self._of_slices([(shapes[cell], tuple(boxes)) for (_, cell), boxes in slices.items()], kind.dtype)
        return self._known[key]

    def _of_slices(self, slices: Sequence[tuple[tuple[int, ...], tuple[Box, ...]]], dtype: str) -> tuple[int, int]:
        """Return the number of bytes that are fetched of source slices, given the boxes that are required of each.

        The second number is that of bytes between these and the slices of the next parameter.
        """
        itemsize = DTYPES[dtype].itemsize
        gap, most = self._reading.gap // itemsize, self._reading.most // itemsize
        found = [_spans(shape, boxes, gap) for shape, boxes in slices]
        for number, (each, (shape, boxes)) in enumerate(zip(found, slices, strict=True)):
            span = prod(shape) - each.head - each.tail
            if span <= MOST_OVERREAD * _spans(shape, boxes, 0).fetched:
                found[number] = each._replace(fetched=span)
        total, between = sum(each.fetched for each in found), 0
        if 2 * total <= most:  # the next parameter is fetched together with this one
            between = sum(each.head + each.tail for each in found if each.fetched and each.head + each.tail <= gap)
        return total * itemsize, between * itemsize


class _Spans(NamedTuple):
    """The number and the position of the elements that are fetched, among consecutive elements of a file.

    Attributes:
        fetched: number of elements that are fetched.
        head: number of elements before the first of them. All elements if none is fetched.
        tail: number of elements after the last of them. All elements if none is fetched.
    """

    fetched: int
    head: int
    tail: int

    def then(self, after: _Spans, gap: int) -> _Spans:
        """Return what is fetched of these elements and of those after them, with gaps of at most `gap` elements."""
        if not self.fetched:
            return _Spans(after.fetched, self.head + after.head, after.tail if after.fetched else self.tail + after.tail)
        if not after.fetched:
            return _Spans(self.fetched, self.head, self.tail + after.tail)
        between = self.tail + after.head
        return _Spans(self.fetched + after.fetched + (between if between <= gap else 0), self.head, after.tail)

    def times(self, count: int, gap: int) -> _Spans:
        """Return what is fetched of several sequences of elements like this one."""
        if not self.fetched:
            return _Spans(0, self.head * count, self.tail * count)
        between = self.tail + self.head
        return self._replace(fetched=self.fetched * count + (between if between <= gap else 0) * (count - 1))


@lru_cache(maxsize=1 << 14)
def _spans(shape: tuple[int, ...], boxes: tuple[Box, ...], gap: int) -> _Spans:
    """Return what is fetched of a slice of which boxes are required, with gaps of at most `gap` elements.

    >>> _spans((2, 8), (Box((0, 1), (2, 2)), Box((0, 5), (2, 2))), 2)
    _Spans(fetched=14, head=1, tail=1)
    """
    if not boxes:
        return _Spans(0, prod(shape), prod(shape))
    if not shape:
        return _Spans(1, 0, 0)
    found = _Spans(0, 0, 0)
    ends = sorted({0, shape[0], *(end for box in boxes for end in (box.start[0], box.start[0] + box.shape[0]))})
    for start, end in pairwise(ends):
        meeting = (box for box in boxes if box.start[0] <= start and end <= box.start[0] + box.shape[0])
        across = tuple(dict.fromkeys(Box(box.start[1:], box.shape[1:]) for box in meeting))
        found = found.then(_spans(shape[1:], across, gap).times(end - start, gap), gap)
    return found
