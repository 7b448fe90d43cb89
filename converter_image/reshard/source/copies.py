"""Read copies of one parameter from several files, to find where they differ."""

from __future__ import annotations

from array import array
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import xxhash

from reshard.checkpoint.dtypes import DTYPES
from reshard.layout.box import Box, contiguous_runs, shifted
from reshard.layout.tiles import next_tile
from reshard.parallel import parallel
from reshard.storage.ahead import files_at_once, prefetched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from reshard.checkpoint.inventory import TensorEntry
    from reshard.storage.protocol import Reader, ReadStore

_TILE_BYTES = 1 << 20
# Number of bytes of each file that are prefetched over a network.
_FILE_AHEAD = 8 << 20


class Piece(NamedTuple):
    """A box of a parameter in one file.

    Attributes:
        name: name of the parameter in the files.
        box: box of the elements in the whole tensor. Files are compared by pieces with the same name and box.
        entry: entry of the parameter in this file.
        local: box of the same elements in this file's slice.
    """

    name: str
    box: Box
    entry: TensorEntry
    local: Box

    @property
    def nbytes(self) -> int:
        """Length of the elements in bytes."""
        return self.box.size * DTYPES[self.entry.dtype].itemsize

    def tile(self, number: int) -> Piece:
        """Return one of the tiles of at most 1 MiB that the piece consists of, in row-major order."""
        found = next(tile for n, tile in enumerate(self._tiles()) if n == number)
        return Piece(self.name, shifted(found, self.box.start), self.entry, shifted(found, self.local.start))

    def tiles(self) -> Iterator[Box]:
        """Yield these tiles as boxes in this file's slice."""
        return (shifted(tile, self.local.start) for tile in self._tiles())

    def _tiles(self) -> Iterator[Box]:
        position, most = 0, _TILE_BYTES // DTYPES[self.entry.dtype].itemsize
        while position < self.box.size:
            tile = next_tile(self.box.shape, position, most)
            yield tile
            position += tile.size

    def element(self, index: tuple[int, ...]) -> Piece:
        """Return one element of the piece, by its index in the whole tensor."""
        one = Box(index, (1,) * len(index))
        return Piece(self.name, one, self.entry, shifted(one.relative_to(self.box.start), self.local.start))


class Difference(NamedTuple):
    """A tile that two files hold with different content.

    Attributes:
        files: numbers of the two files. The first is the lowest one that has the tile.
        pieces: the tile in these files.
    """

    files: tuple[int, int]
    pieces: tuple[Piece, Piece]

    @property
    def name(self) -> str:
        """Name of the parameter in the files."""
        return self.pieces[0].name


@dataclass(frozen=True, slots=True)
class FileSet:
    """The files whose pieces are compared.

    Attributes:
        store: store of the files.
        paths: paths in the store, by file number.
        workers: number of files read at a time.
        advance: callback with the number of bytes read since the last call.
    """

    store: ReadStore
    paths: Mapping[int, str]
    workers: int
    advance: Callable[[int], None] = lambda _: None

    def compare(self, pieces: Callable[[int], Iterable[Piece]], files: Sequence[int]) -> tuple[Difference, ...]:
        """Read pieces of files, and compare each with the first file that has it.

        For each piece that differs, only the first differing tile is returned.

        Args:
            pieces: function that returns the pieces to read from a file.
            files: file numbers, ascending.
        """
        first: dict[tuple[str, Box], tuple[int, Piece, array[int]]] = {}
        differences = []
        at_once = files_at_once(self.workers, remote=self.store.remote)
        digested = parallel(lambda number: self._digests(number, pieces(number)), files, at_once=at_once)
        for number, found in zip(files, digested, strict=True):
            for piece, digests in found:
                other, base, expected = first.setdefault((piece.name, piece.box), (number, piece, digests))
                if digests != expected:
                    at = next(i for i, (a, b) in enumerate(zip(digests, expected, strict=True)) if a != b)
                    differences.append(Difference((other, number), (base.tile(at), piece.tile(at))))
        return tuple(differences)

    def _digests(self, number: int, pieces: Iterable[Piece]) -> list[tuple[Piece, array[int]]]:
        """Return a digest of each tile of the pieces."""
        ordered = sorted(pieces, key=lambda piece: (piece.entry.extents[0], piece.local.start))
        tiles = ((piece, tile) for piece in ordered for tile in piece.tiles())
        reads = (read for piece, tile in tiles for read in _reads(piece.entry, tile))
        path, remote, found = self.paths[number], self.store.remote, []
        with closing(self.store.open(path)) as reader, prefetched(reader, reads, _FILE_AHEAD, remote=remote) as ahead:
            for piece in ordered:
                digests = (_digest(ahead, piece.entry, tile) for tile in piece.tiles())
                found.append((piece, array("Q", digests)))
                self.advance(piece.nbytes)
        return found

    def first_element(self, differences: Iterable[Difference]) -> tuple[int, ...]:
        """Return the index, in the whole tensor, of the first element that differs according to differences of one parameter."""
        found: tuple[int, ...] | None = None
        for difference in sorted(differences, key=lambda d: d.pieces[0].box.start):
            box = difference.pieces[0].box
            if found is not None and box.start > found:
                break
            one, other = (self.content(number, piece) for number, piece in zip(*difference, strict=True))
            at = int(np.flatnonzero((one != other).any(axis=1))[0])
            inside = np.unravel_index(at, box.shape) if box.shape else ()
            index = tuple(a + int(i) for a, i in zip(box.start, inside, strict=True))
            found = index if found is None else min(found, index)
        assert found is not None  # noqa: S101 - a parameter with differences has at least one
        return found

    def content(self, number: int, piece: Piece) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
        """Return the elements of a piece in row-major order, one row of bytes per element."""
        with closing(self.store.open(self.paths[number])) as reader:
            content = b"".join(reader.read(offset, length) for offset, length in _reads(piece.entry, piece.local))
        return np.frombuffer(content, np.uint8).reshape(piece.box.size, -1)


def _reads(entry: TensorEntry, box: Box) -> Iterator[tuple[int, int]]:
    """Yield the ranges of a file that hold a box of a slice, as (offset, length) in bytes, in row-major order."""
    itemsize = DTYPES[entry.dtype].itemsize
    length, starts = contiguous_runs(entry.shape, box)
    for start in starts:
        yield from entry.located(start * itemsize, length * itemsize)


def _digest(reader: Reader, entry: TensorEntry, box: Box) -> int:
    digest = xxhash.xxh3_64()
    for offset, length in _reads(entry, box):
        digest.update(reader.read(offset, length))
    return digest.intdigest()
