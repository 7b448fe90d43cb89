"""Tensor types of checkpoints. Elements are moved and never interpreted, so only their size matters."""

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
    """One tensor type.

    Attributes:
        name: name in MindSpore, or in safetensors if MindSpore does not have the type.
        itemsize: bytes per element.
        safetensors: name in a safetensors file. None means that the format does not support the type.
        in_ckpt: whether a `.ckpt` file can hold the type.
        loads_from_ckpt: whether MindSpore 2.10 can load the type from a `.ckpt` file. It writes five types that it cannot load
            (mindspore/train/serialization.py, tensor_to_ms_type).
    """

    name: str
    itemsize: int
    safetensors: str | None
    in_ckpt: bool = True
    loads_from_ckpt: bool = True


# The reverse of the order in which the safetensors library writes contents (safetensors/src/tensor.rs, enum Dtype).
_PLAIN = (
    DType("Bool", 1, "BOOL"),
    DType("UInt8", 1, "U8"),
    DType("Int8", 1, "I8"),
    DType("Float8E5M2", 1, "F8_E5M2", loads_from_ckpt=False),
    DType("Float8E4M3FN", 1, "F8_E4M3", loads_from_ckpt=False),
    DType("F8_E8M0", 1, "F8_E8M0", in_ckpt=False),
    DType("F8_E4M3FNUZ", 1, "F8_E4M3FNUZ", in_ckpt=False),
    DType("F8_E5M2FNUZ", 1, "F8_E5M2FNUZ", in_ckpt=False),
    DType("Int16", 2, "I16"),
    DType("UInt16", 2, "U16"),
    DType("Float16", 2, "F16"),
    DType("BFloat16", 2, "BF16"),
    DType("Int32", 4, "I32"),
    DType("UInt32", 4, "U32"),
    DType("Float32", 4, "F32"),
    DType("Complex64", 8, "C64", loads_from_ckpt=False),
    DType("Float64", 8, "F64"),
    DType("Int64", 8, "I64"),
    DType("UInt64", 8, "U64"),
)
# Two elements share a byte, and MindSpore counts bytes (mindspore.qint4x2). A safetensors file has I8, and lists the name in its
# metadata.
_PACKED = DType(INT4, 1, "I8")
# UTF-32. Shapes in this package count its characters. A safetensors file holds the code points.
_TEXT = DType(STRING, 4, "U32")
_CKPT_ONLY = (
    DType("HiFloat8", 1, None, loads_from_ckpt=False),
    DType("Complex128", 16, None, loads_from_ckpt=False),
)

DTYPES: Mapping[str, DType] = MappingProxyType({d.name: d for d in (*_PLAIN, *_CKPT_ONLY, _PACKED, _TEXT)})
BY_SAFETENSORS_NAME: Mapping[str, DType] = MappingProxyType({d.safetensors: d for d in _PLAIN if d.safetensors})
SAFETENSORS_ORDER: Mapping[str | None, int] = MappingProxyType({d.safetensors: i for i, d in enumerate(_PLAIN)})
