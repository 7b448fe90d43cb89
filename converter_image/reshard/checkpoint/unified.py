"""Unified safetensors: whole parameters in several files of one folder, and an index of parameters.

```
part0.safetensors, part1.safetensors, ...     parameters that a strategy names
hyper_param.safetensors                       parameters that no strategy names, if there are any
param_name_map.json                           {"metadata": {"total_size": ...}, "weight_map": {name: file}}, of the parts
model.safetensors.index.json                  the same for all files, on request
```

The names are MindSpore's (2.10, mindspore/parallel/transform_safetensors.py). Hugging Face libraries write an index of the same
form under the last name.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from reshard.errors import DataError, MissingInputError, RequestError
from reshard.spec.outputs import HYPER
from reshard.structs import examined

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping, Sequence

    from reshard.checkpoint.inventory import Inventory, Structure

MAP_NAME = "param_name_map.json"
HF_INDEX_NAME = "model.safetensors.index.json"
HYPER_NAME = f"{HYPER}.safetensors"
_INDEX_SUFFIX = ".safetensors.index.json"
_FILE_NAME = re.compile(r"(?!\.)[^/\x00-\x1f\ud800-\udfff]{1,255}\.safetensors")
_PART = re.compile(r"part[0-9]+\.safetensors")
_OWN_FILE = re.compile(rf"part[0-9]+\.safetensors|{re.escape(HYPER_NAME)}|{re.escape(MAP_NAME)}|{re.escape(HF_INDEX_NAME)}")


class _Map(msgspec.Struct):
    """The fields of a map file that are read."""

    weight_map: dict[str, str]


def is_map(name: str) -> bool:
    """Return whether a file of this name is an index of parameters."""
    return name == MAP_NAME or name.endswith(_INDEX_SUFFIX)


def single_file_of(index: str) -> str:
    """Return the name of the single file that Hugging Face libraries prefer to this index."""
    return index.removesuffix(".index.json") if index.endswith(_INDEX_SUFFIX) else ""


def is_part(name: str) -> bool:
    """Return whether a file with this name is part of a unified checkpoint."""
    return name.endswith(".safetensors") and is_own(name)


def is_own(name: str) -> bool:
    """Return whether a unified checkpoint written by reshard may contain a file with this name."""
    return _OWN_FILE.fullmatch(name) is not None


def is_hyper(path: str) -> bool:
    """Return whether a file has the name under which MindSpore saves parameters that no strategy names."""
    return path.rpartition("/")[2] == HYPER_NAME


def choose_map(names: Sequence[str], where: str) -> str | None:
    """Return the map file of a folder: MindSpore's, or the only one.

    Raises:
        RequestError: there are several map files, and none is MindSpore's.
    """
    maps = sorted(name for name in names if is_map(name))
    if len(maps) > 1 and MAP_NAME not in maps:
        raise RequestError(
            "AmbiguousFiles",
            f"the folder contains {len(maps)} map files: {', '.join(maps[:4])}",
            where=where,
            fix="specify one of the map files as the source instead of the folder",
        )
    return MAP_NAME if MAP_NAME in maps else maps[0] if maps else None


def files_of(mapped: Mapping[str, str], names: Sequence[str], map_name: str, where: str) -> list[str]:
    """Return the files in an index in natural order, and the file of parameters that no strategy names.

    Args:
        mapped: file name of each parameter.
        names: files next to the index.
        map_name: name of the index.
        where: folder, for messages.

    Raises:
        DataError: the index is empty, or a part is next to it that MindSpore's index does not list.
        MissingInputError: a file does not exist.
    """
    wanted = sorted(set(mapped.values()), key=_natural)
    there = frozenset(names)
    if absent := [name for name in wanted if name not in there]:
        raise MissingInputError(
            "FileMissing",
            f"{map_name} refers to {absent[0]}, which does not exist"
            + (f" (and {len(absent) - 1} other missing files)" if len(absent) > 1 else ""),
            where=where,
            fix="restore the missing files",
        )
    wanted += [HYPER_NAME] * (map_name == MAP_NAME and HYPER_NAME in there and HYPER_NAME not in wanted)
    if not wanted:
        raise DataError(
            "MapInvalid",
            "the file contains no parameters",
            where=f"{where}/{map_name}",
            fix="restore the map file and all files from the same checkpoint",
        )
    if map_name == MAP_NAME and (unmapped := sorted(frozenset(filter(_PART.fullmatch, there)).difference(wanted), key=_natural)):
        more = len(unmapped) - 1
        others = f" and {more} other file{'s' * (more > 1)}" * (more > 0)
        raise DataError(
            "MapMismatch",
            f"the folder contains {unmapped[0]}{others}, which {map_name} does not list",
            where=where,
            fix="restore the map file and all files from the same checkpoint, or move files of other checkpoints to another"
            " folder",
        )
    return wanted


def _natural(name: str) -> tuple[int, str]:
    """Return a sort key that places part2 before part10."""
    return len(name), name


def check(inventory: Inventory, mapped: Mapping[str, str]) -> None:
    """Check that the files of a unified checkpoint contain each parameter once, and where its index locates it.

    Raises:
        DataError: a parameter is missing, duplicated, or in another file.
    """
    where: dict[str, str] = {}
    for file in inventory.files:
        for entry in inventory.structures[file.structure].tensors:
            if (other := where.setdefault(entry.name, file.path)) != file.path:
                raise DataError(
                    "ParameterTwice",
                    f"{other} and {file.path} both contain it, and no map file selects one of them",
                    where=f"parameter {entry.name}",
                    fix="move the file that does not belong to the checkpoint to another folder",
                )
    for name, path in mapped.items():
        if where.get(name) != path:
            held = f"{where[name]} contains it" if name in where else "no file contains it"
            raise DataError(
                "MapMismatch",
                f"the map file locates it in {path}, but {held}",
                where=f"parameter {name}",
                fix="restore the map file and all files from the same checkpoint",
            )


def stages_of_parts(inventory: Inventory) -> Mapping[str, tuple[int, ...]]:
    """Return the stages of each parameter, as for a strategy. Unified files have one stage, with all parameters of the parts."""
    parts = {file.structure for file in inventory.files if file.path != HYPER_NAME}
    return {entry.name: (0,) for part in parts for entry in inventory.structures[part].tensors}


def possible_slices(hyper: Structure) -> Iterator[str]:
    """Yield the names of parameters in MindSpore's `hyper_param.safetensors` that may be slices: those with dimensions.

    MindSpore 2.10 writes rank 0's slice of all parameters that are in no part: gradients, and parameters that the `choice_func`
    of `unified_safetensors` rejects (mindspore/parallel/transform_safetensors.py, _save_hyper_param).
    """
    return (entry.name for entry in hyper.tensors if entry.shape)


def refuse_slices(inventory: Inventory, names: Mapping[str, str], target: Container[str]) -> None:
    """Reject a target strategy that contains parameters for which the source may contain only slices.

    Args:
        inventory: files of the source.
        names: target name of each parameter, by its source name.
        target: names in the target strategy.

    Raises:
        DataError: the strategy contains such a parameter.
    """
    for name in inventory.may_be_slices:
        if names.get(name, "") in target:
            raise DataError(
                "MayBeSlice",
                f"MindSpore's {HYPER_NAME} may contain only rank 0's slice of the parameter,"
                " but the target strategy shards the whole tensor",
                where=f"parameter {name}",
                fix="use the files of the ranks as the source, unify them with reshard (--output unified), or use a target"
                " strategy that does not contain the parameter",
            )


def read_map(content: bytes, where: str) -> dict[str, str]:
    """Return the file name of each parameter in an index.

    Raises:
        DataError: the index is damaged, or refers to a file outside the folder.
    """
    try:
        try:
            found = msgspec.json.decode(content, type=examined(_Map)).weight_map
        except msgspec.ValidationError:  # earlier MindSpore versions write the map alone, and current ones still read it
            found = msgspec.json.decode(content, type=dict[str, str])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(
            "MapInvalid", f"the file is not an index of parameters: {error}", where=where, fix="restore the file"
        ) from error
    for file in set(found.values()):
        if not _FILE_NAME.fullmatch(file):
            raise DataError(
                "MapInvalid",
                f"the entry {file[:100]!r} is not the name of a safetensors file in the same folder",
                where=where,
                fix="restore the map file and all files from the same checkpoint",
            )
    return found


def map_of(files: Mapping[str, str], total_size: int) -> bytes:
    """Return the content of a map file: the file name of each parameter, and the total size."""
    content = msgspec.json.encode({"metadata": {"total_size": total_size}, "weight_map": dict(sorted(files.items()))})
    return msgspec.json.format(content, indent=2) + b"\n"
