"""Divide the files of several ranks into batches, so that one pass over the source serves all of them.

The elements of a parameter are taken in bands: boxes that are contiguous in the smallest box that contains the slices of all
ranks. What a band has in common with a slice is contiguous in that slice, so the bands give every rank its bytes in file order.
What it has in common with a source slice is one read, if all columns of that slice are needed.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from functools import lru_cache
from heapq import heappop, heappush
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from reshard.checkpoint.dtypes import DTYPES
from reshard.engine.gather import reads_of_box, span_bytes
from reshard.engine.memory import TILE_BYTES
from reshard.engine.moves import Overlaps
from reshard.engine.small import Small, reads_of_small
from reshard.layout.box import Box, shifted
from reshard.layout.tiles import flat_span, next_tile
from reshard.plan.fetched import MOST_OVERREAD
from reshard.plan.runs import SMALL_BYTES
from reshard.storage.ahead import Window

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from reshard.checkpoint.inventory import TensorEntry
    from reshard.engine.moves import FileMoves, Move
    from reshard.plan import Parameter, RankPlan, TargetTensor
    from reshard.plan.columns import Numbers
    from reshard.plan.geometry import Cell, Geometry
    from reshard.storage.ahead import Read
    from reshard.storage.fetched import Range

# A cast halves the length of a tensor, or more.
_MOST_CAST = 4


class Batch(NamedTuple):
    """Ranges that are fetched together, and the next moves of each file, which use them.

    Attributes:
        ranges: ranges of the source's files, by rank.
        moves: numbers of files, each with its next moves.
        ended: numbers of the files that end with these moves.
    """

    ranges: tuple[Range, ...]
    moves: tuple[tuple[int, tuple[Move, ...]], ...]
    ended: frozenset[int]


def batches(files: Sequence[FileMoves], parameters: Iterable[Parameter], most: int, gap: int) -> Iterator[Batch]:
    """Yield the batches of a pass over the source. Does no I/O.

    Args:
        files: moves of each file. They are consumed.
        parameters: parameters in the order in which all files contain them. If a file contained them in another order, it would
            still be right, but would share fewer reads.
        most: number of bytes of the source in a batch.
        gap: gaps of at most this many bytes between two ranges are fetched as well.
    """
    building = _Building(gap)
    for number, file in enumerate(files):
        if file.tensor is None:
            building.end(number, file)
    for turn in _turns(files, parameters):
        while not turn.finished:
            if building.nbytes > most // 2:
                yield building.finished
                building = _Building(gap)
            building.add(*turn.next(most - building.nbytes))
        for number in turn.numbers:
            if files[number].tensor is None:
                building.end(number, files[number])
    if building.moves:
        yield building.finished


def _turns(files: Sequence[FileMoves], parameters: Iterable[Parameter]) -> Iterator[_Bands | _SmallTensors]:
    """Yield what several files contain next. The caller then advances them."""
    order = {id(parameter): position for position, parameter in enumerate(parameters)}
    known: dict[int, Numbers] = {}  # most files contain the same parameters
    positions: list[Numbers] = []
    for plan in (file.plan for file in files):
        if id(plan.parameters) not in known:
            known[id(plan.parameters)] = np.array([order[id(parameter)] for parameter in plan.parameters], np.int64)
        positions.append(known[id(plan.parameters)])
    waiting = list[tuple[int, int]]()

    def wait(number: int) -> None:
        tensor = files[number].tensor
        if tensor is not None:
            heappush(waiting, (int(positions[number][tensor]), number))

    for number in range(len(files)):
        wait(number)
    while waiting:
        first, sharing = waiting[0][0], list[int]()
        while waiting and waiting[0][0] == first:
            sharing.append(heappop(waiting)[1])
        found = [(number, files[number]) for number in sharing]
        if all(file.small_end(SMALL_BYTES) != file.tensor for _, file in found):
            yield _SmallTensors(found, positions, waiting[0][0] if waiting else len(order))
        else:
            yield _Bands(found)
        for number in sharing:
            wait(number)


class _SmallTensors:
    """Small tensors that several files contain next.

    Args:
        files: files that contain the same parameter next, with their numbers.
        positions: positions of the parameters of each file.
        before: position of the next parameter of all other files.
    """

    def __init__(self, files: Sequence[tuple[int, FileMoves]], positions: Sequence[Numbers], before: int) -> None:
        self.numbers = [number for number, _ in files]
        self.finished = False
        self._files, self._positions, self._before = files, positions, before

    def next(self, most: int) -> tuple[list[Read], list[tuple[int, list[Move]]]]:
        """Return the reads of some of the tensors, which fetch at most about `most` bytes, and the moves of each file."""
        self.finished = True
        each = max(SMALL_BYTES, most // len(self._files) // _MOST_CAST)
        starts = [file.tensor or 0 for _, file in self._files]
        ends = [
            min(file.small_end(each), _fetched_end(file.plan, start, most // len(self._files)))
            for (_, file), start in zip(self._files, starts, strict=True)
        ]
        last = min(int(self._positions[number][end - 1]) for number, end in zip(self.numbers, ends, strict=True))
        reads, moves = list["Read"](), []
        for (number, file), start, end in zip(self._files, starts, ends, strict=True):
            count = int(np.searchsorted(self._positions[number][start:end], min(last, self._before - 1), "right"))
            found = list(file.advance(start + count - 1, sys.maxsize))
            for move in found:
                if isinstance(move, Small):
                    reads += reads_of_small([(0, move)], TILE_BYTES, span_bytes(TILE_BYTES))
            moves.append((number, found))
        return reads, moves


def _fetched_end(plan: RankPlan, first: int, most: int) -> int:
    """Return the end of the small tensors from `first` for which at most `most` bytes are fetched. It includes the first one."""
    ends, of_last = plan.most_fetched
    return max(first + 1, int(np.searchsorted(ends, ends[first] + most - of_last, "right")) - 1)


class _Building:
    """A batch to which bands are added."""

    def __init__(self, gap: int) -> None:
        self.moves = defaultdict[int, list["Move"]](list)
        self._window = Window(gap)
        self._ended = set[int]()

    @property
    def nbytes(self) -> int:
        """Number of bytes to fetch so far."""
        return self._window.nbytes

    def add(self, reads: Iterable[Read], moves: Iterable[tuple[int, list[Move]]]) -> None:
        """Add a band."""
        for read in reads:
            self._window.add(read)
        for number, each in moves:
            self.moves[number] += each

    def end(self, number: int, file: FileMoves) -> None:
        """Add the end of a file."""
        self.moves[number] += file.rest()
        self._ended.add(number)

    @property
    def finished(self) -> Batch:
        """The batch."""
        moves = tuple((number, tuple(each)) for number, each in self.moves.items())
        return Batch(self._window.ranges(), moves, frozenset(self._ended))


class _Part(NamedTuple):
    """The slice of a parameter in one file."""

    number: int
    file: FileMoves
    tensor: int
    target: TargetTensor
    overlaps: Overlaps


class _Bands:
    """The slices of one parameter in several files, in bands."""

    def __init__(self, files: Sequence[tuple[int, FileMoves]]) -> None:
        following = [(number, file, file.tensor) for number, file in files if file.tensor is not None]
        targets = [file.plan.tensors[tensor] for _, file, tensor in following]
        self._parts = [_Part(*file, target, Overlaps(target)) for file, target in zip(following, targets, strict=True)]
        self.numbers = [number for number, _ in files]
        self._around = around([part.target.geometry.box for part in self._parts])
        self._spread = spread(tuple((part.target.geometry, part.target.ranks) for part in self._parts))
        parameter = self._parts[0].target.parameter
        self._itemsize, self._written = DTYPES[parameter.dtype].itemsize, DTYPES[parameter.target_dtype].itemsize
        self._at = 0

    @property
    def finished(self) -> bool:
        """Whether there are no other bands."""
        return self._at == self._around.size

    def next(self, most: int) -> tuple[list[Read], list[tuple[int, list[Move]]]]:
        """Return the reads of the next band, which fetch at most about `most` bytes, and the moves of each file."""
        count = max(1, int(most / self._spread) // self._itemsize)
        band = next_tile(self._around.shape, self._at, count)
        self._at += band.size
        band = shifted(band, self._around.start)
        needed = defaultdict[tuple[int, int], "dict[Box, TensorEntry]"](dict)
        moves = []
        for part in self._parts:
            box = part.target.geometry.box
            common = band.intersect(box)
            if common is None:
                continue
            held = common.relative_to(box.start)
            first, end = flat_span(box.shape, held)
            moves.append((part.number, list(part.file.advance(part.tensor, end * self._written))))
            for overlap, rank, entry in part.overlaps.between(first, end):
                both = held.intersect(overlap.target)
                if both is not None:
                    source = shifted(both.relative_to(overlap.target.start), overlap.source.start)
                    needed[rank, entry.extents[0][0]][source] = entry
        return [read for (rank, _), boxes in needed.items() for read in _reads(rank, boxes)], moves


def _reads(rank: int, boxes: Mapping[Box, TensorEntry]) -> Iterator[Read]:
    """Yield the reads of boxes of one source slice, which are equal or have no common elements."""
    entry = next(iter(boxes.values()))
    whole = around(list(boxes))
    together = whole.size <= MOST_OVERREAD * sum(box.size for box in boxes)
    for box in [whole] if together else boxes:
        yield from reads_of_box(rank, entry, box, sys.maxsize)


def around(boxes: Sequence[Box]) -> Box:
    """Return the smallest box that contains these boxes."""
    if len(boxes) == 1:
        return boxes[0]
    start = tuple(map(min, *(box.start for box in boxes)))
    end = map(max, *(tuple(a + n for a, n in zip(box.start, box.shape, strict=True)) for box in boxes))
    return Box(start, tuple(b - a for a, b in zip(start, end, strict=True)))


@lru_cache(maxsize=512)
def spread(slices: tuple[tuple[Geometry, tuple[int, ...]], ...]) -> float:
    """Return the length of what is read of a parameter with all gaps, as a multiple of the needed elements.

    An element is read several times if slices consist of different copies of it.

    Args:
        slices: geometry of each slice, and the source rank of each of its overlaps.
    """
    needed: dict[Cell, dict[int, list[Box]]] = defaultdict(lambda: defaultdict(list))
    shapes = {}
    for geometry, ranks in slices:
        for cell, overlap, rank in zip(geometry.cells, geometry.overlaps, ranks, strict=True):
            needed[cell][rank].append(overlap.source)
            shapes[cell] = overlap.source_shape
    spans = (flat_span(shapes[cell], around(found)) for cell, copies in needed.items() for found in copies.values())
    total = sum(around(list(chain.from_iterable(copies.values()))).size for copies in needed.values())
    return max(1.0, sum(end - first for first, end in spans) / total) if total else 1.0
