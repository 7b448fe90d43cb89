"""Carry out moves: create the file of a rank in one pass and bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from zlib_ng import zlib_ng

from reshard.checkpoint.dtypes import DTYPES
from reshard.checkpoint.output import Checksum
from reshard.engine.cast import Losses, cast
from reshard.engine.gather import Gatherer, element_type
from reshard.engine.memory import BUFFER_BYTES, PART_BYTES, TILE_BYTES
from reshard.engine.overlap import emitting, no_room
from reshard.engine.small import Small, placed
from reshard.storage.buffers import ALIGNMENT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reshard.engine.file_fingerprints import FileFingerprints
    from reshard.engine.gather import SourceFiles
    from reshard.engine.moves import Fill, Move
    from reshard.engine.overlap import Emit, Output, Room
    from reshard.engine.small import Placed
    from reshard.plan.columns import Numbers


def carry_out(
    moves: Iterable[Move],
    files: SourceFiles,
    emit: Emit,
    losses: Losses | None = None,
    fingerprints: FileFingerprints | None = None,
    *,
    threads: int = 0,
    room: Room = no_room,
) -> None:
    """Produce the bytes of these moves, in order.

    Args:
        moves: moves to execute.
        files: files of the source.
        emit: callback with the next part of the file, see `emitting`.
        losses: counters of the elements that casts change.
        fingerprints: fingerprints of the tensors, to which these moves are added.
        threads: number of threads that write, see `emitting`.
        room: function that returns memory of the writer, see `emitting`.

    Raises:
        DataError, StorageError: the source cannot be read.
        Exception: `emit` failed. It is not called again.
    """
    with emitting(emit, BUFFER_BYTES, threads, room) as output:
        tiles = Tiles(Gatherer(files, TILE_BYTES), output, PART_BYTES, losses, fingerprints)
        for move in moves:
            tiles.carry_out(move)
        tiles.finish()


class Tiles:
    """Produces a file in the buffers of an output, which contain one or more tiles each.

    The parts that are emitted end at a multiple of `ALIGNMENT` of the file, as writes past the page cache require. What is
    left of a tile precedes the next one.

    Args:
        gatherer: gatherer of the source's elements.
        output: output of the file. Its buffers have room for `ALIGNMENT` more than the tiles.
        tile_bytes: maximum length of a tile.
        losses: counters of the elements that casts change.
        fingerprints: fingerprints of the tensors of the file.
    """

    def __init__(
        self,
        gatherer: Gatherer,
        output: Output,
        tile_bytes: int,
        losses: Losses | None = None,
        fingerprints: FileFingerprints | None = None,
    ) -> None:
        self._producer = Producer(gatherer, losses, fingerprints)
        self._output, self._tile_bytes = output, tile_bytes
        self._tile = output.buffer  # it continues the buffer from `_start`
        self._start = self._filled = self._emitted = 0

    def carry_out(self, move: Move) -> None:
        """Carry out the next move, or emit the tile."""
        if move is not None:
            self._filled += self._producer.carry_out(move, self._tile, self._filled)
            return
        self.settle()
        end = self._start + self._filled
        whole = end - end % ALIGNMENT
        if whole > self._emitted:
            self._output.emit(self._emitted, whole)
        self._emitted, self._start, self._filled = whole, end, 0
        if end + self._tile_bytes > len(self._output.buffer):
            rest = self._output.buffer[whole:end]
            self._output.exchange()  # no other thread fills buffers, so the rest is unchanged
            self._output.buffer[: len(rest)] = rest
            self._emitted, self._start = 0, len(rest)
        self._tile = self._output.buffer[self._start :]

    def settle(self) -> None:
        """Read what earlier moves have left to be read."""
        self._producer.finish(self._tile)

    def finish(self) -> None:
        """Emit the rest of the file."""
        self.settle()
        if self._start + self._filled > self._emitted:
            self._output.emit(self._emitted, self._start + self._filled)


def fill(moves: Iterable[Move], gatherer: Gatherer, into: memoryview) -> None:
    """Produce the bytes of these moves in a buffer that is large enough for all of them.

    Raises:
        DataError, StorageError: the source cannot be read.
    """
    filled = 0
    producer = Producer(gatherer)
    for move in moves:
        if move is not None:
            filled += producer.carry_out(move, into, filled)
    producer.finish(into)


class Producer:
    """Carries out the moves of one buffer after another, and calculates the fingerprints, and the CRC32 of a checksum."""

    def __init__(self, gatherer: Gatherer, losses: Losses | None = None, fingerprints: FileFingerprints | None = None) -> None:
        self._gatherer, self._fingerprints = gatherer, fingerprints
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
            view = into[at : at + move.nbytes]
            self._fill(move, view)
            if self._fingerprints is not None:
                self._fingerprints.add(move.number, move.box, view)
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
        if self._fingerprints is not None and self._small:
            self._fingerprints.add_small(self._small, into)
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
