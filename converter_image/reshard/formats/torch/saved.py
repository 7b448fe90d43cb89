"""`torch.save` files with whole tensors: one file, or those that the index of a Hugging Face model lists."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from reshard.checkpoint.dtypes import DTYPES
from reshard.errors import DataError, MissingInputError, RequestError
from reshard.formats.shards import ShardTable
from reshard.formats.torch.archive import read_archive
from reshard.formats.torch.names import ENDINGS
from reshard.formats.torch.strided import Budget, Content, split
from reshard.model import Checkpoint
from reshard.parallel import parallel
from reshard.structs import examined

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reshard.formats.protocol import Folder

_INDEX = ".bin.index.json"
_MODEL = "pytorch_model.bin"
_PART = re.compile(r"([\s\S]+)-([0-9]{5})-of-([0-9]{5})\.bin")
_LARGEST_INDEX = 128 << 20
_Tensor = tuple[str, str, tuple[int, ...], Content]  # name, type, shape, location of the elements


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def read(folder: Folder, workers: int = 1, wanted: Callable[[str], bool] | None = None) -> Checkpoint:
    """Return the tensors of a checkpoint, see `SourceFormat.read`. Tensors that share a storage have overlapping ranges.

    Raises:
        RequestError: the folder has several files, and no index states which of them belong together.
    """
    files, listed, documents = _choose(folder)
    table, budget = ShardTable(), Budget()
    seen: dict[str, str] = {}
    found = parallel(lambda name: _tensors(folder, name, wanted), files, at_once=workers)
    for number, (file, tensors) in enumerate(zip(files, found, strict=True)):
        where = f"{folder.url}/{file}"
        for name, dtype, shape, content in tensors:
            if (other := seen.setdefault(name, file)) != file:
                raise DataError(
                    "ParameterTwice",
                    f"{other} and {file} both contain it",
                    where=f"{folder.url}: tensor {name}",
                    fix="move the file that does not belong to the checkpoint to another folder",
                )
            pieces = split(content, shape, DTYPES[dtype].itemsize, f"{where}: tensor {name}")
            budget.take(pieces, f"{where}: tensor {name}")
            for start, offset in zip(pieces.starts.tolist(), pieces.offsets.tolist(), strict=True):
                table.add(name, dtype, tuple(start), pieces.shape, (number, offset, pieces.nbytes), where)
    if absent := [name for name in listed if name not in seen and (wanted is None or wanted(name))]:
        raise DataError(
            "MapMismatch",
            f"{documents[0]} lists the tensor {absent[0]}, which is in no file",
            where=folder.url,
            fix="restore the index file and all files from the same checkpoint",
        )
    return Checkpoint(tuple(files), tuple(table.tensors()), documents=documents)


def _tensors(folder: Folder, file: str, wanted: Callable[[str], bool] | None) -> list[_Tensor]:
    with folder.open(file) as reader:
        archive = read_archive(reader, wanted=wanted)
    headers = (archive.container.header(f"data/{tensor.storage}") for tensor in archive.tensors)
    with folder.open(file, headers) as reader:
        return [(each.name, each.dtype.name, each.shape, each.content(reader, archive)) for each in archive.tensors]


def _choose(folder: Folder) -> tuple[list[str], Sequence[str], tuple[str, ...]]:
    """Return the files of the checkpoint, the tensors that its index lists, and the index."""
    names = sorted(folder.names)
    indexes = [name for name in names if name.endswith(_INDEX)]
    if len(indexes) == 1:
        found = _indexed(folder, indexes[0])
        single = indexes[0].removesuffix(".index.json")
        if single in names and single not in found[0]:
            raise RequestError(
                "AmbiguousFiles",
                f"the folder contains both {single} and {indexes[0]}; Hugging Face libraries read {single} and ignore the index",
                where=folder.url,
                fix=f"use {folder.url}/{single} as the source, or move it to another folder to use the index",
            )
        return found
    files = [name for name in names if name.endswith(ENDINGS)]
    if not indexes and _MODEL in files:
        return [_MODEL], (), ()
    if not indexes and (len(files) == 1 or _complete(files)):
        return files, (), ()
    raise RequestError(
        "AmbiguousFiles",
        f"the folder contains {len(files)} torch.save files and {len(indexes)} index files, and no index states which of them"
        f" belong together: {', '.join([*indexes, *files][:4])}",
        where=folder.url,
        fix="specify one of the files as the source instead of the folder",
    )


def _complete(files: list[str]) -> bool:
    """Whether these are all the files of one model, numbered from 1."""
    parts = [found.groups() for name in files if (found := _PART.fullmatch(name))]
    return (
        len(parts) == len(files) > 0
        and len({(model, total) for model, _, total in parts}) == 1
        and {int(number) for _, number, _ in parts} == set(range(1, int(parts[0][2]) + 1))
    )


def _indexed(folder: Folder, index: str) -> tuple[list[str], Sequence[str], tuple[str, ...]]:
    where = f"{folder.url}/{index}"
    try:
        listed = msgspec.json.decode(folder.read(index, _LARGEST_INDEX), type=examined(_Index)).weight_map
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(
            "MapInvalid", f"the file is not an index of parameters: {error}", where=where, fix="restore the file"
        ) from None
    there = frozenset(folder.names)
    for file in set(listed.values()):
        if not file.endswith(ENDINGS) or "/" in file or "\x00" in file:
            raise DataError(
                "MapInvalid",
                f"the entry {file[:100]!r} is not the name of a torch.save file in the same folder",
                where=where,
                fix="restore the index file and all files from the same checkpoint",
            )
        if file not in there:
            raise MissingInputError(
                "FileMissing", f"{index} refers to {file[:200]}, which does not exist", where=folder.url, fix="restore the file"
            )
    return sorted(set(listed.values())), list(listed), (index,)
