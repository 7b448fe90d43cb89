"""MindFormers' Checkpoint 2.0: safetensors files of each rank, and `metadata.json`, which states the slices in each.

The `global_offset` of a slice is not a position but the number of the slice, as a list of one number: MindFormers counts the
equal slices of a tensor in row-major order. `axis_fragmentations` is the number of slices along each dimension.
"""

from __future__ import annotations

import re
from math import prod
from sys import intern
from typing import TYPE_CHECKING, Annotated, TypeVar

import msgspec

from reshard.checkpoint.safetensors import read_header
from reshard.errors import DataError, MissingInputError, RequestError
from reshard.formats.shards import ShardTable
from reshard.layout.box import strides
from reshard.model import Checkpoint
from reshard.parallel import parallel
from reshard.strictjson import pairs
from reshard.structs import examined

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from reshard.checkpoint.inventory import Structure, TensorEntry
    from reshard.formats.protocol import Folder

METADATA, _COMMON = "metadata.json", "common.json"
_MOST_BYTES = 1 << 30
_SMALLEST_ENTRY = 48  # bytes of a tensor, or of the files of a shard; a document with more entries is not one of MindFormers
_MOST_COPIES = 1 << 16
_FILE = re.compile(r"[^/\x00]+\.safetensors")
_T = TypeVar("_T")
_Number = Annotated[int, msgspec.Meta(ge=0, lt=1 << 61)]
_Numbers = Annotated[tuple[_Number, ...], msgspec.Meta(max_length=32)]


class _Chunk(msgspec.Struct):
    global_offset: tuple[_Number]
    local_shape: _Numbers


class _Layout(msgspec.Struct):
    interleaved_parallel: bool = False


class _Properties(msgspec.Struct):
    dtype: str


class _Tensor(msgspec.Struct):
    properties: _Properties
    global_shape: _Numbers
    axis_fragmentations: _Numbers
    chunk: Annotated[list[_Chunk], msgspec.Meta(min_length=1)]
    layout: _Layout | None = None


class _Copy(msgspec.Struct):
    file_name: str


class _Document(msgspec.Struct):
    state_dict_metadata: msgspec.Raw
    storage_data: msgspec.Raw


_TENSOR = msgspec.json.Decoder(_Tensor)
_COPIES = msgspec.json.Decoder(Annotated[list[_Copy], msgspec.Meta(max_length=_MOST_COPIES)])


def read(folder: Folder, workers: int = 1, wanted: Callable[[str], bool] | None = None) -> Checkpoint:
    """Return the tensors of a checkpoint, see `SourceFormat.read`."""
    where = f"{folder.url}/{METADATA}"
    tensors, copies = _decode(folder.read(METADATA, _MOST_BYTES), where, wanted)
    places = [
        (name, tensor, chunk, _copies_of(copies, name, chunk)) for name, tensor in tensors.items() for chunk in tensor.chunk
    ]
    files = sorted({file for found in copies.values() for file in found})
    there = folder.sizes(files)
    if absent := [file for file in files if file not in there]:
        raise MissingInputError(
            "FileMissing",
            "the metadata lists the file, but it does not exist",
            where=f"{folder.url}/{absent[0]}",
            fix="restore it",
        )
    entries = _read_headers(folder, files, workers)
    _refuse_unlisted(entries, tensors, wanted, folder.url)
    numbers = {file: number for number, file in enumerate(files)}
    table = ShardTable()
    for name, tensor, chunk, found in places:
        start = _start(tensor, chunk, where, name)
        held = [(file, entry) for file in found if (entry := entries[file].get(name)) is not None]
        if not held:
            raise DataError(
                "ShardMissing",
                f"no file contains the slice {chunk.global_offset[0]}",
                where=f"{where}: tensor {name}",
                fix="restore the checkpoint, or exclude the tensor with --exclude (spec.parameters.exclude)",
            )
        for file, entry in held:
            # MindFormers names types as MindSpore does, in any case.
            if (entry.dtype.lower(), entry.shape) != (tensor.properties.dtype.lower(), chunk.local_shape):
                raise DataError(
                    "MetadataMismatch",
                    f"the file contains {entry.dtype}{list(entry.shape)}, but the metadata describes"
                    f" {tensor.properties.dtype}{list(chunk.local_shape)}",
                    where=f"{folder.url}/{file}: tensor {name}",
                    fix="the files belong to different checkpoints; restore the files of one",
                )
            place = (numbers[file], *entry.extents[0])
            table.add(name, entry.dtype, start, chunk.local_shape, place, file)
    shapes = {name: tensor.global_shape for name, tensor in tensors.items()}
    documents = tuple(name for name in (METADATA, _COMMON) if name in folder.names)
    return Checkpoint(tuple(files), tuple(table.tensors(shapes)), documents=documents)


def _decode(content: bytes, where: str, wanted: Callable[[str], bool] | None) -> tuple[dict[str, _Tensor], dict[str, list[str]]]:
    """The tensors, and the files of each shard, by the text of its name and offset."""
    most = len(content) // _SMALLEST_ENTRY + 1
    try:
        document = msgspec.json.decode(content, type=examined(_Document))
        tensors = {
            name: _TENSOR.decode(raw)
            for name, raw in _distinct(pairs(document.state_dict_metadata, most, msgspec.Raw)).items()
            if wanted is None or wanted(name)
        }
        copies = {
            key: sorted({intern(copy.file_name) for copy in _COPIES.decode(raw)})
            for key, raw in _distinct(pairs(document.storage_data, most, msgspec.Raw)).items()
        }
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid(where, str(error)) from None
    if outside := {file for found in copies.values() for file in found if not _FILE.fullmatch(file)}:
        raise _invalid(where, f"{min(outside)[:100]!r} is not the name of a safetensors file in the folder")
    return tensors, copies


def _start(tensor: _Tensor, chunk: _Chunk, where: str, name: str) -> tuple[int, ...]:
    """The first element of a slice.

    Raises:
        DataError: the slice is none of the equal slices of the tensor.
        RequestError: the layout is interleaved.
    """
    where, cuts, (number,) = f"{where}: tensor {name[:200]}", tensor.axis_fragmentations, chunk.global_offset
    if tensor.layout is not None and tensor.layout.interleaved_parallel:
        raise RequestError(
            "UnsupportedSource",
            "an interleaved layout gives a rank several pieces of a tensor",
            where=where,
            fix="save the checkpoint without interleaved_parallel",
        )
    parts = tuple(n * k for n, k in zip(chunk.local_shape, cuts, strict=False))
    if parts != tensor.global_shape or len(cuts) != len(parts) or number >= prod(cuts):
        raise _invalid(
            where,
            f"slice {number} of {list(cuts)} with the shape {list(chunk.local_shape)} is none of {list(tensor.global_shape)}",
        )
    cells = (number // step % k for step, k in zip(strides(cuts), cuts, strict=True))
    return tuple(cell * n for cell, n in zip(cells, chunk.local_shape, strict=True))


def _distinct(found: list[tuple[str, _T]]) -> dict[str, _T]:
    if len(distinct := dict(found)) < len(found):
        raise msgspec.DecodeError("an object contains the same key twice")
    return distinct


def _copies_of(copies: Mapping[str, list[str]], name: str, chunk: _Chunk) -> list[str]:
    """The files that the metadata lists for a shard. One of them may lack it if another has it."""
    return copies.get(str((name, chunk.global_offset)), [])


def _read_headers(folder: Folder, files: Iterable[str], workers: int) -> dict[str, dict[str, TensorEntry]]:
    """The tensors of each file, by name."""
    seen: dict[bytes, Structure] = {}

    def read_one(file: str) -> Structure:
        with folder.open(file) as reader:
            return read_header(reader, seen).structure

    structures = parallel(read_one, files, at_once=workers)
    by_structure: dict[int, dict[str, TensorEntry]] = {}
    found = {}
    for file, structure in zip(files, structures, strict=True):
        if id(structure) not in by_structure:
            by_structure[id(structure)] = {entry.name: entry for entry in structure.tensors}
        found[file] = by_structure[id(structure)]
    return found


def _refuse_unlisted(
    entries: Mapping[str, Mapping[str, TensorEntry]],
    tensors: Mapping[str, _Tensor],
    wanted: Callable[[str], bool] | None,
    url: str,
) -> None:
    """Refuse a tensor that the metadata does not list: it may be whole or a shard, and must not be lost silently."""
    for file, held in entries.items():
        for name in held:
            if name not in tensors and (wanted is None or wanted(name)):
                raise DataError(
                    "MetadataMismatch",
                    f"the file has the tensor {name}, which {METADATA} does not list",
                    where=f"{url}/{file}",
                    fix="exclude the tensor with --exclude (spec.parameters.exclude), or save the checkpoint again",
                )


def _invalid(where: str, what: str) -> DataError:
    return DataError(
        "MetadataInvalid", f"the document is not metadata of MindFormers: {what}", where=where, fix="restore the checkpoint"
    )
