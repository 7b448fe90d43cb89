"""Create the file of a rank from its plan, in one pass and bounded memory."""

from __future__ import annotations

from itertools import chain, pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from zlib_ng import zlib_ng

from reshard.checkpoint.dtypes import DTYPES
from reshard.checkpoint.output import Checksum
from reshard.engine.cast import Losses, cast
from reshard.engine.gather import SMALL_BYTES, Gatherer, element_type, reads_of_box, reads_of_small, small_runs
from reshard.engine.overlap import emitting
from reshard.layout.box import Box
from reshard.layout.tiles import flat_span, next_tile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from reshard.checkpoint.inventory import TensorEntry
    from reshard.checkpoint.output import Piece, Span
    from reshard.engine.gather import Runs, SourceFiles
    from reshard.plan import Parameter, RankPlan, TargetTensor
    from reshard.plan.geometry import Overlap
    from reshard.storage.ahead import Read

# Bytes that are read, cut, hashed and written at a time: few enough to stay in the CPU cache between these steps.
TILE_BYTES = 1 << 20
# A tile with less room than this is passed on, rather than filled with a small fragment.
_SPLINTER_BYTES = 64 << 10


class Small(NamedTuple):
    """A small tensor, as a whole. For `nbytes` and `summed`, see `Fill`."""

    tensor: TargetTensor
    runs: Runs
    nbytes: int
    summed: bool = False


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
        tensor, summed = plan.tensors[piece.tensor], isinstance(following, Checksum)
        small = piece.length <= SMALL_BYTES and piece.offset == 0
        if small and (runs := small_runs(tensor)) is not None:
            yield from room.take(piece.length)
            yield Small(tensor, runs, piece.length, summed)
            continue
        if content is None or content.tensor is not tensor:
            content = _Content(tensor)
        done = 0
        while done < piece.length:
            left = piece.length - done
            yield from room.make(min(_SPLINTER_BYTES, left))
            fill = content.next(piece.offset + done, min(room.left, left))
            yield from room.take(fill.nbytes)
            yield fill._replace(summed=summed) if summed else fill
            done += fill.nbytes
    if room.left < TILE_BYTES:
        yield None


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
    for move in moves:
        if isinstance(move, Small):
            yield from reads_of_small(move.tensor, move.runs)
        elif isinstance(move, Fill):
            for copy in move.copies:
                yield from reads_of_box(copy.rank, copy.entry, copy.source, TILE_BYTES)


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
                filled += producer.carry_out(move, memory[filled:])
                continue
            if filled:
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
            filled += producer.carry_out(move, into[filled:])


class _Producer:
    """Carries out moves one after another, and calculates the CRC32 that a checksum depends on."""

    def __init__(self, gatherer: Gatherer, losses: Losses | None = None) -> None:
        self._gatherer = gatherer
        self._losses = Losses() if losses is None else losses
        self._uncast = memoryview(b"")
        self._crc = 0

    def carry_out(self, move: bytes | Small | Fill | Checksum, into: memoryview) -> int:
        """Write the bytes of a move to the start of a buffer. Return their number."""
        if isinstance(move, Checksum):
            into[: move.length] = move.render(self._crc)
            self._crc = 0
            return move.length
        if isinstance(move, bytes):
            into[: len(move)] = move
            return len(move)
        view = into[: move.nbytes]
        parameter = move.tensor.parameter if isinstance(move, Small) else move.parameter
        if parameter.cast is None:
            self._gather(move, view)
        else:
            count = move.nbytes // DTYPES[parameter.cast].itemsize
            content = self._room_before_cast(count * DTYPES[parameter.dtype].itemsize)
            self._gather(move, content)
            self._losses.add(parameter.name, cast(content, parameter.dtype, view, parameter.cast))
        if move.summed:
            self._crc = zlib_ng.crc32(view, self._crc)
        return move.nbytes

    def _gather(self, move: Small | Fill, into: memoryview) -> None:
        """Read the elements of a move, in the source's type. Padding consists of zeros."""
        if isinstance(move, Small):
            if move.tensor.geometry.padding:
                into[:] = bytes(len(into))
            self._gatherer.read_small(move.tensor, move.runs, into)
            return
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
