"""Online load into a MindSpore network. Only functions that are used here import MindSpore."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from reshard.errors import RequestError
from reshard.online.load import iter_tensors

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reshard.checkpoint.arrays import Array
    from reshard.online.load import LoadOptions


def load_into_net(
    net: Any,  # noqa: ANN401 - objects of an optional package
    source: str,
    source_strategy: str | None = None,
    target_strategy: str | None = None,
    rank: int = 0,
    *,
    strict_load: bool = False,
    **how: Unpack[LoadOptions],
) -> tuple[list[str], list[str]]:
    """Load a rank directly from a source into a network, with MindSpore's `load_param_into_net`.

    Args:
        net: `mindspore.nn.Cell` to load into, as for a rank's checkpoint file. It may be compiled for parallel training.
        source: source of the load, see `reshard.iter_tensors`.
        source_strategy: source strategy, see `reshard.iter_tensors`.
        target_strategy: target strategy, see `reshard.iter_tensors`.
        rank: number of the target rank.
        strict_load: whether types must be equal, see MindSpore's documentation.
        how: other arguments of `reshard.iter_tensors`.

    Returns:
        The result of `load_param_into_net`: names of the network's parameters that were not loaded, and of tensors that it lacks.

    Raises:
        ReshardError: see `reshard.iter_tensors`. The network is unchanged.
        RuntimeError: MindSpore raises it for a parameter that does not match the network.
    """
    found = param_dict(iter_tensors(source, source_strategy, target_strategy, rank, **how))
    absent, unused = load_params(net, found, strict_load=strict_load)
    return list(absent), list(unused)


def load_params(
    net: Any,  # noqa: ANN401 - objects of MindSpore
    found: dict[str, Any],
    *,
    strict_load: bool,
    remove_redundancy: bool = False,
) -> Any:  # noqa: ANN401 - objects of MindSpore
    """Load parameters into a network with MindSpore's `load_param_into_net`, and return its result.

    Raises:
        RequestError: MindSpore is not installed.
        RuntimeError: MindSpore raises it for a parameter that does not match the network.
    """
    return _mindspore().load_param_into_net(net, found, strict_load, remove_redundancy)


def param_dict(tensors: Iterable[tuple[str, Array]]) -> dict[str, Any]:
    """Return a `mindspore.Parameter` for each tensor, as MindSpore's `load_checkpoint` does. Text is left out.

    Raises:
        RequestError: MindSpore is not installed, or does not support a type.
    """
    mindspore = _mindspore()
    return {
        name: mindspore.Parameter(_tensor(mindspore, name, array), name=name)
        for name, array in tensors
        if array.dtype.kind != "U"
    }


def _tensor(mindspore: Any, name: str, array: Array) -> Any:  # noqa: ANN401 - a mindspore.Tensor
    if array.dtype.name == "bfloat16":  # float32 represents all values of bfloat16, and one NaN
        return mindspore.Tensor(array.astype(np.float32)).astype(mindspore.bfloat16)
    if array.dtype.kind == "V":
        raise RequestError(
            "UnknownType",
            f"MindSpore cannot convert numpy's {array.dtype.name}",
            where=f"parameter {name}",
            fix="load the parameter with reshard.load instead",
        )
    return mindspore.Tensor.from_numpy(array)


def current_rank() -> int | None:
    """Return the rank of this process in MindSpore, or None if it runs alone, for which MindSpore returns 0."""
    communication = sys.modules.get("mindspore.communication")
    try:
        return int(communication.get_rank()) if communication and communication.get_group_size() > 1 else None
    except RuntimeError:
        return None


def _mindspore() -> Any:  # noqa: ANN401 - an optional package
    try:
        return import_module("mindspore")
    except ImportError as error:
        raise RequestError(
            "PackageMissing",
            "MindSpore is required to load a network, but is not installed",
            where="mindspore",
            fix="install MindSpore, or use reshard.load",
        ) from error
