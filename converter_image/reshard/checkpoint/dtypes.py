"""Element types of all formats: the size of each type, and its name in each format.

Elements are moved and never interpreted. This table is the only module that relates the names of formats to each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

STRING = "str"
INT4 = "Int4"
# A value that is not a tensor. It is copied as bytes, which its shape counts, and never opened.
OBJECT = "object"


@dataclass(frozen=True, slots=True)
class DType:
    """One element type. If a format has no name for the type, its files cannot contain the type.

    Attributes:
        name: name in manifests, messages and `reshard inspect`. It is MindSpore's name if MindSpore has the type, otherwise the
            name in safetensors or, if that does not have the type either, in torch.
        bits: size of one element in bits, a multiple of 8. Shapes in this package count elements.
        ckpt: name in a `.ckpt` file.
        safetensors: name in a safetensors file.
        torch: name in torch.
        array: numpy type, or name of the type in ml_dtypes. None means that neither has it.
        values: number of numbers in one element. If it is greater than 1, a number is smaller than a byte. Shapes in safetensors
            files then count numbers along the last dimension, while shapes in this package count elements.
        loads_from_ckpt: whether MindSpore 2.10 can load the type from a `.ckpt` file. It writes five types that it cannot load
            (mindspore/train/serialization.py, tensor_to_ms_type).
    """

    name: str
    bits: int
    ckpt: str | None = None
    safetensors: str | None = None
    torch: str | None = None
    array: str | None = None
    values: int = 1
    loads_from_ckpt: bool = True

    @property
    def itemsize(self) -> int:
        """Size of one element in bytes."""
        return self.bits // 8

    def count_values(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return a shape in numbers instead of elements. A scalar must have a type with one number per element."""
        return shape if self.values == 1 else (*shape[:-1], shape[-1] * self.values)

    def count_elements(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """Return a shape in elements instead of numbers. None means that a row does not fill whole elements."""
        if self.values == 1:
            return shape
        return (*shape[:-1], shape[-1] // self.values) if shape and shape[-1] % self.values == 0 else None


# The reverse of the order in which the safetensors library writes contents (safetensors/src/tensor.rs, enum Dtype).
_PLAIN = (
    DType("Bool", 8, "Bool", "BOOL", "bool", "bool"),
    DType("float4_e2m1fn_x2", 8, None, "F4", "float4_e2m1fn_x2", "V1", values=2),
    DType("float6_e2m3fn_x4", 24, None, "F6_E2M3", None, "V3", values=4),
    DType("float6_e3m2fn_x4", 24, None, "F6_E3M2", None, "V3", values=4),
    DType("UInt8", 8, "UInt8", "U8", "uint8", "uint8"),
    DType("Int8", 8, "Int8", "I8", "int8", "int8"),
    DType("Float8E5M2", 8, "Float8E5M2", "F8_E5M2", "float8_e5m2", "float8_e5m2", loads_from_ckpt=False),
    DType("Float8E4M3FN", 8, "Float8E4M3FN", "F8_E4M3", "float8_e4m3fn", "float8_e4m3fn", loads_from_ckpt=False),
    DType("F8_E8M0", 8, None, "F8_E8M0", "float8_e8m0fnu", "float8_e8m0fnu"),
    DType("F8_E4M3FNUZ", 8, None, "F8_E4M3FNUZ", "float8_e4m3fnuz", "float8_e4m3fnuz"),
    DType("F8_E5M2FNUZ", 8, None, "F8_E5M2FNUZ", "float8_e5m2fnuz", "float8_e5m2fnuz"),
    DType("Int16", 16, "Int16", "I16", "int16", "int16"),
    DType("UInt16", 16, "UInt16", "U16", "uint16", "uint16"),
    DType("Float16", 16, "Float16", "F16", "float16", "float16"),
    DType("BFloat16", 16, "BFloat16", "BF16", "bfloat16", "bfloat16"),
    DType("Int32", 32, "Int32", "I32", "int32", "int32"),
    DType("UInt32", 32, "UInt32", "U32", "uint32", "uint32"),
    DType("Float32", 32, "Float32", "F32", "float32", "float32"),
    DType("Complex64", 64, "Complex64", "C64", "complex64", "complex64", loads_from_ckpt=False),
    DType("Float64", 64, "Float64", "F64", "float64", "float64"),
    DType("Int64", 64, "Int64", "I64", "int64", "int64"),
    DType("UInt64", 64, "UInt64", "U64", "uint64", "uint64"),
)
_NOT_IN_SAFETENSORS = (
    DType("HiFloat8", 8, "HiFloat8", loads_from_ckpt=False),
    DType("complex32", 32, torch="complex32"),
    DType("bcomplex32", 32, torch="bcomplex32"),
    DType("Complex128", 128, "Complex128", torch="complex128", array="complex128", loads_from_ckpt=False),
)
# Two integers share a byte, and MindSpore counts bytes (mindspore.qint4x2). A safetensors file has I8, which also counts bytes,
# and lists the name in its metadata.
_PACKED = DType(INT4, 8, INT4, "I8", None, "int8")
# UTF-32. Shapes in this package count its characters. A safetensors file holds the code points.
_TEXT = DType(STRING, 32, STRING, "U32")

_OBJECT = DType(OBJECT, 8)

DTYPES: Mapping[str, DType] = MappingProxyType({d.name: d for d in (*_PLAIN, *_NOT_IN_SAFETENSORS, _PACKED, _TEXT, _OBJECT)})
BY_CKPT_NAME: Mapping[str, DType] = MappingProxyType({d.ckpt: d for d in DTYPES.values() if d.ckpt})
BY_SAFETENSORS_NAME: Mapping[str, DType] = MappingProxyType({d.safetensors: d for d in _PLAIN if d.safetensors})
BY_TORCH_NAME: Mapping[str, DType] = MappingProxyType({d.torch: d for d in DTYPES.values() if d.torch})
SAFETENSORS_ORDER: Mapping[str | None, int] = MappingProxyType({d.safetensors: i for i, d in enumerate(_PLAIN)})
