"""The types of PyTorch's tensors: their size, and what safetensors calls them."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from reshard.checkpoint.dtypes import BY_SAFETENSORS_NAME
from reshard.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class TorchType:
    """One type.

    Attributes:
        name: torch's name, which is also that of numpy or ml_dtypes where they have the type.
        bits: size of one element, as shapes count elements.
        safetensors: its name in a safetensors file; None: that format does not have it.
        storage: the class of its storages in an archive. None: there is none, the archive states the type.
    """

    name: str
    bits: int
    safetensors: str | None
    storage: str | None = None


_ALL = (
    TorchType("bool", 8, "BOOL", "BoolStorage"),
    TorchType("uint8", 8, "U8", "ByteStorage"),
    TorchType("int8", 8, "I8", "CharStorage"),
    TorchType("int16", 16, "I16", "ShortStorage"),
    TorchType("int32", 32, "I32", "IntStorage"),
    TorchType("int64", 64, "I64", "LongStorage"),
    TorchType("float16", 16, "F16", "HalfStorage"),
    TorchType("bfloat16", 16, "BF16", "BFloat16Storage"),
    TorchType("float32", 32, "F32", "FloatStorage"),
    TorchType("float64", 64, "F64", "DoubleStorage"),
    TorchType("complex64", 64, "C64", "ComplexFloatStorage"),
    TorchType("complex128", 128, None, "ComplexDoubleStorage"),
    TorchType("complex32", 32, None),
    TorchType("bcomplex32", 32, None),
    TorchType("uint16", 16, "U16"),
    TorchType("uint32", 32, "U32"),
    TorchType("uint64", 64, "U64"),
    TorchType("float8_e4m3fn", 8, "F8_E4M3"),
    TorchType("float8_e4m3fnuz", 8, "F8_E4M3FNUZ"),
    TorchType("float8_e5m2", 8, "F8_E5M2"),
    TorchType("float8_e5m2fnuz", 8, "F8_E5M2FNUZ"),
    TorchType("float8_e8m0fnu", 8, "F8_E8M0"),
    # Two elements in a byte. A shape of torch counts bytes, one of safetensors elements.
    TorchType("float4_e2m1fn_x2", 8, "F4"),
)

TYPES: Mapping[str, TorchType] = MappingProxyType({found.name: found for found in _ALL})
BY_STORAGE: Mapping[str, TorchType] = MappingProxyType({found.storage: found for found in _ALL if found.storage})

_QUANTISED = "quantised tensors have a scale and a zero point that no other format holds"
_PACKED = "its elements share bytes in a way that torch does not state"
REFUSED: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("qint8", "quint8", "qint32"), _QUANTISED),
        **dict.fromkeys(("quint4x2", "quint2x4", "bits1x8", "bits2x4", "bits4x2", "bits8", "bits16"), _PACKED),
        **dict.fromkeys((f"{kind}{bits}" for kind in ("int", "uint") for bits in range(1, 8)), _PACKED),
    }
)


def torch_type(name: str, where: str) -> TorchType:
    """Return the type that torch calls `name`.

    Raises:
        DataError: it is not one that can be copied by element.
    """
    found = TYPES.get(name)
    if found is None:
        raise DataError(
            "UnknownType",
            f"torch's type {name} is not supported: {REFUSED.get(name, 'it is not known')}",
            where=where,
            fix="save the tensor with another type, or leave it out",
        )
    return found


def model_type(found: TorchType, where: str) -> str:
    """Return the name of a type in `reshard.checkpoint.dtypes`, as a `TensorMeta` has it.

    Raises:
        DataError: no format that Reshard writes has the type.
    """
    if found.safetensors is not None and found.safetensors in BY_SAFETENSORS_NAME:
        return BY_SAFETENSORS_NAME[found.safetensors].name
    if found.name == "complex128":
        return "Complex128"
    raise DataError(
        "UnknownType",
        f"torch's type {found.name} can be inspected, but no format that Reshard writes has it",
        where=where,
        fix="save the tensor with another type, or leave it out",
    )
