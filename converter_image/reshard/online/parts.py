"""Divide the tensors of a rank into parts that threads can read independently of each other. Pure."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from reshard.checkpoint.dtypes import DTYPES
from reshard.engine.gather import reads_of_box, span_bytes
from reshard.engine.memory import TILE_BYTES
from reshard.engine.moves import end_of_small
from reshard.engine.small import Small, reads_of_small
from reshard.layout.box import Box, shifted
from reshard.layout.tiles import divide, flat_span
from reshard.plan.runs import common_runs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from reshard.checkpoint.inventory import TensorEntry
    from reshard.plan import RankPlan
    from reshard.plan.rank import TensorGroup
    from reshard.storage.ahead import Read

    # Offsets in source and target and length in bytes, or boxes in source and target and length in bytes.
    _Way = tuple[int, int, int] | tuple[Box, Box, int]

# A part takes much longer to read than to pass on. If there is little to read, parts are shorter, so that all threads take part.
_MOST_PART_BYTES = 8 << 20
_LEAST_PART_BYTES = 1 << 20
_PARTS_PER_WORKER = 8
_MOST_SORTED = 4096
# Runs of at least this length are read one by one. Shorter runs take less time in one read, through a buffer.
_LONG_RUN_BYTES = 256 << 10
_LONG_REMOTE_RUN_BYTES = 4 << 20
# Reading a gap of this length from the page cache takes about as long as a system call.
GAP_BYTES = 16 << 10


class Run(NamedTuple):
    """Bytes that are contiguous in the source tensor and in the target tensor.

    Attributes:
        number: number of the target tensor in the plan.
        rank: source rank to read from.
        entry: entry of the source tensor in the rank's file.
        source: offset in the content of the source tensor, in bytes.
        target: offset in the content of the target tensor, in bytes.
        nbytes: length in bytes.
    """

    number: int
    rank: int
    entry: TensorEntry
    source: int
    target: int
    nbytes: int


class Piece(NamedTuple):
    """A box of elements that are strided in the source tensor or in the target tensor, or are cast.

    Attributes:
        number: number of the target tensor in the plan.
        rank: source rank to read from.
        entry: entry of the source tensor in the rank's file.
        source: box in the source tensor.
        target: box of the same elements in the target tensor.
        nbytes: length in the source's type, in bytes.
    """

    number: int
    rank: int
    entry: TensorEntry
    source: Box
    target: Box
    nbytes: int


Part = Run | Piece | Small


class Division:
    """The division of a plan into parts.

    Args:
        plan: plan of the rank.
        remote: whether a read costs a round trip.
        workers: number of threads that read.
        together: number of bytes of small tensors that are read together. Other tensors are read one by one.
    """

    def __init__(self, plan: RankPlan, *, remote: bool, workers: int, together: int) -> None:
        self._plan, self._remote, self._together = plan, remote, together
        share = plan.written_nbytes // (workers * _PARTS_PER_WORKER)
        self._most = min(max(share, _LEAST_PART_BYTES), _MOST_PART_BYTES)
        self._known: dict[int, tuple[tuple[int, _Way], ...]] = {}

    def sequences(self) -> Iterator[range]:
        """Yield the numbers of the tensors that are read together, in order."""
        number = 0
        while number < len(self._plan.parameters):
            end = max(end_of_small(self._plan, number, self._together), number + 1)
            yield range(number, end)
            number = end

    def parts(self, numbers: range) -> Iterator[Part]:
        """Yield the parts of such a sequence of tensors. No two parts have bytes in common."""
        plan, number = self._plan, numbers.start
        nbytes = int(plan.ends[numbers.stop] - plan.ends[number])
        if not nbytes:
            return
        if plan.small[number]:
            yield Small(plan, number, numbers.stop, nbytes)
            return
        tensor = plan.tensors[number]
        for overlap, way in self._ways(int(plan.group_of[number])):
            rank, entry = tensor.ranks[overlap], tensor.entries[overlap]
            if isinstance(way[0], Box):
                yield Piece(number, rank, entry, *way)
            else:
                yield Run(number, rank, entry, *way)

    def by_source(self) -> Iterator[Part]:
        """Yield all parts, thousands at a time in the order of the source's files, so that neighbours are read together."""
        parts = (part for numbers in self.sequences() for part in self.parts(numbers))
        while some := list(islice(parts, _MOST_SORTED)):
            yield from sorted(some, key=_position)

    def _ways(self, number: int) -> Iterable[tuple[int, _Way]]:
        """Return the parts of each tensor of a group. They are kept if the group has several tensors."""
        group = self._plan.groups[number]
        if len(group.numbers) == 1:
            return _ways(group, self._most, remote=self._remote)
        if number not in self._known:
            self._known[number] = tuple(_ways(group, self._most, remote=self._remote))
        return self._known[number]


def buffered_reads(parts: Iterable[Part]) -> Iterator[Read]:
    """Yield the reads of all parts but runs, in order."""
    for part in parts:
        if isinstance(part, Small):
            yield from reads_of_small([(0, part)], TILE_BYTES, span_bytes(TILE_BYTES))
        elif isinstance(part, Piece):
            yield from reads_of_box(part.rank, part.entry, part.source, TILE_BYTES, GAP_BYTES)


def _position(part: Part) -> tuple[int, int]:
    """Return a key for the order of the source's files. Small tensors, which are read from several files, come first."""
    if isinstance(part, Small):
        return -1, part.first
    start = (
        part.source if isinstance(part, Run) else flat_span(part.entry.shape, part.source)[0] * DTYPES[part.entry.dtype].itemsize
    )
    return part.rank, next(part.entry.located(start, 1))[0]


def _ways(group: TensorGroup, most: int, *, remote: bool) -> Iterator[tuple[int, _Way]]:
    """Yield the overlap that each part belongs to, and the part, which has at most about `most` bytes."""
    dtype, shape = DTYPES[group.kind.dtype], group.geometry.box.shape
    long = _LONG_REMOTE_RUN_BYTES if remote else _LONG_RUN_BYTES
    for number, overlap in enumerate(group.geometry.overlaps):
        length, starts = common_runs(overlap, shape)
        nbytes, alone = length * dtype.itemsize, length == overlap.source.size and not remote
        if group.kind.cast is None and (alone or nbytes >= long):
            for source, target in starts:
                for at in range(0, nbytes, most):
                    run = source * dtype.itemsize + at, target * dtype.itemsize + at, min(most, nbytes - at)
                    yield number, run
        else:
            for part in divide(overlap.source.shape, Box.whole(overlap.source.shape), _elements_of_box(group, most)):
                boxes = shifted(part, overlap.source.start), shifted(part, overlap.target.start)
                yield number, (*boxes, part.size * dtype.itemsize)


def _elements_of_box(group: TensorGroup, most: int) -> int:
    """Return the maximum number of elements of a box. Elements that are cast fit into a tile in both types."""
    itemsize = max(DTYPES[group.kind.dtype].itemsize, DTYPES[group.kind.target_dtype].itemsize)
    return min(most, most if group.kind.cast is None else TILE_BYTES) // itemsize
