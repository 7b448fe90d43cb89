"""Compare thousands of small tensors of a written file with the source at a time.

The places of elements are calculated one by one, as in `reshard.engine.verify`, but only once for tensors that are alike.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from reshard.checkpoint.dtypes import DTYPES
from reshard.engine.cast import cast
from reshard.engine.small import scatter
from reshard.plan.runs import Runs, joined

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from reshard.checkpoint.inventory import TensorEntry
    from reshard.engine.gather import SourceFiles
    from reshard.plan import RankPlan
    from reshard.plan.columns import Numbers
    from reshard.plan.rank import TensorGroup
    from reshard.plan.runs import Flags, Table
    from reshard.storage.protocol import Reader

# Bytes and runs that are compared at a time, and the longest read with gaps.
_BLOCK_BYTES = 1 << 20
_MOST_RUNS = 1 << 15


class Region(NamedTuple):
    """The elements of a target slice that one source slice holds.

    Attributes:
        start: first element in the target's slice, along each dimension.
        shape: number of elements along each dimension.
        origin: first element in the source's slice.
        rank: source rank that the plan reads it from.
        entry: entry of the tensor in that rank's file. None: the elements are padding.
    """

    start: tuple[int, ...]
    shape: tuple[int, ...]
    origin: tuple[int, ...]
    rank: int
    entry: TensorEntry | None


class Alike(NamedTuple):
    """Small tensors of one group.

    Attributes:
        group: the group.
        regions: regions of each of its tensors. The entries are those of the first one.
        table: runs of bytes of each tensor: number of the region, offset in the source's slice, offset in the target's slice, and
            length, in the source's type.
    """

    group: TensorGroup
    regions: tuple[Region, ...]
    table: Table

    @classmethod
    def of(cls, group: TensorGroup, regions: Sequence[Region]) -> Alike:
        """Calculate the runs of regions, element by element."""
        filled = tuple(region for region in regions if region.entry is not None)
        itemsize = DTYPES[group.kind.dtype].itemsize
        tables = [
            _table(number, region, group.geometry.box.shape) * (1, *(itemsize,) * 3) for number, region in enumerate(filled)
        ]
        return cls(group, filled, np.concatenate([np.zeros((0, 4), np.int64), *tables]))


def _table(number: int, region: Region, shape: tuple[int, ...]) -> Table:
    """Return the runs of a region whose elements are consecutive in the source's slice and in the target's slice."""
    assert region.entry is not None  # noqa: S101 - the caller asked
    count = prod(region.shape)
    inside = np.unravel_index(np.arange(count), region.shape) if region.shape else ()
    source, target = _flat(region.entry.shape, region.origin, inside, count), _flat(shape, region.start, inside, count)
    first = np.flatnonzero(np.concatenate([[True], (np.diff(source) != 1) | (np.diff(target) != 1)]))
    lengths_of_runs = np.diff(np.append(first, count))
    return np.stack([np.full_like(first, number), source[first], target[first], lengths_of_runs], axis=1)


def _flat(shape: tuple[int, ...], origin: tuple[int, ...], inside: Sequence[Numbers], count: int) -> Numbers:
    """Return the flat indexes of the elements of a slice, whose places are counted from `origin`."""
    flat = np.zeros(count, np.int64)
    for length, start, index in zip(shape, origin, inside, strict=True):
        flat = flat * length + start + index
    return flat


class SmallComparison:
    """Comparison of small tensors of one written file with the source.

    Args:
        written: reader of the file.
        plan: plan of the file.
        files: files of the source.
        alike: what the tensors of each group have in common, by the position of the group.
    """

    def __init__(self, written: Reader, plan: RankPlan, files: SourceFiles, alike: Mapping[int, Alike]) -> None:
        self._written, self._plan, self._files, self._alike = written, plan, files, alike
        self._names = plan.tables.names(plan.parameters) if alike else np.zeros(0, np.int64)
        self._span = bytearray(_BLOCK_BYTES)

    def differing(self, entries: Mapping[int, TensorEntry]) -> Iterator[int]:
        """Yield the numbers of the tensors that differ from the source, or whose entries are not as expected.

        Args:
            entries: entry of each tensor in the written file, by its number, in ascending order. Its content is one range.
        """
        numbers = np.fromiter(entries, np.int64, len(entries))
        offsets = np.fromiter((entry.extents[0][0] for entry in entries.values()), np.int64, len(entries))
        groups = self._plan.group_of[numbers]
        nbytes, counts = np.zeros((2, len(self._plan.groups)), np.int64)
        for position, each in self._alike.items():
            nbytes[position] = max(each.group.nbytes, each.group.written_nbytes)
            counts[position] = len(each.table)
        bytes_to, runs_to = np.cumsum(nbytes[groups]), np.cumsum(counts[groups])
        first = 0
        while first < len(numbers):
            before = (int(bytes_to[first - 1]), int(runs_to[first - 1])) if first else (0, 0)
            most = bytes_to.searchsorted(before[0] + _BLOCK_BYTES, "right"), runs_to.searchsorted(before[1] + _MOST_RUNS, "right")
            end = max(first + 1, int(min(most)))
            yield from self._compare(numbers[first:end], offsets[first:end])
            first = end

    def _compare(self, numbers: Numbers, offsets: Numbers) -> Iterator[int]:
        """Yield those of some tensors that differ."""
        groups = self._plan.group_of[numbers]
        positions = np.unique(groups).tolist()
        sizes, written_sizes = np.zeros((2, len(self._plan.groups)), np.int64)
        for position in positions:
            group = self._plan.groups[position]
            sizes[position], written_sizes[position] = group.nbytes, group.written_nbytes
        places, total = _places(sizes[groups])
        targets, written_total = _places(written_sizes[groups])
        sources, wrong = [], np.zeros(len(numbers), np.bool_)
        for position in positions:
            which = groups == position
            runs, unexpected = self._runs(self._alike[position], numbers[which], places[which])
            wrong[which] |= unexpected
            sources.append(runs)
        yield from numbers[wrong].tolist()
        if wrong.any():
            return
        expected, found = memoryview(bytearray(total)), memoryview(bytearray(written_total))
        self._read(Runs(*map(np.concatenate, zip(*sources, strict=True))), self._files.reader, expected)
        own = Runs(np.zeros_like(numbers), offsets, targets, written_sizes[groups])
        self._read(own.part(np.flatnonzero(own.lengths)), lambda _: self._written, found)
        is_cast = any(self._plan.groups[position].kind.cast is not None for position in positions)
        if not is_cast and found == expected:
            return
        rows = (column.tolist() for column in (numbers, groups, places, targets))
        for number, position, at, target in zip(*rows, strict=True):
            kind, here = self._plan.groups[position].kind, found[target : target + int(written_sizes[position])]
            content = expected[at : at + int(sizes[position])]
            if kind.cast is not None:
                uncast, content = content, memoryview(bytearray(len(here)))
                cast(uncast, kind.dtype, content, kind.cast)
            if here != content:
                yield number

    def _runs(self, alike: Alike, numbers: Numbers, places: Numbers) -> tuple[Runs, Flags]:
        """Return the runs of the tensors of a group, and which tensors do not have the expected entries."""
        names, wrong = self._names[numbers], np.zeros(len(numbers), np.bool_)
        offsets = np.zeros((len(alike.regions), len(numbers)), np.int64)
        for number, region in enumerate(alike.regions):
            assert region.entry is not None  # noqa: S101 - padding is left out
            columns = self._plan.tables.of_rank(region.rank)
            at = columns.find(names)
            kind = self._plan.tables.type_of(alike.group.kind.dtype, region.entry.shape)
            wrong |= (columns.names[at] != names) | (columns.types[at] != kind) | (columns.offsets[at] < 0)
            offsets[number] = columns.offsets[at]
        table = alike.table
        sources = offsets[table[:, 0]].T + table[:, 1]
        ranks = np.array([region.rank for region in alike.regions], np.int64)[table[:, 0]]
        columns_of_runs = (np.broadcast_to(ranks, sources.shape), sources, places[:, np.newaxis] + table[:, 2])
        return Runs(*map(np.ravel, (*columns_of_runs, np.broadcast_to(table[:, 3], sources.shape)))), wrong

    def _read(self, runs: Runs, reader: Callable[[int], Reader], into: memoryview) -> None:
        alone, together = joined(runs, len(self._span))
        for rank, source, target, length in zip(*(column.tolist() for column in alone), strict=True):
            reader(rank).read_into(into[target : target + length], source)
        for each in together:
            content = memoryview(self._span)[: each.end - each.start]
            reader(each.rank).read_into(content, each.start)
            scatter(content, each.start, each.runs, into)


def _places(sizes: Numbers) -> tuple[Numbers, int]:
    """Return the start of each of consecutive ranges of these sizes, and their total size."""
    ends = np.cumsum(sizes)
    return ends - sizes, int(ends[-1])
