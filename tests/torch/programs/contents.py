"""Tensors that programs save, and the description of a tensor that tests compare."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

try:  # torch 2.5 and newer
    from torch.distributed.tensor import DTensor
except ImportError:
    from torch.distributed._tensor import DTensor


def numbers(*shape: int, dtype: torch.dtype = torch.float32, base: int = 0) -> torch.Tensor:
    """A tensor with the values `base`, `base` + 1, ..."""
    count = torch.Size(shape).numel()
    return (torch.arange(count, dtype=torch.float64) + base).reshape(shape).to(dtype)


def raw(dtype: str, *shape: int) -> torch.Tensor:
    """A tensor of any type, with bytes that count up."""
    found = getattr(torch, dtype)
    count = torch.Size(shape).numel() * found.itemsize
    if dtype == "bool":
        return (torch.arange(count) % 3 == 0).reshape(shape)
    return (torch.arange(count) % 251).to(torch.uint8).view(found).reshape(shape)


def content(tensor: torch.Tensor) -> bytes:
    """The row-major bytes of a tensor that is not distributed."""
    # A copy, because `contiguous` keeps the stride of a dimension of length 1, which `view` refuses.
    flat = tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def describe(tensor: torch.Tensor) -> dict[str, Any]:
    """Type, shape and SHA-256 of the row-major bytes of a whole tensor, which is gathered from its shards."""
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return {
        "dtype": str(whole.dtype).removeprefix("torch."),
        "shape": list(whole.shape),
        "sha256": hashlib.sha256(content(whole)).hexdigest(),
    }


def flatten(value: Any, name: str = "") -> dict[str, torch.Tensor]:
    """The tensors in a structure, by the names that a distributed checkpoint gives them."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {k: v for key, each in inner for k, v in flatten(each, f"{name}.{key}" if name else str(key)).items()}


def describe_all(state: Any) -> dict[str, dict[str, Any]]:
    """The description of each tensor in a structure. Every rank has to call this if one is a DTensor."""
    return {name: describe(tensor) for name, tensor in flatten(state).items()}


def describe_values(value: Any) -> Any:
    """The structure with a description of each tensor and the text of each other value. Every rank has to call this, too."""
    if isinstance(value, dict):
        return {str(key): describe_values(each) for key, each in sorted(value.items(), key=lambda item: str(item[0]))}
    if isinstance(value, list | tuple):
        return [describe_values(each) for each in value]
    return describe(value) if isinstance(value, torch.Tensor) else repr(value)
