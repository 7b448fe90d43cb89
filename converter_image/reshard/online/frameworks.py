"""Tensors that a load returns: numpy arrays, or torch tensors over the same memory. torch is imported on first use."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from reshard.checkpoint.arrays import array_of, array_type
from reshard.checkpoint.dtypes import DTYPES, STRING
from reshard.errors import RequestError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from reshard.checkpoint.arrays import Array

Framework: TypeAlias = Literal["numpy", "torch"]
# Makes a tensor from its row-major bytes and its shape in elements.
Maker: TypeAlias = "Callable[[Array, tuple[int, ...]], Any]"


def tensor_maker(framework: Framework, dtype: str, name: str) -> Maker:
    """Return the function that makes a tensor over its bytes without copying them. For errors, see `type_in`.

    Args:
        framework: framework of the tensor.
        dtype: type of the tensor, see `reshard.checkpoint.dtypes`.
        name: name of the parameter, for messages.
    """
    if framework == "numpy" and dtype == STRING:
        return lambda content, shape: array_of(content, dtype, shape, name)
    found = type_in(framework, dtype, name)
    if framework == "torch":
        return partial(_torch_tensor, _torch(), found)
    return lambda content, shape: content.view(found).reshape(shape)


def type_in(framework: Framework, dtype: str, name: str) -> Any:  # noqa: ANN401 - a numpy.dtype or torch.dtype
    """Return a framework's type.

    Args:
        framework: the framework.
        dtype: type of a tensor, see `reshard.checkpoint.dtypes`.
        name: name of the parameter, for messages.

    Raises:
        DataError: neither numpy nor ml_dtypes supports the type.
        RequestError: torch is not installed, or does not support the type.
        UsageError: the framework is unknown.
    """
    if framework == "torch":
        return _torch_type(_torch(), dtype, name)
    if framework != "numpy":
        raise UsageError("InvalidOption", f"{framework!r} is not supported", where="framework", fix="use numpy or torch")
    return array_type(dtype, name)


def _torch_tensor(torch: Any, dtype: Any, content: Array, shape: tuple[int, ...]) -> Any:  # noqa: ANN401 - an optional package
    # frombuffer keeps a reference to the array, and refuses empty ones.
    return torch.frombuffer(content, dtype=dtype).reshape(shape) if content.size else torch.empty(shape, dtype=dtype)


def _torch_type(torch: Any, dtype: str, name: str) -> Any:  # noqa: ANN401 - an optional package
    known = DTYPES[dtype].torch
    found = None if known is None else getattr(torch, known, None)
    if found is not None:
        return found
    if known is None:
        what, newer = f"torch has no type for {dtype}", ""
    else:
        what, newer = f"the installed version of torch ({torch.__version__}) has no type {known}", "install a newer version, "
    numpy = 'load numpy arrays with framework="numpy", or ' if DTYPES[dtype].array or dtype == STRING else ""
    fix = f"{newer}{numpy}exclude the parameter with exclude=({name!r},)"
    raise RequestError("UnknownType", what, where=f"parameter {name}", fix=fix)


def _torch() -> Any:  # noqa: ANN401 - an optional package
    try:
        return import_module("torch")
    except ImportError as error:
        raise RequestError(
            "PackageMissing",
            "PyTorch is required to load torch tensors, but is not installed",
            where="torch",
            fix='install PyTorch, or load numpy arrays with framework="numpy"',
        ) from error
