"""The types that a checkpoint's tensors can have. Elements are moved, never interpreted, so all that counts is their size."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

STRING = "str"
INT4 = "Int4"


@dataclass(frozen=True, slots=True)
class DType:
    """One type.

    Attributes:
        name: MindSpore's name; where MindSpore has none, that of safetensors.
        itemsize: bytes of one element.
        safetensors: its name in a safetensors file.
        in_ckpt: whether a `.ckpt` file can hold it.
    """

    name: str
    itemsize: int
    safetensors: str
    in_ckpt: bool = True


# In the order in which the safetensors library puts contents last (safetensors/src/tensor.rs, enum Dtype).
_PLAIN = (
    DType("Bool", 1, "BOOL"),
    DType("UInt8", 1, "U8"),
    DType("Int8", 1, "I8"),
    DType("F8_E5M2", 1, "F8_E5M2", in_ckpt=False),
    DType("F8_E4M3", 1, "F8_E4M3", in_ckpt=False),
    DType("F8_E8M0", 1, "F8_E8M0", in_ckpt=False),
    DType("Int16", 2, "I16"),
    DType("UInt16", 2, "U16"),
    DType("Float16", 2, "F16"),
    DType("BFloat16", 2, "BF16"),
    DType("Int32", 4, "I32"),
    DType("UInt32", 4, "U32"),
    DType("Float32", 4, "F32"),
    DType("C64", 8, "C64", in_ckpt=False),
    DType("Float64", 8, "F64"),
    DType("Int64", 8, "I64"),
    DType("UInt64", 8, "U64"),
)
# Two elements share a byte, and MindSpore counts bytes (mindspore.qint4x2); in a safetensors file an I8 that the metadata names.
_PACKED = DType(INT4, 1, "I8")
# UTF-32; a shape in this package counts its characters. A safetensors file holds the code points.
_TEXT = DType(STRING, 4, "U32")

DTYPES: Mapping[str, DType] = MappingProxyType({d.name: d for d in (*_PLAIN, _PACKED, _TEXT)})
BY_SAFETENSORS_NAME: Mapping[str, DType] = MappingProxyType({d.safetensors: d for d in _PLAIN})
SAFETENSORS_ORDER: Mapping[str, int] = MappingProxyType({d.safetensors: i for i, d in enumerate(_PLAIN)})
