"""From a rank's plan to its file, in one pass and bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from reshard.box import Box
from reshard.checkpoint.dtypes import DTYPES
from reshard.gather import SMALL_BYTES, Gatherer, element_type
from reshard.tiles import flat_span, next_tile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from reshard.checkpoint import Span
    from reshard.checkpoint.inventory import TensorEntry
    from reshard.gather import SourceFiles
    from reshard.plan import RankPlan, TargetTensor
    from reshard.plan.geometry import Part

    _Copy = tuple[Part, int, TensorEntry]

# What is read, cut, hashed and written at a time: small enough to stay in a core's cache between these.
TILE_BYTES = 1 << 20
# With less room than this left in a tile it is handed on, rather than filled with a splinter.
_SPLINTER_BYTES = 64 << 10


def stream(plan: RankPlan, pieces: Iterable[bytes | Span], files: SourceFiles, emit: Callable[[memoryview], None]) -> None:
    """Produce a rank's file from its first byte to its last.

    Args:
        plan: of the rank.
        pieces: the file as its format lays it out: literal bytes, and spans of the plan's tensors.
        files: where the source's bytes come from.
        emit: called with each next part of the file; the memory is used again once it returns.

    Raises:
        DataError, StorageError: the source cannot be read.
    """
    output = _Tile(emit)
    gatherer = Gatherer(files, TILE_BYTES)
    content: _Content | None = None
    for piece in pieces:
        if isinstance(piece, bytes):
            output.literal(piece)
            continue
        tensor = plan.tensors[piece.tensor]
        if piece.length <= SMALL_BYTES and piece.offset == 0 and gatherer.read_small(tensor, output.room(piece.length)):
            output.filled += piece.length
            continue
        if content is None or content.tensor is not tensor:
            content = _Content(tensor, gatherer)
        done = 0
        while done < piece.length:
            room = output.room(min(_SPLINTER_BYTES, piece.length - done), piece.length - done)
            n = content.fill(piece.offset + done, room)
            output.filled += n
            done += n
    output.hand_on()


class _Tile:
    """The part of the file that is being filled."""

    def __init__(self, emit: Callable[[memoryview], None]) -> None:
        self._emit = emit
        self._memory = memoryview(bytearray(TILE_BYTES))
        self.filled = 0

    def room(self, least: int, most: int | None = None) -> memoryview:
        """Memory for the next `least` bytes, or for more, up to `most`."""
        if TILE_BYTES - self.filled < least:
            self.hand_on()
        return self._memory[self.filled : self.filled + (most or least)]

    def literal(self, content: bytes) -> None:
        """Append bytes of any length."""
        for at in range(0, len(content), TILE_BYTES):
            part = content[at : at + TILE_BYTES]
            self.room(len(part))[:] = part
            self.filled += len(part)

    def hand_on(self) -> None:
        """Give what there is to whoever writes it."""
        if self.filled:
            self._emit(self._memory[: self.filled])
            self.filled = 0


class _Content:
    """The bytes of one target tensor, in order."""

    def __init__(self, tensor: TargetTensor, gatherer: Gatherer) -> None:
        self.tensor = tensor
        self._gatherer = gatherer
        self._itemsize = DTYPES[tensor.parameter.dtype].itemsize
        self._element = element_type(tensor.parameter.dtype)
        copies = zip(tensor.geometry.parts, tensor.ranks, tensor.entries, strict=True)
        self._waiting: Iterator[_Copy] = iter(sorted(copies, key=lambda copy: copy[0].first))
        self._next = next(self._waiting, None)
        self._active: list[_Copy] = []

    def fill(self, offset: int, view: memoryview) -> int:
        """Fill the beginning of `view` with the bytes from `offset` on. Returns how many: at least one element."""
        shape = self.tensor.shape
        box = next_tile(shape, offset // self._itemsize, len(view) // self._itemsize)
        nbytes = box.size * self._itemsize
        elements = np.frombuffer(view[:nbytes], self._element).reshape(box.shape)
        first, end = flat_span(shape, box)
        for part, rank, entry in self._copies_between(first, end):
            common = box.intersect(part.target)
            if common is None:
                continue
            source = Box(
                tuple(c - t + s for c, t, s in zip(common.start, part.target.start, part.source.start, strict=True)), common.shape
            )
            window = (*common.relative_to(box.start).slices(), ...)  # with the dots a view of a scalar too, not its value
            self._gatherer.read(rank, entry, source, elements[window])  # type: ignore[index]  # numpy's stubs know no such tuple
        return nbytes

    def _copies_between(self, first: int, end: int) -> list[_Copy]:
        """Those that can have elements in a range of flat indexes; ranges are asked for in ascending order."""
        while self._next is not None and self._next[0].first < end:
            self._active.append(self._next)
            self._next = next(self._waiting, None)
        self._active = [copy for copy in self._active if copy[0].end > first]
        return self._active
