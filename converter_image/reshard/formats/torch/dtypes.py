"""The types of PyTorch's tensors: the classes of their storages, and those that cannot be copied."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from reshard.checkpoint.dtypes import BY_TORCH_NAME
from reshard.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reshard.checkpoint.dtypes import DType

# Class of the storages of a type. An archive has storages of bytes for other types, and states the type next to them.
STORAGES: Mapping[str, str] = MappingProxyType(
    {
        "bool": "BoolStorage",
        "uint8": "ByteStorage",
        "int8": "CharStorage",
        "int16": "ShortStorage",
        "int32": "IntStorage",
        "int64": "LongStorage",
        "float16": "HalfStorage",
        "bfloat16": "BFloat16Storage",
        "float32": "FloatStorage",
        "float64": "DoubleStorage",
        "complex64": "ComplexFloatStorage",
        "complex128": "ComplexDoubleStorage",
    }
)
BY_STORAGE: Mapping[str, DType] = MappingProxyType({storage: BY_TORCH_NAME[name] for name, storage in STORAGES.items()})

_QUANTISED = "quantised tensors have a scale and a zero point that no other format holds"
_PACKED = "its elements share bytes in a way that torch does not state"
REFUSED: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("qint8", "quint8", "qint32"), _QUANTISED),
        **dict.fromkeys(("quint4x2", "quint2x4", "bits1x8", "bits2x4", "bits4x2", "bits8", "bits16"), _PACKED),
        **dict.fromkeys((f"{kind}{bits}" for kind in ("int", "uint") for bits in range(1, 8)), _PACKED),
    }
)


def torch_type(name: str, where: str) -> DType:
    """Return the type with the PyTorch name `name`.

    Raises:
        DataError: it is not one that can be copied by element.
    """
    found = BY_TORCH_NAME.get(name)
    if found is None:
        raise DataError(
            "UnknownType",
            f"torch's type {name} is not supported: {REFUSED.get(name, 'it is not known')}",
            where=where,
            fix="exclude the tensor with --exclude (spec.parameters.exclude), or save it with another type",
        )
    return found
