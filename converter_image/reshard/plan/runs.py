"""Runs of bytes of small tensors, as arrays: thousands of tensors are read with few reads, and copied at a time. Pure."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from reshard.layout.box import contiguous_runs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from reshard.plan.columns import Numbers
    from reshard.plan.geometry import Geometry, Overlap
    from reshard.plan.rank import RankPlan, TensorGroup

    Flags = np.ndarray[tuple[int], np.dtype[np.bool_]]
    Table = np.ndarray[tuple[int, int], np.dtype[np.int64]]

# A small tensor has at most this many bytes, before and after a cast, and this many runs.
SMALL_BYTES = 32 << 10
_FEW_RUNS = 64
# So few tensors are read run by run, because arrays take longer to create.
_FEW_TENSORS = 8
# Number of runs that are calculated at a time.
_MOST_RUNS = 1 << 13
# A gap between two runs is read as well if it is at most a quarter of the run before it. Between shorter runs than this, gaps of
# up to a page are read: the storage reads whole pages in any case.
_SHORTEST_RUN = 64
_PAGE_BYTES = 4096


# Source rank, first byte in the file, first byte in the buffer, length.
Run = tuple[int, int, int, int]


class Runs(NamedTuple):
    """Runs of bytes of source files, and their places in a buffer, as parallel arrays.

    Attributes:
        ranks: source rank of each run.
        sources: first byte in the file.
        targets: first byte in the buffer.
        lengths: number of bytes.
    """

    ranks: Numbers
    sources: Numbers
    targets: Numbers
    lengths: Numbers

    def part(self, which: slice | Numbers) -> Runs:
        """Return some of the runs."""
        return Runs(*(column[which] for column in self))


class Joined(NamedTuple):
    """Runs that are read together, with the gaps between them.

    Attributes:
        rank: source rank.
        start: first byte of the read.
        end: byte after its last.
        runs: the runs.
    """

    rank: int
    start: int
    end: int
    runs: Runs


def small_tensors(plan: RankPlan) -> Flags:
    """Return which tensors of a plan are small. `reads_of` returns their reads."""
    found = np.zeros(len(plan.parameters), np.bool_)
    for group in plan.groups:
        if group.table is not None:
            found[group.numbers] = plan.are_contiguous(group)
    return found


@lru_cache(maxsize=512)
def table_of(geometry: Geometry, itemsize: int) -> Table | None:
    """Return the runs of a slice, or None if there are too many.

    The columns are the number of the overlap, the offset in the source's slice, the offset in the target's slice, and the length,
    in bytes.
    """
    rows: list[tuple[int, int, int, int]] = []
    for number, overlap in enumerate(geometry.overlaps):
        length, starts = common_runs(overlap, geometry.box.shape)
        if len(rows) + overlap.target.size // length > _FEW_RUNS:
            return None
        rows += [(number, source * itemsize, target * itemsize, length * itemsize) for source, target in starts]
    return np.array(rows, np.int64).reshape(-1, 4)


def common_runs(overlap: Overlap, shape: tuple[int, ...]) -> tuple[int, Iterator[tuple[int, int]]]:
    """Return the runs of an overlap that are contiguous in its source slice and in a target slice of this shape.

    Returns:
        The length of each run, and the first element of each in both slices, in elements.
    """
    source_length, sources = contiguous_runs(overlap.source_shape, overlap.source)
    target_length, targets = contiguous_runs(shape, overlap.target)
    length = min(source_length, target_length)  # one divides the other, because both are products of the innermost dimensions
    return length, zip(_pieces(sources, source_length, length), _pieces(targets, target_length, length), strict=True)


def _pieces(starts: Iterator[int], length: int, piece: int) -> Iterator[int]:
    return (start + at for start in starts for at in range(0, length, piece))


def most_fetched(plan: RankPlan, group: TensorGroup) -> tuple[Numbers, int]:
    """Return the maximum number of bytes that are fetched for the small tensors of a group, with the gaps after their runs.

    The runs of one source slice are fetched with gaps between them, but nothing beyond the gap after the last one.

    Returns:
        The number for each tensor, if the next one is fetched too, and the number to add for the last tensor that is fetched.
    """
    found, last = np.zeros(len(group.numbers), np.int64), 0
    if (table := group.table) is None:
        return found, last
    has_next = np.append(np.diff(group.numbers) == 1, [False])
    for overlap in np.unique(table[:, 0]).tolist():
        _, sources, _, lengths = table[table[:, 0] == overlap].T
        short = lengths < _SHORTEST_RUN
        separately = int((lengths + np.where(short, _PAGE_BYTES, lengths // 4)).sum())
        span = int((sources + lengths).max() - sources.min())
        gap = _PAGE_BYTES if short.any() else -(-span // 4)  # the last run may be joined with all before it
        to_next = np.append(np.diff(plan.offsets(group, overlap)), [0]) - span
        gaps = np.where(has_next & (to_next >= 0), np.minimum(to_next, gap), gap)
        found += np.minimum(span + gaps, separately)
        last += gap
    return found, last


def reads_of(plan: RankPlan, numbers: Numbers, places: Numbers, most: int) -> Iterator[tuple[Iterable[Run], Sequence[Joined]]]:
    """Yield the reads of small tensors, some tensors at a time: runs that are read one by one, and runs that are read together.

    Args:
        plan: plan of the rank.
        numbers: numbers of the tensors.
        places: first byte of each tensor in a buffer, in the source's type.
        most: maximum length of a read of several runs.
    """
    if len(numbers) <= _FEW_TENSORS:
        yield _runs_one_by_one(plan, numbers.tolist(), places.tolist()), ()
        return
    for runs in _runs(plan, numbers, places):
        alone, together = joined(runs, most)
        yield zip(*(column.tolist() for column in alone), strict=True), together


def _runs_one_by_one(plan: RankPlan, numbers: Iterable[int], places: Iterable[int]) -> Iterator[Run]:
    for number, place in zip(numbers, places, strict=True):
        tensor, table = plan.tensors[number], plan.groups[plan.group_of[number]].table
        for overlap, source, target, length in [] if table is None else table.tolist():
            yield tensor.ranks[overlap], tensor.entries[overlap].extents[0][0] + source, place + target, length


def _runs(plan: RankPlan, numbers: Numbers, places: Numbers) -> Iterator[Runs]:
    """Yield the runs of small tensors, some at a time."""
    groups = plan.group_of[numbers]
    counts = np.zeros(len(plan.groups), np.int64)
    for number in np.unique(groups).tolist():
        table = plan.groups[number].table
        counts[number] = 0 if table is None else len(table)
    ends, first = np.cumsum(counts[groups]), 0
    while first < len(numbers):
        done = ends[first - 1] if first else 0
        end = max(first + 1, int(np.searchsorted(ends, done + _MOST_RUNS, "right")))
        order = first + np.argsort(groups[first:end], kind="stable")
        members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
        found = [_runs_of_group(plan, plan.groups[groups[each[0]]], numbers[each], places[each]) for each in members]
        yield Runs(*map(np.concatenate, zip(*found, strict=True)))
        first = end


def _runs_of_group(plan: RankPlan, group: TensorGroup, numbers: Numbers, places: Numbers) -> Runs:
    table = group.table
    assert table is not None  # noqa: S101 - the tensors are small
    at, overlaps = np.searchsorted(group.numbers, numbers), table[:, 0]
    offsets = np.array([plan.offsets(group, overlap, at) for overlap in range(len(group.ranks))], np.int64).reshape(-1, len(at))
    sources = offsets[overlaps].T + table[:, 1]
    targets = places[:, np.newaxis] + table[:, 2]
    ranks, lengths = (np.broadcast_to(each, sources.shape) for each in (np.array(group.ranks, np.int64)[overlaps], table[:, 3]))
    return Runs(*map(np.ravel, (ranks, sources, targets, lengths)))


def joined(runs: Runs, most: int) -> tuple[Runs, list[Joined]]:
    """Divide runs into those that are read one by one, and those that are read together, at most `most` bytes at a time.

    Runs that are adjacent in the file and in the buffer become one run.
    """
    if not len(runs.ranks):
        return runs, []
    ranks, sources, targets, lengths = _ordered(runs)
    apart = (np.diff(ranks) != 0) | (np.diff(sources) != lengths[:-1]) | (np.diff(targets) != lengths[:-1])
    first = _starts(apart)
    runs = Runs(ranks[first], sources[first], targets[first], np.add.reduceat(lengths, first))
    before = runs.lengths[:-1]
    gaps = np.diff(runs.sources) - before
    apart = gaps > np.where(before < _SHORTEST_RUN, _PAGE_BYTES, np.minimum(before // 4, _PAGE_BYTES))
    first = _starts(apart | (np.diff(runs.ranks) != 0))
    counts = np.diff(np.append(first, len(runs.ranks)))
    together: list[Joined] = []
    alone = [first[counts == 1]]
    for start, count in zip(first[counts > 1].tolist(), counts[counts > 1].tolist(), strict=True):
        ends = np.maximum.accumulate(runs.sources[start : start + count] + runs.lengths[start : start + count])
        at = 0
        while at < count:
            begin = int(runs.sources[start + at])
            end = int(np.searchsorted(ends, begin + most, "right"))
            if end <= at + 1:
                alone.append(np.array([start + at]))
                end = at + 1
            else:
                some = runs.part(slice(start + at, start + end))
                together.append(Joined(int(runs.ranks[start]), begin, int(ends[end - 1]), some))
            at = end
    return runs.part(np.concatenate(alone)), together


def _ordered(runs: Runs) -> Runs:
    """Return the runs by rank and first byte. Those of each rank are usually in order, as tensors are in all files."""
    small = runs.ranks.astype(np.min_scalar_type(runs.ranks.max()))  # numpy sorts integers of two bytes in linear time
    found = runs.part(np.argsort(small, kind="stable"))
    if ((found.sources[1:] < found.sources[:-1]) & (found.ranks[1:] == found.ranks[:-1])).any():
        return runs.part(np.lexsort((runs.sources, runs.ranks)))
    return found


def _starts(apart: Flags) -> Numbers:
    """Return the first position of each sequence, given whether each element but the first starts another one."""
    return np.flatnonzero(np.concatenate([[True], apart]))
