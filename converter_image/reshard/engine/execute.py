"""Create the file of a rank from its plan, in one pass and bounded memory."""

from __future__ import annotations

from itertools import chain, pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from zlib_ng import zlib_ng

from reshard.checkpoint.dtypes import DTYPES
from reshard.checkpoint.output import Checksum
from reshard.engine.cast import Losses, cast
from reshard.engine.gather import Gatherer, element_type, reads_of_box, span_bytes
from reshard.engine.overlap import emitting
from reshard.engine.small import Small, placed, reads_of_small
from reshard.layout.box import Box
from reshard.layout.tiles import flat_span, next_tile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from reshard.checkpoint.inventory import TensorEntry
    from reshard.checkpoint.output import Piece, Span
    from reshard.engine.gather import SourceFiles
    from reshard.engine.small import Placed
    from reshard.plan import Parameter, RankPlan, TargetTensor
    from reshard.plan.columns import Numbers
    from reshard.plan.geometry import Overlap
    from reshard.storage.ahead import Read

# Bytes that are read, cut, hashed and written at a time: few enough to stay in the CPU cache between these steps.
TILE_BYTES = 1 << 20
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
        summed: whether the next `Checksum` depends on these bytes.
    """

    box: Box
    copies: tuple[Copy, ...]
    parameter: Parameter
    nbytes: int
    summed: bool = False


# The next bytes of a file: a literal, their origin, or a checksum. None: the tile is full, and passed on.
Move = bytes | Small | Fill | Checksum | None


def moves(plan: RankPlan, pieces: Iterable[Piece]) -> Iterator[Move]:
    """Yield all steps that produce a rank's file, in file order. Does no I/O.

    Args:
        plan: plan of the rank.
        pieces: structure of the file in its format. Spans refer to the plan's tensors.
    """
    room = _Room()
    content: _Content | None = None
    for piece, following in pairwise(chain(pieces, [b""])):
        if isinstance(piece, bytes):
            for at in range(0, len(piece), TILE_BYTES):
                part = piece[at : at + TILE_BYTES]
                yield from room.take(len(part))
                yield part
            continue
        if isinstance(piece, Checksum):
            yield from room.take(piece.length)
            yield piece
            continue
        summed = isinstance(following, Checksum)
        number, at, left = piece.tensor, piece.offset, piece.length
        while left:
            length = min(left, int(plan.ends[number + 1] - plan.ends[number]) - at)  # of this tensor
            if plan.small[number] and at == 0 and length == plan.ends[number + 1] - plan.ends[number]:
                yield from room.make(length)
                end = _end_of_small(plan, number, min(room.left, left))
                length = int(plan.ends[end] - plan.ends[number])
                yield from room.take(length)
                yield Small(plan, number, end, length, summed)
                number, left = end, left - length
                continue
            if content is None or content.tensor is not plan.tensors[number]:
                content = _Content(plan.tensors[number])
            left -= length
            while length:
                yield from room.make(min(_SPLINTER_BYTES, length))
                fill = content.next(at, min(room.left, length))
                yield from room.take(fill.nbytes)
                yield fill._replace(summed=summed) if summed else fill
                at += fill.nbytes
                length -= fill.nbytes
            number, at = number + 1, 0
    if room.left < TILE_BYTES:
        yield None


def _end_of_small(plan: RankPlan, first: int, most: int) -> int:
    """Return the end of the longest sequence of small tensors from `first` that has at most `most` bytes."""
    end = int(np.searchsorted(plan.ends, plan.ends[first] + most, "right")) - 1
    large = np.flatnonzero(~plan.small[first:end])
    return first + int(large[0]) if len(large) else end


class _Room:
    """The free space in a tile."""

    def __init__(self) -> None:
        self.left = TILE_BYTES

    def make(self, nbytes: int) -> Iterator[None]:
        """Start the next tile if this tile does not have enough space."""
        if self.left < nbytes:
            self.left = TILE_BYTES
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


def reads_of_spans(plan: RankPlan, spans: Iterable[Span]) -> Iterator[Read]:
    """Yield the reads of the source for spans that are produced separately, in order. Does no I/O."""
    return reads(move for span in spans if span.length for move in moves(plan, [span]))


def carry_out(
    moves: Iterable[Move],
    files: SourceFiles,
    emit: Callable[[memoryview], None],
    losses: Losses | None = None,
    *,
    overlap: bool = False,
) -> None:
    """Produce the bytes of these moves, in order.

    Args:
        moves: moves to execute. The last move emits the rest of the buffer.
        files: files of the source.
        emit: callback with the next part of the file. The buffer is reused after it returns.
        losses: counters of the elements that casts change.
        overlap: whether a second thread calls `emit`, while this thread reads the next bytes.

    Raises:
        DataError, StorageError: the source cannot be read.
        Exception: `emit` failed. It is not called again.
    """
    producer = _Producer(Gatherer(files, TILE_BYTES), losses)
    with emitting(emit, TILE_BYTES, overlap=overlap) as pass_on:
        memory, filled = memoryview(bytearray(TILE_BYTES)), 0
        for move in moves:
            if move is not None:
                filled += producer.carry_out(move, memory, filled)
                continue
            if filled:
                producer.finish(memory)
                memory = pass_on(memory, filled)
            filled = 0


def fill(moves: Iterable[Move], gatherer: Gatherer, into: memoryview) -> None:
    """Produce the bytes of these moves in a buffer that is large enough for all of them.

    Raises:
        DataError, StorageError: the source cannot be read.
    """
    filled = 0
    producer = _Producer(gatherer)
    for move in moves:
        if move is not None:
            filled += producer.carry_out(move, into, filled)
    producer.finish(into)


class _Producer:
    """Carries out the moves of one buffer after another, and calculates the CRC32 that a checksum depends on."""

    def __init__(self, gatherer: Gatherer, losses: Losses | None = None) -> None:
        self._gatherer = gatherer
        self._losses = Losses() if losses is None else losses
        self._uncast = memoryview(b"")
        self._crc = 0
        self._small: list[tuple[int, Small]] = []
        self._sums: list[tuple[int, Checksum | int]] = []  # places of checksums, and ranges that they depend on

    def carry_out(self, move: bytes | Small | Fill | Checksum, into: memoryview, at: int) -> int:
        """Write the bytes of a move to a place in a buffer, or do so in `finish`. Return their number."""
        if isinstance(move, Checksum):
            self._sums.append((at, move))
            return move.length
        if isinstance(move, bytes):
            into[at : at + len(move)] = move
            return len(move)
        if isinstance(move, Small):
            self._small.append((at, move))
        else:
            self._fill(move, into[at : at + move.nbytes])
        if move.summed:
            self._sums.append((at, move.nbytes))
        return move.nbytes

    def finish(self, into: memoryview) -> None:
        """Write what is left of the moves of a buffer."""
        for tensors in placed(self._small, TILE_BYTES):
            if tensors.targets is None:
                self._gatherer.read_small(tensors, into)
            else:
                self._cast_small(tensors, tensors.targets, into)
        for at, found in self._sums:
            if isinstance(found, Checksum):
                into[at : at + found.length] = found.render(self._crc)
                self._crc = 0
            else:
                self._crc = zlib_ng.crc32(into[at : at + found], self._crc)
        self._small, self._sums = [], []

    def _fill(self, move: Fill, view: memoryview) -> None:
        parameter = move.parameter
        if parameter.cast is None:
            self._gather(move, view)
            return
        content = self._room_before_cast(move.box.size * DTYPES[parameter.dtype].itemsize)
        self._gather(move, content)
        self._losses.add(parameter.name, cast(content, parameter.dtype, view, parameter.cast))

    def _cast_small(self, tensors: Placed, targets: Numbers, into: memoryview) -> None:
        content = self._room_before_cast(TILE_BYTES)
        self._gatherer.read_small(tensors, content)
        for number, place, target in zip(tensors.numbers.tolist(), tensors.places.tolist(), targets.tolist(), strict=True):
            parameter, group = tensors.plan.parameters[number], tensors.plan.groups[tensors.plan.group_of[number]]
            assert parameter.cast is not None  # noqa: S101 - otherwise there are no targets
            before, after = content[place : place + group.nbytes], into[target : target + group.written_nbytes]
            self._losses.add(parameter.name, cast(before, parameter.dtype, after, parameter.cast))

    def _gather(self, move: Fill, into: memoryview) -> None:
        """Read the elements of a box, in the source's type. Padding consists of zeros."""
        elements = np.frombuffer(into, element_type(move.parameter.dtype)).reshape(move.box.shape)
        if sum(copy.here.size for copy in move.copies) < move.box.size:
            elements[...] = 0
        for rank, entry, source, here in move.copies:
            window = (*here.slices(), ...)  # the ellipsis returns a view of a scalar too, instead of its value
            self._gatherer.read(rank, entry, source, elements[window])  # type: ignore[index]  # numpy's stubs do not support this tuple

    def _room_before_cast(self, nbytes: int) -> memoryview:
        """Return a buffer for elements in the source's type. It is reused."""
        if not self._uncast:
            self._uncast = memoryview(bytearray(TILE_BYTES))
        return self._uncast[:nbytes]


class _Held(NamedTuple):
    """The part of a target tensor that a source rank holds."""

    overlap: Overlap
    rank: int
    entry: TensorEntry


class _Content:
    """The boxes of one target tensor, in order."""

    def __init__(self, tensor: TargetTensor) -> None:
        self.tensor = tensor
        self._itemsize = DTYPES[tensor.parameter.target_dtype].itemsize
        self._most_elements = TILE_BYTES // DTYPES[tensor.parameter.dtype].itemsize  # what a buffer holds before a cast
        held = (_Held(*each) for each in zip(tensor.geometry.overlaps, tensor.ranks, tensor.entries, strict=True))
        self._waiting = iter(sorted(held, key=lambda each: each.overlap.first))
        self._next = next(self._waiting, None)
        self._active: list[_Held] = []

    def next(self, offset: int, most: int) -> Fill:
        """Return the longest box of at most `most` bytes that starts at a byte of the content. It has at least one element."""
        shape = self.tensor.shape
        box = next_tile(shape, offset // self._itemsize, min(most // self._itemsize, self._most_elements))
        first, end = flat_span(shape, box)
        copies = []
        for overlap, rank, entry in self._held_between(first, end):
            common = box.intersect(overlap.target)
            if common is not None:
                start = (c - t + s for c, t, s in zip(common.start, overlap.target.start, overlap.source.start, strict=True))
                copies.append(Copy(rank, entry, Box(tuple(start), common.shape), common.relative_to(box.start)))
        return Fill(box, tuple(copies), self.tensor.parameter, box.size * self._itemsize)

    def _held_between(self, first: int, end: int) -> list[_Held]:
        """Return the parts that may have elements in a range of flat indexes. Ranges must be requested in ascending order."""
        while self._next is not None and self._next.overlap.first < end:
            self._active.append(self._next)
            self._next = next(self._waiting, None)
        self._active = [held for held in self._active if held.overlap.end > first]
        return self._active
