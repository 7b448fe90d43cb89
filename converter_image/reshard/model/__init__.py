"""The model of a checkpoint in any format: named tensors, each divided into boxes that are stored in files."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from reshard.errors import DataError
from reshard.model.tiling import Boxes, Divisions, Grid, Tiling, divide

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from reshard.model.tiling import Numbers

__all__ = [
    "Boxes",
    "Checkpoint",
    "Divisions",
    "Grid",
    "ObjectMeta",
    "Place",
    "Placement",
    "Placements",
    "Shards",
    "TensorMeta",
    "Tiling",
    "divide",
    "gather_shards",
]


@dataclass(frozen=True, slots=True)
class Place:
    """A range of bytes in one file.

    Attributes:
        file: position of the file's path in `Checkpoint.files`.
        offset: first byte.
        length: number of bytes. In a checkpoint that a `SourceFormat` has read, they are the row-major content of the tile. The
            metadata of some formats locates an archive around the content first.
    """

    file: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """The tiles of a tensor, and the files that hold copies of each. Large models have few distinct ones, see `Placements`.

    Attributes:
        tiling: tiles of the tensor. Every element is in exactly one.
        first: positions in `files`, one more than there are tiles: the copies of tile `t` are `first[t]` to `first[t + 1]`. Each
            tile has at least one copy.
        files: position of each copy's file path in `Checkpoint.files`.
    """

    tiling: Tiling
    first: Numbers
    files: Numbers

    def files_of(self, tile: int) -> tuple[int, ...]:
        """Return the numbers of the files that hold copies of a tile, ascending."""
        return tuple(sorted(set(self.files[self.first[tile] : self.first[tile + 1]].tolist())))

    def copy_in(self, file: int, tile: int) -> int:
        """Return the position of the first copy of a tile in a file, which holds one."""
        first = int(self.first[tile])
        files: list[int] = self.files[first : self.first[tile + 1]].tolist()
        return first + files.index(file)


@dataclass(frozen=True, slots=True, eq=False)
class Shards:
    """The tiles of one tensor, and the location of each copy.

    Attributes:
        placement: tiles, and the file of each copy.
        offsets: offset of each copy's first byte in the file.
        lengths: number of bytes of each copy.
    """

    placement: Placement
    offsets: Numbers
    lengths: Numbers

    @property
    def tiling(self) -> Tiling:
        """See `Placement.tiling`."""
        return self.placement.tiling

    @property
    def first(self) -> Numbers:
        """See `Placement.first`."""
        return self.placement.first

    @property
    def files(self) -> Numbers:
        """See `Placement.files`."""
        return self.placement.files

    def places(self, tile: int) -> Iterator[Place]:
        """Yield the locations of the copies of a tile."""
        for i in range(int(self.first[tile]), int(self.first[tile + 1])):
            yield Place(int(self.files[i]), int(self.offsets[i]), int(self.lengths[i]))


class Placements:
    """Distinct placements. Tensors with equal placements get one object, so that it can be compared by identity."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, bytes, bytes], Placement] = {}

    def share(self, shards: Shards) -> Shards:
        """Return shards that use the first known placement with the same files. Equal tilings must be one object."""
        placement = shards.placement
        key = (id(placement.tiling), placement.first.tobytes(), placement.files.tobytes())
        return replace(shards, placement=self._known.setdefault(key, placement))


@dataclass(frozen=True, slots=True)
class TensorMeta:
    """One tensor.

    Attributes:
        name: name in the checkpoint, in any characters.
        dtype: type of the elements, by its name in `reshard.checkpoint.dtypes`.
        shape: lengths of the whole tensor, in elements.
        shards: tiles of the tensor. A tensor without elements has none.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    shards: Shards


@dataclass(frozen=True, slots=True)
class ObjectMeta:
    """A value that is not a tensor, such as an optimizer's options. It is copied as bytes and never opened.

    Attributes:
        name: name in the checkpoint.
        places: locations of its copies. Ranks may have saved different values under one name.
    """

    name: str
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The content of a checkpoint.

    Attributes:
        files: paths of the files with content, relative to the checkpoint.
        tensors: tensors, in the order of the metadata.
        objects: other values.
        documents: paths of the files with metadata, relative to the checkpoint.
        version: version of the metadata, if it has one.
        keys: for each name the keys and positions that lead to the value in nested dicts and lists, as far as the metadata states
            them and they are not the name itself.
        notes: messages for the user about what the metadata does not state.
    """

    files: tuple[str, ...]
    tensors: tuple[TensorMeta, ...]
    objects: tuple[ObjectMeta, ...] = ()
    version: str | None = None
    documents: tuple[str, ...] = ()
    keys: Mapping[str, tuple[str | int, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def gather_shards(tiling: Tiling, tiles: Numbers, places: tuple[Numbers, Numbers, Numbers], name: str) -> Shards:
    """Return the shards of a tensor from its boxes, in any order.

    Args:
        tiling: tiles of the tensor.
        tiles: number of each box's tile. Negative: the box has no elements.
        places: file, first byte and number of bytes of each box.
        name: name of the tensor, for messages.

    Raises:
        DataError: no file holds a tile.
    """
    order = np.argsort(tiles, kind="stable")
    order = order[np.searchsorted(tiles[order], 0) :]
    first = np.searchsorted(tiles[order], np.arange(len(tiling) + 1))
    if len(tiling) and not np.diff(first).all():
        fix = "restore the checkpoint, or exclude the tensor with --exclude (spec.parameters.exclude)"
        raise DataError("ShardMissing", "a shard has no file", where=f"tensor {name}", fix=fix)
    files, offsets, lengths = (numbers[order] for numbers in places)
    return Shards(Placement(tiling, first, files), offsets, lengths)
