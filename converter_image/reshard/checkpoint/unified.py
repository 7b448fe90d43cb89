"""Unified safetensors: whole parameters, spread over some files beside each other, and a map that says which is in which. Pure.

```
part0.safetensors, part1.safetensors, ...     parameters that a strategy names
hyper_param.safetensors                       those that none names, if there are any
param_name_map.json                           {"metadata": {"total_size": ...}, "weight_map": {name: file}}, of the parts
model.safetensors.index.json                  the same of all files, on request
```

The names are MindSpore's (2.10, mindspore/parallel/transform_safetensors.py). Hugging Face's libraries write a map of the same
form to the last of them.
"""

from __future__ import annotations

import re
from math import prod
from typing import TYPE_CHECKING, Any

import msgspec

from reshard.errors import DataError, MissingInputError, RequestError

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping, Sequence

    from reshard.checkpoint.inventory import Inventory, Structure

MAP_NAME = "param_name_map.json"
HF_INDEX_NAME = "model.safetensors.index.json"
HYPER_NAME = "hyper_param.safetensors"
_INDEX_SUFFIX = ".safetensors.index.json"
_FILE_NAME = re.compile(r"(?!\.)[^/\x00-\x1f\ud800-\udfff]{1,255}\.safetensors")
_OWN_FILE = re.compile(rf"part[0-9]+\.safetensors|{re.escape(HYPER_NAME)}|{re.escape(MAP_NAME)}|{re.escape(HF_INDEX_NAME)}")


class _Map(msgspec.Struct):
    """What of a map is read; the rest may be anything."""

    weight_map: dict[str, str]


def part_name(number: int, parts: int, *, hyper: bool) -> str:
    """The file of a part; the last of the `parts` is that of the parameters in no strategy, if `hyper` says there are some."""
    return HYPER_NAME if hyper and number == parts - 1 else f"part{number}.safetensors"


def is_map(name: str) -> bool:
    """Whether a file of this name says which parameter is in which file."""
    return name == MAP_NAME or name.endswith(_INDEX_SUFFIX)


def single_file_of(index: str) -> str:
    """Return the name of the one file that Hugging Face's libraries read instead of this index, if it is there."""
    return index.removesuffix(".index.json") if index.endswith(_INDEX_SUFFIX) else ""


def is_part(name: str) -> bool:
    """Return whether a file of this name holds a part of a unified checkpoint."""
    return name.endswith(".safetensors") and is_own(name)


def is_own(name: str) -> bool:
    """Whether a unified checkpoint that is written here may have a file of this name."""
    return _OWN_FILE.fullmatch(name) is not None


def is_hyper(path: str) -> bool:
    """Return whether a file has the name under which MindSpore saves what is in no part."""
    return path.rpartition("/")[2] == HYPER_NAME


def maps_beside(options: Mapping[str, Any]) -> tuple[str, ...]:
    """The maps that a checkpoint with these options of its request has."""
    if options.get("output") != "Unified":
        return ()
    return (MAP_NAME, HF_INDEX_NAME) if options.get("huggingFaceIndex") else (MAP_NAME,)


def choose_map(names: Sequence[str], where: str) -> str | None:
    """The map that says what a folder's files hold: MindSpore's, or else the only one.

    Raises:
        RequestError: it is not clear which.
    """
    maps = sorted(name for name in names if is_map(name))
    if len(maps) > 1 and MAP_NAME not in maps:
        raise RequestError(
            "AmbiguousFiles",
            f"the folder contains {len(maps)} index files: {', '.join(maps[:4])}",
            where=where,
            fix="specify one of the index files as the source instead of the folder",
        )
    return MAP_NAME if MAP_NAME in maps else maps[0] if maps else None


def files_of(mapped: Mapping[str, str], names: Sequence[str], map_name: str, where: str) -> list[str]:
    """The files that a map names, in the order of their numbers, and that of the parameters in no strategy.

    Args:
        mapped: each parameter's file.
        names: the files that lie beside the map.
        map_name: the name of the map.
        where: the folder, for messages.

    Raises:
        DataError: there are none.
        MissingInputError: one is not there.
    """
    wanted = sorted(set(mapped.values()), key=_natural)
    there = frozenset(names)
    if absent := [name for name in wanted if name not in there]:
        raise MissingInputError(
            "PartMissing",
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
            fix="restore the index file and all files from the same checkpoint",
        )
    return wanted


def _natural(name: str) -> tuple[int, str]:
    """part2 before part10."""
    return len(name), name


def check(inventory: Inventory, mapped: Mapping[str, str]) -> None:
    """Refuse a unified checkpoint whose files do not hold each parameter once, and where its map says.

    Raises:
        DataError: they do not.
    """
    where: dict[str, str] = {}
    for file in inventory.files:
        for entry in inventory.structures[file.structure].tensors:
            if (other := where.setdefault(entry.name, file.path)) != file.path:
                raise DataError(
                    "ParameterTwice",
                    f"{other} and {file.path} both contain it, and no index file selects one of them",
                    where=f"parameter {entry.name}",
                    fix="move away the file that does not belong to the checkpoint",
                )
    for name, path in mapped.items():
        if where.get(name) != path:
            held = f"{where[name]} contains it" if name in where else "no file contains it"
            raise DataError(
                "MapMismatch",
                f"the index file locates it in {path}, but {held}",
                where=f"parameter {name}",
                fix="restore the index file and all files from the same checkpoint",
            )


def stages_of_parts(inventory: Inventory) -> Mapping[str, tuple[int, ...]]:
    """For each name that a strategy has named its stages: of unified files, all that is in a part, and there is one stage."""
    parts = {file.structure for file in inventory.files if file.path != HYPER_NAME}
    return {entry.name: (0,) for part in parts for entry in inventory.structures[part].tensors}


def possible_slices(hyper: Structure) -> Iterator[str]:
    """Yield the names of parameters in MindSpore's `hyper_param.safetensors` that may be slices: those of several elements.

    MindSpore 2.10 writes rank 0's share of all that is in no part there: gradients, and what the `choice_func` of
    `unified_safetensors` refuses (mindspore/parallel/transform_safetensors.py, _save_hyper_param).
    """
    return (entry.name for entry in hyper.tensors if prod(entry.shape) > 1)


def refuse_slices(inventory: Inventory, names: Mapping[str, str], target: Container[str]) -> None:
    """Refuse a target strategy that names parameters of which the source may hold slices.

    Args:
        inventory: what the source holds.
        names: what parameters that it holds are called at the target, by what they are called in it.
        target: what the target's strategy names.

    Raises:
        DataError: the target's strategy names one.
    """
    for name in inventory.may_be_slices:
        if names.get(name, "") in target:
            raise DataError(
                "MayBeSlice",
                f"it comes from MindSpore's {HYPER_NAME}, which may contain only rank 0's slice of it,"
                " but the target strategy shards the whole tensor",
                where=f"parameter {name}",
                fix="read the ranks' own files instead, or unify these with reshard (--output unified); or choose a target"
                " strategy that does not name it",
            )


def read_map(content: bytes, where: str) -> dict[str, str]:
    """From each parameter to the name of its file.

    Raises:
        DataError: it is damaged, or names a file that lies elsewhere.
    """
    try:
        try:
            found = msgspec.json.decode(content, type=_Map).weight_map
        except msgspec.ValidationError:  # earlier versions of MindSpore wrote nothing around it, and it still reads that
            found = msgspec.json.decode(content, type=dict[str, str])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(
            "MapInvalid", f"the file is not an index of parameters: {error}", where=where, fix="the file is damaged; restore it"
        ) from error
    for file in set(found.values()):
        if not _FILE_NAME.fullmatch(file):
            raise DataError(
                "MapInvalid",
                f"the entry {file[:100]!r} is not the name of a safetensors file in the same folder",
                where=where,
                fix="restore the index file and all files from the same checkpoint",
            )
    return found


def map_of(files: Mapping[str, str], total_size: int) -> bytes:
    """A map as a file: from each parameter to the name of its file, and the bytes of all of them together."""
    content = msgspec.json.encode({"metadata": {"total_size": total_size}, "weight_map": dict(sorted(files.items()))})
    return msgspec.json.format(content, indent=2) + b"\n"
