"""Exact contents of checkpoint files, read without the code under test."""

from __future__ import annotations

import json
from typing import Any

import rawfiles

# Type, shape and bytes.
Found = tuple[str, tuple[int, ...], bytes]


def tensors(content: bytes, kind: str) -> dict[str, Found]:
    """Return a file's contents; a rank without parameters has no file."""
    if not content:
        return {}
    if kind == "ckpt":
        types = {value.tag: value.tensor.tensor_type for value in rawfiles.Checkpoint.FromString(content).value}
    else:
        types = {name: text for name, text in header(content).get("__metadata__", {}).items() if text == "Int4"}
    return {
        name: (types.get(name) or rawfiles.TYPE_NAMES[array.dtype], array.shape, array.tobytes())
        for name, array in rawfiles.read(kind, content).items()
    }


def header(content: bytes) -> dict[str, Any]:
    """The header of a safetensors file, its tensors in the order of the file."""
    found: dict[str, Any] = json.loads(content[8 : 8 + _header_length(content)])
    return found


def data(content: bytes) -> bytes:
    """Return the bytes after the header of a safetensors file."""
    return content[8 + _header_length(content) :]


def messages(content: bytes) -> dict[str, bytes]:
    """The bytes of each parameter in a `.ckpt`, in the order of the file."""
    return {value.tag: bytes(value.SerializeToString()) for value in rawfiles.Checkpoint.FromString(content).value}


def without_empty(content: bytes) -> bytes:
    """A `.ckpt` without its parameters of no content (see `deviations`)."""
    values = rawfiles.Checkpoint.FromString(content).value
    return b"".join(
        rawfiles.message(value.tag, list(value.tensor.dims), value.tensor.tensor_type, value.tensor.tensor_content)
        for value in values
        if value.tensor.tensor_content
    )


def same_safetensors(one: bytes, other: bytes) -> bool:
    """Return whether two files are equal, except for the order of two or more metadata entries: the library's is random."""
    if one == other:
        return True
    mine, theirs = header(one), header(other)
    several = len(mine.get("__metadata__", {})) > 1
    return several and list(mine.items())[1:] == list(theirs.items())[1:] and mine == theirs and data(one) == data(other)


def _header_length(content: bytes) -> int:
    return int.from_bytes(content[:8], "little")
