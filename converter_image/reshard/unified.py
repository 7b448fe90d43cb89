"""Unified safetensors: whole parameters, spread over some files beside each other, and a map that says which is in which. Pure.

```
part0.safetensors, part1.safetensors, ...     parameters that a strategy names
hyper_param.safetensors                       those that none names, if there are any
param_name_map.json                           {"metadata": {"total_size": ...}, "weight_map": {name: file}}
```

The names are MindSpore's (2.10, mindspore/parallel/transform_safetensors.py). Hugging Face's libraries write a map of the same
form.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from reshard.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

MAP_NAME = "param_name_map.json"
HYPER_NAME = "hyper_param.safetensors"
_INDEX_SUFFIX = ".safetensors.index.json"
_FILE_NAME = re.compile(r"(?!\.)[^/\x00]{1,255}\.safetensors")


class _Metadata(msgspec.Struct):
    total_size: int = 0


class _Map(msgspec.Struct):
    weight_map: dict[str, str]
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)


def part_name(number: int, parts: int, *, hyper: bool) -> str:
    """The file of a part; the last of the `parts` is that of the parameters in no strategy, if `hyper` says there are some."""
    return HYPER_NAME if hyper and number == parts - 1 else f"part{number}.safetensors"


def is_map(name: str) -> bool:
    """Whether a file of this name says which parameter is in which file."""
    return name == MAP_NAME or name.endswith(_INDEX_SUFFIX)


def read_map(content: bytes, where: str) -> dict[str, str]:
    """From each parameter to the name of its file.

    Raises:
        DataError: it is damaged, or names a file that lies elsewhere.
    """
    try:
        try:
            found = msgspec.json.decode(content, type=_Map).weight_map
        except msgspec.ValidationError:  # earlier versions of MindSpore wrote nothing around it
            found = msgspec.json.decode(content, type=dict[str, str])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError("MapInvalid", f"it is no map from parameters to files: {error}", where=where) from error
    for file in set(found.values()):
        if not _FILE_NAME.fullmatch(file):
            raise DataError("MapInvalid", f"{file[:100]!r} is no safetensors file beside it", where=where)
    return found


def map_of(files: Mapping[str, str], total_size: int) -> bytes:
    """The map as a file, from each parameter to the name of its file."""
    content = msgspec.json.encode(_Map(dict(sorted(files.items())), _Metadata(total_size)))
    return msgspec.json.format(content, indent=2) + b"\n"
