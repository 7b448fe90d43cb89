"""The steps that produce a file from the plan of a rank. Pure."""

from __future__ import annotations

import sys
from itertools import chain, pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from reshard.checkpoint.dtypes import DTYPES
from reshard.checkpoint.output import Checksum, Span
from reshard.engine.gather import reads_of_box, span_bytes
from reshard.engine.memory import PART_BYTES, TILE_BYTES
from reshard.engine.small import Small, reads_of_small
from reshard.layout.box import shifted
from reshard.layout.tiles import flat_span, next_tile

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from reshard.checkpoint.inventory import TensorEntry
    from reshard.checkpoint.output import Piece
    from reshard.layout.box import Box
    from reshard.plan import Parameter, RankPlan, TargetTensor
    from reshard.plan.geometry import Overlap
    from reshard.storage.ahead import Read

# A tile with less room than this is passed on, rather than filled with a small fragment.
_SPLINTER_BYTES = 64 << 10


class Copy(NamedTuple):
    """A box of a source tensor that is also a box of a target tensor.

    Attributes:
        rank: source rank to read from.
        entry: entry of the tensor in the file of the source rank.
        source: box in the source rank's slice.
        here: box of these elements, relative to the start of the box that they are copied to.
    """

    rank: int
    entry: TensorEntry
    source: Box
    here: Box


class Fill(NamedTuple):
    """A box of a target tensor that is contiguous in its file.

    Attributes:
        box: elements of the target's slice.
        copies: copies that fill the box.
        parameter: parameter that contains the elements.
        nbytes: length of the box in the target's type, in bytes.
        number: number of the tensor in the plan of the file.
        summed: whether the next `Checksum` depends on these bytes.
    """

    box: Box
    copies: tuple[Copy, ...]
    parameter: Parameter
    nbytes: int
    number: int = 0
    summed: bool = False


# The next bytes of a file: a literal, their origin, or a checksum. None: the tile is full, and passed on.
Move = bytes | Small | Fill | Checksum | None


class FileMoves:
    """The moves that produce one file, in file order, up to positions that the caller chooses. Does no I/O.

    Args:
        plan: plan of the rank.
        pieces: structure of the file in its format. Spans refer to the plan's tensors.
        tile_bytes: number of bytes that are emitted at a time.

    Attributes:
        plan: plan of the rank.
        tensor: number of the tensor of which the file contains elements next. None: no elements are left.
    """

    def __init__(self, plan: RankPlan, pieces: Iterable[Piece], tile_bytes: int = PART_BYTES) -> None:
        self.plan = plan
        self.tensor: int | None = None
        self._at = 0  # bytes of the tensor that were produced
        self._left = 0  # bytes of the span
        self._summed = False
        self._before: list[bytes | Checksum] = []  # pieces before the span
        self._pieces = pairwise(chain(pieces, [b""]))
        self._room = Room(tile_bytes)
        self._content: Content | None = None
        self._find()

    def advance(self, last: int, end: int) -> Iterator[Move]:
        """Yield the moves up to byte `end` of the content of tensor `last`, or up to a span of lower tensors."""
        first = self.tensor
        while self.tensor is not None and first is not None and first <= self.tensor <= last:
            if self.tensor == last and self._at >= end:
                return
            yield from self._literals()
            number, at = self.tensor, self._at
            size = self._size(number)
            length = min(self._left, size - at)
            if at == 0 and length == size <= self._room.most and self.plan.small[number] and (number < last or end >= size):
                yield from self._room.make(length)
                after = min(last + (end >= self._size(last)), end_of_small(self.plan, number, min(self._room.left, self._left)))
                length = int(self.plan.ends[after] - self.plan.ends[number])
                yield from self._room.take(length)
                yield Small(self.plan, number, after, length, self._summed)
                self._move_on(after, 0, length)
            else:
                length = min(length, end - at) if number == last else length
                yield from self._fills(number, at, length)
                self._move_on(number, at + length, length)

    def small_end(self, most: int) -> int:
        """Return the number after the last of the next small tensors of the span, which have at most `most` bytes together.

        It is the number of the next tensor if that tensor is not small, or longer.
        """
        number = self.tensor
        if number is None or self._at or not self.plan.small[number]:
            return number or 0
        return end_of_small(self.plan, number, min(most, self._left, self._room.most))

    def rest(self) -> Iterator[Move]:
        """Yield all other moves. The last one emits the rest of the tile."""
        last = len(self.plan.parameters) - 1
        while self.tensor is not None:
            yield from self.advance(last, self._size(last))
        yield from self._literals()
        if self._room.used:
            yield None

    def _size(self, number: int) -> int:
        return int(self.plan.ends[number + 1] - self.plan.ends[number])

    def _move_on(self, number: int, at: int, length: int) -> None:
        """Continue after `length` bytes of the span."""
        self._left -= length
        if not self._left:
            self._find()
            return
        while at == self._size(number):  # also past tensors without elements
            number, at = number + 1, 0
        self.tensor, self._at = number, at

    def _find(self) -> None:
        """Find the next span."""
        self.tensor = None
        for piece, following in self._pieces:
            if not isinstance(piece, Span):
                self._before.append(piece)
            elif piece.length:
                self._left, self._summed = piece.length, isinstance(following, Checksum)
                self._move_on(piece.tensor, piece.offset, 0)
                return

    def _literals(self) -> Iterator[Move]:
        for piece in self._before:
            if isinstance(piece, Checksum):
                yield from self._room.take(piece.length)
                yield piece
                continue
            for at in range(0, len(piece), self._room.most):
                part = piece[at : at + self._room.most]
                yield from self._room.take(len(part))
                yield part
        self._before = []

    def _fills(self, number: int, at: int, length: int) -> Iterator[Move]:
        """Yield the moves for a range of the content of a tensor."""
        tensor, end = self.plan.tensors[number], at + length
        if self._content is None or self._content.tensor is not tensor:
            self._content = Content(tensor)
        while at < end:
            yield from self._room.make(min(_SPLINTER_BYTES, end - at))
            fill = self._content.next(at, min(self._room.left, end - at))
            yield from self._room.take(fill.nbytes)
            yield fill._replace(number=number, summed=self._summed)
            at += fill.nbytes


def moves(plan: RankPlan, pieces: Iterable[Piece]) -> Iterator[Move]:
    """Yield all moves of a file. For arguments, see `FileMoves`."""
    return FileMoves(plan, pieces).rest()


def end_of_small(plan: RankPlan, first: int, most: int) -> int:
    """Return the end of the longest sequence of small tensors from `first` that has at most `most` bytes."""
    end = int(np.searchsorted(plan.ends, plan.ends[first] + most, "right")) - 1
    large = np.flatnonzero(~plan.small[first:end])
    return first + int(large[0]) if len(large) else end


class Room:
    """The free space in a tile of `most` bytes."""

    def __init__(self, most: int) -> None:
        self.most = self.left = most

    @property
    def used(self) -> bool:
        """Whether the tile contains anything."""
        return self.left < self.most

    def make(self, nbytes: int) -> Iterator[None]:
        """Start the next tile if this tile does not have enough space."""
        if self.left < nbytes:
            self.left = self.most
            yield None

    def take(self, nbytes: int) -> Iterator[None]:
        """Use space in the tile."""
        yield from self.make(nbytes)
        self.left -= nbytes


def reads(moves: Iterable[Move]) -> Iterator[Read]:
    """Yield the reads of the source for these moves, in order. Does no I/O."""
    small, filled = list[tuple[int, Small]](), 0
    for move in chain(moves, [None]):
        if isinstance(move, Small):
            small.append((filled, move))
        elif isinstance(move, Fill):
            for copy in move.copies:
                yield from reads_of_box(copy.rank, copy.entry, copy.source, TILE_BYTES)
        filled += length_of(move)
        if move is None:
            yield from reads_of_small(small, TILE_BYTES, span_bytes(TILE_BYTES))
            small, filled = [], 0


def length_of(move: Move) -> int:
    """Return the number of bytes of the file that a move produces."""
    if move is None:
        return 0
    if isinstance(move, Checksum):
        return move.length
    return len(move) if isinstance(move, bytes) else move.nbytes


class Held(NamedTuple):
    """The part of a target tensor that a source rank holds."""

    overlap: Overlap
    rank: int
    entry: TensorEntry


class Overlaps:
    """The parts of a target tensor that source ranks hold, in the order of their first elements."""

    def __init__(self, tensor: TargetTensor) -> None:
        held = (Held(*each) for each in zip(tensor.geometry.overlaps, tensor.ranks, tensor.entries, strict=True))
        self._waiting = iter(sorted(held, key=lambda each: each.overlap.first))
        self._next = next(self._waiting, None)
        self._active: list[Held] = []

    def between(self, first: int, end: int) -> list[Held]:
        """Return the parts that may have elements in a range of flat indexes. Ranges must be requested in ascending order."""
        while self._next is not None and self._next.overlap.first < end:
            self._active.append(self._next)
            self._next = next(self._waiting, None)
        self._active = [held for held in self._active if held.overlap.end > first]
        return self._active


class Content:
    """The boxes of one target tensor, in order."""

    def __init__(self, tensor: TargetTensor) -> None:
        self.tensor = tensor
        self._itemsize = DTYPES[tensor.parameter.target_dtype].itemsize
        self._most_elements = sys.maxsize
        if tensor.parameter.cast is not None:
            self._most_elements = TILE_BYTES // DTYPES[tensor.parameter.dtype].itemsize  # what a buffer holds before the cast
        self._overlaps = Overlaps(tensor)

    def next(self, offset: int, most: int) -> Fill:
        """Return the longest box of at most `most` bytes that starts at a byte of the content. It has at least one element."""
        shape = self.tensor.shape
        box = next_tile(shape, offset // self._itemsize, min(most // self._itemsize, self._most_elements))
        copies = []
        for overlap, rank, entry in self._overlaps.between(*flat_span(shape, box)):
            common = box.intersect(overlap.target)
            if common is not None:
                source = shifted(common.relative_to(overlap.target.start), overlap.source.start)
                copies.append(Copy(rank, entry, source, common.relative_to(box.start)))
        return Fill(box, tuple(copies), self.tensor.parameter, box.size * self._itemsize)
