"""PyTorch's distributed checkpoints (DCP) as a source: `.metadata`, and the content of tensors in the files that it lists."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import accumulate, pairwise, product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from reshard.checkpoint.dtypes import DTYPES
from reshard.checkpoint.safetensors import read_header
from reshard.errors import DataError, MissingInputError
from reshard.formats.torch.archive import read_archive
from reshard.formats.torch.dcp import read_documents, read_metadata
from reshard.formats.torch.items import Item, Templates, locate_items, reads
from reshard.formats.torch.names import complete_metadata
from reshard.formats.torch.sharded import saved_offsets
from reshard.formats.torch.strided import Budget, Content, split
from reshard.model import Checkpoint, Grid, Shards, TensorMeta, divide, gather_shards
from reshard.parallel import parallel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from reshard.checkpoint.inventory import RangeReader, TensorEntry
    from reshard.formats.protocol import Folder
    from reshard.model import Tiling
    from reshard.model.tiling import Numbers


def read(folder: Folder, workers: int = 1, wanted: Callable[[str], bool] | None = None) -> Checkpoint:
    """Return the tensors and objects of a checkpoint, see `SourceFormat.read`. The bytes of an object are an archive."""
    documents = complete_metadata(folder.names, folder.url)
    if not documents:
        raise MissingInputError(
            "FileMissing",
            ".metadata does not exist, which PyTorch writes last, so the checkpoint is incomplete",
            where=folder.url,
            fix="wait until the checkpoint is saved, or use the one of another step",
        )
    found = read_metadata(read_documents(folder, documents), wanted=wanted)
    return find_contents(replace(found, documents=tuple(documents)), folder, workers)


def find_contents(found: Checkpoint, folder: Folder, workers: int = 1, entries: Sequence[str] = ()) -> Checkpoint:
    """Return a checkpoint with the content of each tensor instead of the archive around it.

    Args:
        found: what `read_metadata` returned.
        folder: files of the checkpoint.
        workers: number of files that are read at a time.
        entries: names of entries of safetensors files, by number, see `read_metadata`.

    Raises:
        DataError: a file is damaged or too short, or contradicts the metadata; the elements of a tensor are in too many pieces.
        MissingInputError: a file does not exist.
    """
    check_files(found, folder.sizes(found.files), folder.url)
    rows = _Rows(found, entries)
    templates = Templates()

    def find(file: int) -> None:
        with folder.open(found.files[file], rows.reads(file, templates)) as reader:
            rows.find_in(file, reader, templates)

    for _ in parallel(find, rows.files, at_once=workers):
        pass
    return replace(found, tensors=tuple(rows.tensors()))


class _Rows:
    """The shards of all tensors with elements as one table, by their place in files."""

    def __init__(self, found: Checkpoint, entries: Sequence[str]) -> None:
        self._found, self._entries = found.tensors, entries
        shards = [tensor.shards for tensor in found.tensors]
        self._first = list(accumulate((len(each.files) for each in shards), initial=0))
        self._tensor = np.repeat(np.arange(len(shards)), np.diff(self._first))
        self._tile = _joined([np.repeat(np.arange(len(each.tiling)), np.diff(each.first)) for each in shards])
        self._offsets = _joined([each.offsets for each in shards])
        self._lengths = _joined([each.lengths for each in shards])
        of_file = _joined([each.files for each in shards])
        self._order = np.lexsort((self._offsets, of_file))
        files = of_file[self._order]
        self._bounds = np.searchsorted(files, np.arange(len(found.files) + 1))
        self.files = [file for file in range(len(found.files)) if self._bounds[file] < self._bounds[file + 1]]
        self._strided: dict[int, Content] = {}
        self._budget = Budget()
        self._shapes: dict[int, list[tuple[int, ...]]] = {}  # by tiling, which tensors share

    def find_in(self, file: int, reader: RangeReader, templates: Templates) -> None:
        """Replace the archives in one file by their content."""
        rows = self._of_file(file)
        start = int(self._offsets[rows[0]])
        if self._have_names(rows):
            self._find_by_name(rows.tolist(), reader)
            return
        if (self._offsets[rows] == start).all() and reader.read(start, min(9, reader.size - start))[8:] == b"{":
            self._find_by_name(rows.tolist(), _Rest(reader, start))
            self._offsets[rows] += start
            return
        for row, content in zip(rows.tolist(), locate_items(reader, self._items(rows), templates), strict=True):
            self._set(row, content)

    def reads(self, file: int, templates: Templates) -> Iterator[tuple[int, int]]:
        """Yield probable reads of `find_in` as (offset, length), in order."""
        rows = self._of_file(file)
        return reads(self._items(rows[:0] if self._have_names(rows) else rows), templates)

    def _of_file(self, file: int) -> Numbers:
        return self._order[self._bounds[file] : self._bounds[file + 1]]

    def _have_names(self, rows: Numbers) -> bool:
        return bool((self._lengths[rows] < 0).all())

    def _items(self, rows: Numbers) -> Iterator[Item]:
        columns = (self._tensor, self._tile, self._offsets, self._lengths)
        for at in range(0, len(rows), 1 << 12):
            block = rows[at : at + (1 << 12)]
            for number, tile, start, length in zip(*(column[block].tolist() for column in columns), strict=True):
                tensor = self._found[number]
                yield Item(tensor.name, tensor.dtype, self._shape(tensor.shards.tiling, tile), start, length)

    def _shape(self, tiling: Tiling, tile: int) -> tuple[int, ...]:
        if id(tiling) not in self._shapes:
            self._shapes[id(tiling)] = _shapes(tiling)
        return self._shapes[id(tiling)][tile]

    def _find_by_name(self, rows: list[int], reader: RangeReader) -> None:
        """Find tensors by their names in a file, since the metadata has no offsets.

        HyperParallel writes such files, and torch with `SerializationFormat.SAFETENSORS`.
        """
        found, starts = _named(reader)
        for row in rows:
            tensor = self._found[self._tensor[row]]
            where = f"{reader.name}: tensor {tensor.name}"
            box = tensor.shards.tiling.box(int(self._tile[row]))
            described = (tensor.dtype, box.shape, box.start)
            name = (self._entries[self._offsets[row]] if self._lengths[row] < 0 else "") or tensor.name
            entry = found.get(name)
            held = (entry.dtype, entry.shape, starts.get(name, box.start)) if entry else None
            if entry is None or held != described:
                raise DataError(
                    "MetadataMismatch",
                    f"the file contains {_text(held)}, but the metadata describes {_text(described)}",
                    where=where,
                    fix="the files belong to different checkpoints, or a rank had several shards of the tensor, of which PyTorch"
                    " wrote one; save the checkpoint without SerializationFormat.SAFETENSORS",
                )
            self._set(row, entry.content())

    def _set(self, row: int, content: Content) -> None:
        self._offsets[row], self._lengths[row] = content.offset, content.length
        if content.strides is not None:
            self._strided[row] = content

    def tensors(self) -> Iterator[TensorMeta]:
        """Yield the tensors with the places of their content."""
        strided = {int(self._tensor[row]) for row in self._strided}
        for number, (tensor, (start, end)) in enumerate(zip(self._found, pairwise(self._first), strict=True)):
            old = tensor.shards
            shards = Shards(old.placement, self._offsets[start:end], self._lengths[start:end])
            yield self._divided(tensor, start) if number in strided else replace(tensor, shards=shards)

    def _divided(self, tensor: TensorMeta, start: int) -> TensorMeta:
        """A tensor with shards that are not in row-major order, with smaller shards that are."""
        old = tensor.shards
        itemsize = DTYPES[tensor.dtype].itemsize
        columns: list[tuple[Numbers, ...]] = []
        for tile in range(len(old.tiling)):
            box = old.tiling.box(tile)
            copies = range(start + int(old.first[tile]), start + int(old.first[tile + 1]))
            contents = [self._strided.get(row) or Content(int(self._offsets[row]), int(self._lengths[row])) for row in copies]
            if len({content.strides for content in contents}) > 1:
                raise DataError(
                    "UnsupportedStrides",
                    f"the copies of the shard at {list(box.start)} store their elements in different orders",
                    where=f"tensor {tensor.name}",
                    fix="save `tensor.contiguous()`, or exclude the tensor with --exclude (spec.parameters.exclude)",
                )
            for row, content in zip(copies, contents, strict=True):
                pieces = split(content, box.shape, itemsize, f"tensor {tensor.name}")
                self._budget.take(pieces, f"tensor {tensor.name}")
                ones = np.ones(len(pieces.starts), np.int64)
                columns.append(
                    (
                        pieces.starts + np.array(box.start, np.int64),
                        ones[:, None] * np.array(pieces.shape, np.int64),
                        ones * old.files[row - start],
                        pieces.offsets,
                        ones * pieces.nbytes,
                    )
                )
        starts, lengths, *places = (np.concatenate(column) for column in zip(*columns, strict=True))
        tiling, tiles = divide(tensor.shape, starts, lengths, tensor.name)
        files, offsets, nbytes = places
        return replace(tensor, shards=gather_shards(tiling, tiles, (files, offsets, nbytes), tensor.name))


class _Rest:
    """A file from a byte on. SerializationFormat.SAFETENSORS writes a rank's objects before the header."""

    def __init__(self, reader: RangeReader, start: int) -> None:
        self.name, self.size, self._reader, self._start = reader.name, reader.size - start, reader, start

    def read(self, offset: int, length: int) -> bytes:
        return self._reader.read(self._start + offset, length)


class _Named(NamedTuple):
    """A tensor of a file: its type, its shape, and a function that returns the location of its elements."""

    dtype: str
    shape: tuple[int, ...]
    content: Callable[[], Content]


def _named(reader: RangeReader) -> tuple[dict[str, _Named], dict[str, tuple[int, ...]]]:
    """The tensors of a safetensors file, and the first elements of their shards as far as the file states them.

    The first versions of HyperParallel for PyTorch write `torch.save` files with the names of safetensors files.
    """
    if reader.read(0, min(4, reader.size)) == b"PK\3\4":
        archive = read_archive(reader)
        return {
            each.name: _Named(each.dtype.name, each.shape, partial(each.content, reader, archive)) for each in archive.tensors
        }, {}
    structure = read_header(reader).structure
    entries = {each.name: _Named(each.dtype, each.shape, partial(_extent, each)) for each in structure.tensors}
    return entries, saved_offsets(structure.metadata, reader.name)


def _extent(entry: TensorEntry) -> Content:
    return Content(*entry.extents[0])


def _joined(numbers: list[Numbers]) -> Numbers:
    return np.concatenate([np.zeros(0, np.int64), *numbers])


def _shapes(tiling: Tiling) -> list[tuple[int, ...]]:
    """The shape of each tile."""
    if isinstance(tiling, Grid):
        return list(product(*(np.diff(points).tolist() for points in tiling.cuts)))
    return list(map(tuple, (tiling.ends - tiling.starts).T.tolist()))


def _text(described: tuple[str, tuple[int, ...], tuple[int, ...]] | None) -> str:
    return f"{described[0]}{list(described[1])} at {list(described[2])}" if described else "no such tensor"


def check_files(checkpoint: Checkpoint, sizes: Mapping[str, int], where: str) -> None:
    """Check that the files of a checkpoint exist and are long enough for its metadata.

    Args:
        checkpoint: what `read_metadata` returned.
        sizes: the length of each file in the folder, by its path.
        where: the folder, for messages.

    Raises:
        DataError: a file is too short.
        MissingInputError: a file does not exist.
    """
    ends = np.zeros(len(checkpoint.files), np.int64)
    for tensor in checkpoint.tensors:
        shards = tensor.shards
        np.maximum.at(ends, shards.files, np.where(shards.lengths < 0, 0, shards.offsets + shards.lengths))
    for place in (place for found in checkpoint.objects for place in found.places):
        ends[place.file] = max(int(ends[place.file]), place.offset + place.length)
    for path, end in zip(checkpoint.files, ends.tolist(), strict=True):
        size = sizes.get(path)
        if size is None:
            raise MissingInputError(
                "FileMissing",
                "the file is listed in the metadata but does not exist",
                where=f"{where}/{path}",
                fix="restore the file",
            )
        if size < end:
            raise DataError(
                "Truncated",
                f"the file has {size} bytes, but the metadata refers to {end}",
                where=f"{where}/{path}",
                fix="restore the file",
            )
