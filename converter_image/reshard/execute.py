"""From a rank's plan to its file, in one pass and bounded memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from reshard.box import Box
from reshard.checkpoint.dtypes import DTYPES
from reshard.gather import Gatherer, element_type
from reshard.tiles import flat_span, next_tile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from reshard.checkpoint import Span
    from reshard.gather import SourceFiles
    from reshard.plan.rank import Copy, RankPlan, TargetTensor

# What is read, cut, hashed and written at a time: small enough to stay in a core's cache between these.
TILE_BYTES = 1 << 20
# With less room than this left in a tile it is handed on, rather than filled with a splinter.
_SPLINTER_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class _Placed:
    """A copy with the flat indexes in the target slice between which it lies."""

    first: int
    end: int
    copy: Copy


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
    tile = memoryview(bytearray(TILE_BYTES))
    gatherer = Gatherer(files, TILE_BYTES)
    filled = 0
    content: _Content | None = None
    for piece in pieces:
        if isinstance(piece, bytes):
            for at in range(0, len(piece), TILE_BYTES):
                part = piece[at : at + TILE_BYTES]
                if len(part) > TILE_BYTES - filled:
                    emit(tile[:filled])
                    filled = 0
                tile[filled : filled + len(part)] = part
                filled += len(part)
            continue
        if content is None or content.tensor is not plan.tensors[piece.tensor]:
            content = _Content(plan.tensors[piece.tensor], gatherer)
        done = 0
        while done < piece.length:
            if TILE_BYTES - filled < min(_SPLINTER_BYTES, piece.length - done):
                emit(tile[:filled])
                filled = 0
            room = min(TILE_BYTES - filled, piece.length - done)
            n = content.fill(piece.offset + done, tile[filled : filled + room])
            filled += n
            done += n
    if filled:
        emit(tile[:filled])


class _Content:
    """The bytes of one target tensor, in order."""

    def __init__(self, tensor: TargetTensor, gatherer: Gatherer) -> None:
        self.tensor = tensor
        self._gatherer = gatherer
        self._itemsize = DTYPES[tensor.parameter.dtype].itemsize
        self._element = element_type(tensor.parameter.dtype)
        placed = [_Placed(*flat_span(tensor.box.shape, copy.target), copy) for copy in tensor.copies]
        self._waiting: Iterator[_Placed] = iter(sorted(placed, key=lambda p: p.first))
        self._next = next(self._waiting, None)
        self._active: list[_Placed] = []

    def fill(self, offset: int, view: memoryview) -> int:
        """Fill the beginning of `view` with the bytes from `offset` on. Returns how many: at least one element."""
        shape = self.tensor.box.shape
        box = next_tile(shape, offset // self._itemsize, len(view) // self._itemsize)
        nbytes = box.size * self._itemsize
        elements = np.frombuffer(view[:nbytes], self._element).reshape(box.shape)
        first, end = flat_span(shape, box)
        for copy in self._copies_between(first, end):
            common = box.intersect(copy.target)
            if common is None:
                continue
            source = Box(
                tuple(c - t + s for c, t, s in zip(common.start, copy.target.start, copy.source.start, strict=True)),
                common.shape,
            )
            window = (*common.relative_to(box.start).slices(), ...)  # with the dots a view of a scalar too, not its value
            self._gatherer.read(copy.rank, copy.entry, source, elements[window])  # type: ignore[index]  # numpy's stubs know no such tuple
        return nbytes

    def _copies_between(self, first: int, end: int) -> list[Copy]:
        """Those that can have elements in a range of flat indexes; ranges are asked for in ascending order."""
        while self._next is not None and self._next.first < end:
            self._active.append(self._next)
            self._next = next(self._waiting, None)
        self._active = [placed for placed in self._active if placed.end > first]
        return [placed.copy for placed in self._active]
