"""Tensor contents as numpy arrays. ml_dtypes provides the types that numpy lacks, and is imported on first use."""

from __future__ import annotations

from importlib import import_module
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from reshard.checkpoint.dtypes import DTYPES, STRING
from reshard.errors import DataError

if TYPE_CHECKING:
    Array = np.ndarray[Any, np.dtype[Any]]

_IN_ML_DTYPES = ("bfloat16", "float8")
_LAST_CODE_POINT = 0x10FFFF


def array_type(dtype: str, name: str = "") -> np.dtype[Any]:
    """Return the numpy type of a checkpoint's type, in the byte order of this machine and of the files (little-endian).

    Args:
        dtype: name of the type in `reshard.checkpoint.dtypes`.
        name: name of the parameter, for messages.

    Raises:
        DataError: neither numpy nor ml_dtypes supports the type.
    """
    array = DTYPES[dtype].array
    if array is None:
        raise DataError(
            "UnknownType",
            f"the type {dtype} has no equivalent in numpy or ml_dtypes",
            where=f"parameter {name}" if name else dtype,
            fix="exclude the parameter",
        )
    found: np.dtype[Any] = np.dtype(getattr(import_module("ml_dtypes"), array) if array.startswith(_IN_ML_DTYPES) else array)
    return found


def array_of(content: Array | bytearray | bytes | memoryview, dtype: str, shape: tuple[int, ...], name: str = "") -> Array:
    """Return an array over the bytes of a tensor without copying them.

    Text becomes an array without dimensions. `array.item()` returns the string, without the NUL characters at its end, which
    numpy does not keep.

    Args:
        content: contiguous, row-major bytes, as many as the shape requires. The array is writable if they are.
        dtype: type of the checkpoint.
        shape: lengths in elements. For text: the number of UTF-32 characters.
        name: name of the parameter, for messages.

    Raises:
        DataError: the content is not valid text, or the type is not supported; see `array_type`.
    """
    if dtype != STRING:
        return np.frombuffer(content, array_type(dtype, name)).reshape(shape)
    length = prod(shape)
    if not length:
        return np.zeros((), "<U1")
    if np.frombuffer(content, "<u4").max() > _LAST_CODE_POINT:
        raise DataError(
            "TextInvalid",
            "the content is not valid UTF-32 text",
            where=f"parameter {name}",
            fix="the file is damaged; restore it",
        )
    return np.frombuffer(content, f"<U{length}").reshape(())
