"""The memory that a load fills: new arrays, or buffers of the caller, which are checked before anything is read into them."""

from __future__ import annotations

import ctypes
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from reshard.checkpoint.dtypes import STRING
from reshard.errors import RequestError, UsageError
from reshard.online.frameworks import tensor_maker, type_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from reshard.checkpoint.arrays import Array
    from reshard.online.frameworks import Framework
    from reshard.plan import RankPlan

    # Buffers by name, or a function of the name, the shape and the framework's type of a tensor that returns a buffer.
    Buffers: TypeAlias = Mapping[str, Any] | Callable[[str, tuple[int, ...], Any], Any]

# Devices of DLPack (dlpack.h, DLDeviceType) whose memory a processor can write: CPU, pinned for CUDA, pinned for ROCm.
_HOST = (1, 3, 11)


class Place(NamedTuple):
    """The memory of one tensor.

    Attributes:
        content: the memory, as a contiguous array of bytes.
        tensor: function that returns the tensor, when its content is complete.
    """

    content: Array
    tensor: Callable[[], Any]


def new_places(plan: RankPlan, framework: Framework) -> Iterator[Place]:
    """Return new memory for each tensor of a plan. It is allocated when the iterator arrives there.

    Raises:
        DataError, RequestError, UsageError: see `reshard.online.frameworks.type_in`. Nothing was allocated.
    """
    makers = [tensor_maker(framework, each.target_dtype, each.name) for each in plan.parameters]

    def allocated() -> Iterator[Place]:
        for number, make in enumerate(makers):
            content, shape = np.empty(int(plan.ends[number + 1] - plan.ends[number]), np.uint8), _shape(plan, number)
            yield Place(content, lambda make=make, content=content, shape=shape: make(content, shape))  # type: ignore[misc]  # mypy does not infer the type of a lambda with defaults

    return allocated()


def given_places(plan: RankPlan, framework: Framework, buffers: Buffers) -> Iterator[Place]:
    """Return the memory of the caller's buffer for each tensor of a plan. A function is called when the iterator arrives there.

    Raises:
        DataError, RequestError, UsageError: a buffer is missing or does not fit its tensor, or no buffer can have the type.
    """
    for parameter in plan.parameters:
        if parameter.target_dtype == STRING:
            raise RequestError(
                "UnknownType",
                "text cannot be loaded into a buffer",
                where=f"parameter {parameter.name}",
                fix=f"exclude the parameter with exclude=({parameter.name!r},), or load it without out",
            )
        if callable(buffers):  # a mapping may contain types of another framework
            type_in(framework, parameter.target_dtype, parameter.name)
    if callable(buffers):
        return (
            _place(plan, number, buffers(each.name, _shape(plan, number), type_in(framework, each.target_dtype, each.name)))
            for number, each in enumerate(plan.parameters)
        )
    names = {parameter.name for parameter in plan.parameters}
    for name in buffers:
        if name not in names:
            raise UsageError(
                "BufferUnused",
                "out contains a buffer for this name, but the rank has no such tensor",
                where=f"parameter {name}",
                fix="remove the buffer",
            )
    for name in names:
        if name not in buffers:
            raise UsageError(
                "BufferMissing",
                "out does not contain a buffer for this tensor",
                where=f"parameter {name}",
                fix=f"add a buffer, or exclude the parameter with exclude=({name!r},)",
            )
    places = [_place(plan, number, buffers[each.name]) for number, each in enumerate(plan.parameters)]
    check_apart(plan, places)
    return iter(places)


def check_apart(plan: RankPlan, places: Iterable[Place]) -> None:
    """Check that no two tensors have common memory.

    Raises:
        UsageError: two have.
    """
    ranges = sorted(
        (place.content.ctypes.data, place.content.nbytes, parameter.name)
        for place, parameter in zip(places, plan.parameters, strict=True)
        if place.content.nbytes
    )
    for (start, nbytes, name), (other, _, other_name) in pairwise(ranges):
        if start + nbytes > other:
            raise _unfit(other_name, f"shares memory with the buffer of {name}", "pass separate buffers")


def _place(plan: RankPlan, number: int, buffer: Any) -> Place:  # noqa: ANN401 - of any framework
    parameter = plan.parameters[number]
    return Place(content_of(buffer, parameter.target_dtype, _shape(plan, number), parameter.name), lambda: buffer)


def content_of(buffer: Any, dtype: str, shape: tuple[int, ...], name: str) -> Array:  # noqa: ANN401 - of any framework
    """Return the memory of a buffer as a contiguous array of bytes, which keeps the buffer alive.

    Args:
        buffer: numpy array, torch tensor, or object that exports host memory with DLPack.
        dtype: type of the tensor, see `reshard.checkpoint.dtypes`.
        shape: shape of the tensor in elements.
        name: name of the parameter, for messages.

    Raises:
        DataError, RequestError: the framework of the buffer does not support the type.
        UsageError: the buffer has another shape or type, or cannot be written.
    """
    torch = sys.modules.get("torch")  # a tensor exists only if its package has been imported
    if torch is not None and isinstance(buffer, getattr(torch, "Tensor", ())):
        return _content_of_torch(torch, buffer, type_in("torch", dtype, name), shape, name)
    array = buffer if isinstance(buffer, np.ndarray) else _imported(buffer, name)
    _check_kind(array.dtype, array.shape, type_in("numpy", dtype, name), shape, name)
    if not array.flags.c_contiguous:
        raise _unfit(name, "is not contiguous in row-major order", "pass a contiguous buffer")
    if not array.flags.writeable:
        raise _unfit(name, "is read-only", "pass a writable numpy array or a torch tensor")
    return array.reshape(-1).view(np.uint8)


def _content_of_torch(torch: Any, tensor: Any, dtype: Any, shape: tuple[int, ...], name: str) -> Array:  # noqa: ANN401 - an optional package
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        kind = type(tensor).__name__
        raise _unfit(name, f"is a {kind}", "pass a plain tensor, such as tensor.to_local() of a DTensor")
    if tensor.device.type != "cpu":
        raise _unfit(name, f"is on the device {tensor.device}", "pass a tensor in host memory, which may be pinned")
    _check_kind(tensor.dtype, tuple(tensor.shape), dtype, shape, name)
    if tensor.layout != torch.strided or not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
        raise _unfit(name, "is not contiguous in row-major order", "pass tensor.contiguous()")
    nbytes = tensor.numel() * tensor.element_size()
    if tensor.untyped_storage().nbytes() < nbytes:
        raise _unfit(name, "has no memory", "pass a tensor with memory")
    if not nbytes:
        return np.empty(0, np.uint8)
    memory = (ctypes.c_uint8 * nbytes).from_address(tensor.data_ptr())
    memory._tensor = tensor  # noqa: SLF001 - keeps the memory alive
    return np.frombuffer(memory, np.uint8)


def _imported(buffer: Any, name: str) -> Array:  # noqa: ANN401 - of any framework
    """Return a numpy array over memory that is exported with DLPack."""
    if not (hasattr(buffer, "__dlpack__") and hasattr(buffer, "__dlpack_device__")):
        raise _unfit(
            name, f"is a {type(buffer).__name__}", "pass a numpy array, a torch tensor, or an object that supports DLPack"
        )
    device, number = buffer.__dlpack_device__()
    if device not in _HOST:
        raise _unfit(
            name, f"is on a device (DLPack type {int(device)}, number {number})", "pass host memory, which may be pinned"
        )
    try:
        return np.from_dlpack(buffer)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise _unfit(name, f"cannot be imported with DLPack: {error}", "pass a numpy array or a torch tensor") from error


def _check_kind(found: object, found_shape: tuple[int, ...], dtype: object, shape: tuple[int, ...], name: str) -> None:
    if found_shape != shape:
        raise _unfit(name, f"has the shape {list(found_shape)}, but the tensor has {list(shape)}", "pass a buffer of this shape")
    if found != dtype:
        raise _unfit(name, f"has the type {found}, but the tensor has {dtype}", "pass a buffer of this type, or use cast")


def _shape(plan: RankPlan, number: int) -> tuple[int, ...]:
    shape: tuple[int, ...] = plan.groups[plan.group_of[number]].geometry.box.shape
    return shape


def _unfit(name: str, what: str, fix: str) -> UsageError:
    return UsageError("BufferInvalid", f"the buffer {what}", where=f"parameter {name}", fix=fix)
