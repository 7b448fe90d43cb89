"""Determine the parts of a rank's file that a server can copy by itself, without data passing through this process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from reshard.engine.gather import reads_of_box
from reshard.engine.memory import TILE_BYTES
from reshard.engine.moves import Fill, length_of
from reshard.layout.box import Box
from reshard.layout.tiles import flat_span

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from reshard.engine.moves import Copy, Move
    from reshard.storage.protocol import PartLimits


@dataclass(frozen=True, slots=True)
class UploadPart:
    """Consecutive moves that form one part of an upload.

    Attributes:
        first: position of its first move.
        end: position after its last move.
        nbytes: length of the part in bytes.
        rank: source rank whose file contains exactly these bytes contiguously. None means that they are read and sent.
        offset: offset of the bytes in that file.
    """

    first: int
    end: int
    nbytes: int
    rank: int | None = None
    offset: int = 0


def split(moves: Iterable[Move]) -> Iterator[Move]:
    """Yield the same moves, with a separate move for each copy of a box whose copies are contiguous in it."""
    for move in moves:
        if isinstance(move, Fill) and len(move.copies) > 1 and (spans := _in_a_row(move)) is not None:
            itemsize = move.nbytes // move.box.size
            for copy in spans:
                start = tuple(a + b for a, b in zip(move.box.start, copy.here.start, strict=True))
                alone = copy._replace(here=Box((0,) * len(start), copy.here.shape))
                box = Box(start, copy.here.shape)
                yield move._replace(box=box, copies=(alone,), nbytes=copy.here.size * itemsize)
        else:
            yield move


def _in_a_row(move: Fill) -> list[Copy] | None:
    """Return the copies of a box in the order of its elements, or None if they are not contiguous or do not fill it."""
    copies = sorted(move.copies, key=lambda copy: flat_span(move.box.shape, copy.here)[0])
    at = 0
    for copy in copies:
        if flat_span(move.box.shape, copy.here) != (at, at + copy.here.size):
            return None
        at += copy.here.size
    return copies if at == move.box.size else None


def parts(moves: Sequence[Move], limits: PartLimits) -> list[UploadPart] | None:
    """Divide a file into parts that are sent or copied. Return None if the file would have too many parts.

    Bytes between runs of the source that are too short for a part are joined with the start of the next run.

    Args:
        moves: moves that produce the file.
        limits: limits of the target store.
    """
    found: list[UploadPart] = []
    first, own = 0, 0
    for run in _runs(moves):
        at = run.first
        copied = 0
        if run.rank is not None and run.nbytes >= limits.smallest:
            copied = run.nbytes
            while 0 < own < limits.smallest and at < run.end:
                own += length_of(moves[at])
                copied -= length_of(moves[at])
                at += 1
        if copied >= limits.smallest:
            if own:
                found.append(UploadPart(first, at, own))
            found.append(UploadPart(at, run.end, copied, run.rank, run.offset + run.nbytes - copied))
            first, own = run.end, 0
            continue
        for number in range(at, run.end):
            own += length_of(moves[number])
            if own >= limits.smallest:
                found.append(UploadPart(first, number + 1, own))
                first, own = number + 1, 0
    if own:
        found.append(UploadPart(first, len(moves), own))
    elif found:
        found[-1] = replace(found[-1], end=len(moves))  # the moves after it have no bytes
    count = sum(1 if part.rank is None else limits.parts_of_copy(part.nbytes) for part in found)
    return found if count <= limits.most else None


def _runs(moves: Sequence[Move]) -> Iterator[UploadPart]:
    """Yield joined moves whose bytes are contiguous in one source file, or are in none."""
    open_: UploadPart | None = None
    for number, move in enumerate(moves):
        rank, offset = _source(move)
        nbytes = length_of(move)
        follows = open_ is not None and (
            not nbytes
            or (rank is None and open_.rank is None)
            or (rank is not None and rank == open_.rank and offset == open_.offset + open_.nbytes)
        )
        if open_ is not None and follows:
            open_ = UploadPart(open_.first, number + 1, open_.nbytes + nbytes, open_.rank, open_.offset)
            continue
        if open_ is not None:
            yield open_
        open_ = UploadPart(number, number + 1, nbytes, rank, offset)
    if open_ is not None:
        yield open_


def _source(move: Move) -> tuple[int | None, int]:
    """Return the source rank and offset of a move's bytes, if the source file contains them contiguously."""
    if not isinstance(move, Fill) or len(move.copies) != 1 or move.parameter.cast is not None:
        return None, 0
    (copy,) = move.copies
    if copy.source.size != move.box.size:
        return None, 0
    ((_, offset, length), *more) = islice(reads_of_box(copy.rank, copy.entry, copy.source, TILE_BYTES), 2)
    return (copy.rank, offset) if not more and length == move.nbytes else (None, 0)
