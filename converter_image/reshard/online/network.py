"""Online load into a network of MindSpore's. MindSpore is imported when this is used, and by nothing else of this package."""

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
    net: Any,  # noqa: ANN401 - of a package that need not be there
    source: str,
    source_strategy: str | None = None,
    target_strategy: str | None = None,
    rank: int = 0,
    *,
    strict_load: bool = False,
    **how: Unpack[LoadOptions],
) -> tuple[list[str], list[str]]:
    """Load what a rank gets straight from a source into a network, by MindSpore's `load_param_into_net`.

    Args:
        net: a `mindspore.nn.Cell`; compiled for parallel training or not, as one to load a rank's checkpoint file into.
        source: what `reshard.iter_tensors` takes by this name.
        source_strategy: what it takes by this name.
        target_strategy: what it takes by this name.
        rank: what it takes by this name.
        strict_load: whether types must be equal, see MindSpore's.
        how: all else that it takes.

    Returns:
        As `load_param_into_net`: the names of the network's parameters that were not loaded, and of those loaded that it lacks.

    Raises:
        ReshardError: of the kind that fits; the network is as it was then.
        RuntimeError: MindSpore's, of a parameter that does not fit the network.
    """
    found = param_dict(iter_tensors(source, source_strategy, target_strategy, rank, **how))
    absent, unused = load_params(net, found, strict_load=strict_load)
    return list(absent), list(unused)


def load_params(
    net: Any,  # noqa: ANN401 - MindSpore's
    found: dict[str, Any],
    *,
    strict_load: bool,
    remove_redundancy: bool = False,
) -> Any:  # noqa: ANN401 - MindSpore's
    """What MindSpore's `load_param_into_net` does and returns.

    Raises:
        RequestError: MindSpore is not installed.
        RuntimeError: MindSpore's, of a parameter that does not fit the network.
    """
    return _mindspore().load_param_into_net(net, found, strict_load, remove_redundancy)


def param_dict(tensors: Iterable[tuple[str, Array]]) -> dict[str, Any]:
    """A `mindspore.Parameter` of each tensor, as MindSpore's `load_checkpoint` gives them; of text none.

    Raises:
        RequestError: MindSpore is not installed, or has no such type.
    """
    mindspore = _mindspore()
    return {
        name: mindspore.Parameter(_tensor(mindspore, name, array), name=name)
        for name, array in tensors
        if array.dtype.kind != "U"
    }


def _tensor(mindspore: Any, name: str, array: Array) -> Any:  # noqa: ANN401 - a mindspore.Tensor
    if array.dtype.name == "bfloat16":  # float32 holds all its values, and has one NaN
        return mindspore.Tensor(array.astype(np.float32)).astype(mindspore.bfloat16)
    if array.dtype.kind == "V":
        raise RequestError(
            "UnknownType",
            f"MindSpore cannot convert numpy's {array.dtype.name}",
            where=f"parameter {name}",
            fix="exclude the parameter, or use reshard.load",
        )
    return mindspore.Tensor.from_numpy(array)


def current_rank() -> int | None:
    """Return the rank of this process as MindSpore knows it; None: it runs alone, for which MindSpore says 0."""
    communication = sys.modules.get("mindspore.communication")
    try:
        return int(communication.get_rank()) if communication and communication.get_group_size() > 1 else None
    except RuntimeError:
        return None


def _mindspore() -> Any:  # noqa: ANN401 - the package
    try:
        return import_module("mindspore")
    except ImportError as error:
        raise RequestError(
            "PackageMissing",
            "MindSpore is required to load a network, but not installed",
            where="mindspore",
            fix="install MindSpore, or use reshard.load",
        ) from error
