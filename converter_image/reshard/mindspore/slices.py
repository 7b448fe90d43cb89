"""Join the slices of one parameter, by its strategy."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from reshard.errors import DataError, UsageError
from reshard.layout import cell_box
from reshard.mindspore.arguments import strategy_of
from reshard.mindspore.errors import documented
from reshard.source.strategies import read_strategy_files
from reshard.strategy import layout_message, layout_of, merge

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reshard.checkpoint.arrays import Array
    from reshard.layout import Layout


@documented()
def build_searched_strategy(strategy_filename: str) -> dict[str, Any] | None:
    """Read the layouts of a strategy file.

    Differences from MindSpore: also reads a folder with the files of all pipeline stages. A damaged file is an error.

    Args:
        strategy_filename: path of the file or the folder. None means that there is no strategy.

    Returns:
        Messages by parameter name, with `dev_matrix[0].dim`, `tensor_map`, `param_split_shape`, `field`, `opt_weight_shard_step`
        and `opt_weight_shard_size`. In files of several stages, names are `<stage>-<name>`.

    Raises:
        ReshardError: also a TypeError (the argument is not a path) or a ValueError (files are missing, damaged or contradictory).
    """
    path = strategy_of(strategy_filename, "strategy_filename")
    if path is None:
        return None
    files = read_strategy_files(path)
    found = files[0] if len(files) == 1 else merge(files)
    return {name: layout_message(layout) for name, layout in found.parameters.items()}


@documented()
def merge_sliced_parameter(sliced_parameters: list[Any], strategy: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401 - the type of the slices
    """Join the slices of one parameter.

    Differences from MindSpore: joins optimizer shards (MindSpore 2.10 returns a part of the parameter) and dimensions that
    several device axes split. BFloat16 remains BFloat16. Replicas that differ are an error. Slices may be numpy arrays.

    Args:
        sliced_parameters: `mindspore.Parameter` objects or numpy arrays, in the order of the ranks of the stage.
        strategy: layouts by parameter name, as `build_searched_strategy` returns them. None means that slices are concatenated
            along dimension 0. For numpy arrays, which have no name, it must have one entry.

    Returns:
        A `mindspore.Parameter`, or a numpy array if the slices are numpy arrays.

    Raises:
        ReshardError: also a TypeError (an argument is not a list of such objects or a dict), a KeyError (the strategy lacks the
            parameter) or a ValueError (slices do not match each other or the layout).
    """
    if not isinstance(sliced_parameters, list):
        raise _refused("InvalidType", f"{type(sliced_parameters).__name__} is not a list", "pass a list of slices")
    if not sliced_parameters:
        raise _refused("InvalidOption", "the list is empty", "pass the slices of all ranks of the stage")
    if strategy is not None and not isinstance(strategy, dict):
        raise UsageError(
            "InvalidType", "the strategy is not a dict", where="strategy", fix="pass the result of build_searched_strategy"
        )
    first = sliced_parameters[0]
    arrays = [_array(each, position, first) for position, each in enumerate(sliced_parameters)]
    name = None if isinstance(first, np.ndarray) else str(first.name)
    joined = _joined(arrays, _layout(strategy, name)) if strategy else _concatenated(arrays)
    if name is None:
        return joined
    mindspore = import_module("mindspore")
    tensor = mindspore.Tensor(joined).astype(first.dtype)  # BFloat16 is joined as Float32, which represents all its values
    return mindspore.Parameter(tensor, name, first.requires_grad, first.layerwise_parallel)


def _array(parameter: Any, position: int, first: Any) -> Array:  # noqa: ANN401 - any argument of a script
    """Return the content of a slice, which must have the kind, name and type of the first."""
    where = f"sliced_parameters[{position}]"
    if isinstance(first, np.ndarray) and isinstance(parameter, np.ndarray):
        if parameter.dtype != first.dtype:
            raise _refused(
                "SlicesDisagree", f"the slice has the type {parameter.dtype}, but the first slice has {first.dtype}", _ONE, where
            )
        return parameter
    if not (hasattr(parameter, "asnumpy") and hasattr(parameter, "name") and type(parameter) is type(first)):
        kind = type(parameter).__name__
        raise _refused("InvalidType", f"{kind} is not a Parameter or array of the same kind as the first slice", _ONE, where)
    if (parameter.name, parameter.dtype) != (first.name, first.dtype):
        what = f"the slice is {parameter.name} ({parameter.dtype}), but the first slice is {first.name} ({first.dtype})"
        raise _refused("SlicesDisagree", what, _ONE, where)
    if str(parameter.dtype) == "BFloat16":
        parameter = parameter.astype(import_module("mindspore").float32)
    found: Array = parameter.asnumpy()
    return found


def _layout(strategy: Mapping[str, Any], name: str | None) -> Layout:
    if name is None:
        if len(strategy) != 1:
            what = f"the strategy has {len(strategy)} layouts, but arrays have no name to select one"
            raise UsageError("InvalidOption", what, where="strategy", fix="pass a dict with only the layout of this parameter")
        (name,) = strategy
    if name not in strategy:
        raise UsageError(
            "NotInStrategy",
            "the strategy does not contain the parameter",
            where=f"parameter {name}",
            fix="pass a strategy that contains it",
        )
    serialize = getattr(strategy[name], "SerializeToString", None)
    if serialize is None:
        raise UsageError(
            "InvalidType",
            "the value is not a layout",
            where=f"strategy[{name!r}]",
            fix="pass the result of build_searched_strategy",
        )
    return layout_of(serialize(), name)


def _joined(arrays: list[Array], layout: Layout) -> Array:
    """Return the whole tensor from the slices of all ranks of a stage."""
    if len(arrays) != layout.devices:
        raise _refused(
            "SlicesMissing",
            f"the number of slices is {len(arrays)}, but the layout has {layout.devices} ranks",
            "pass one slice per rank",
        )
    shape = _one_shape(arrays)
    if len(shape) != layout.ndim:
        raise _refused(
            "SlicesDisagree", f"the number of dimensions is {layout.ndim} in the layout, but {len(shape)} in the slices", _ONE
        )
    whole = tuple(n * k for n, k in zip(shape, layout.parts, strict=True))
    joined = np.empty(whole, arrays[0].dtype)
    for cell, ranks in layout.holders.items():
        content = arrays[ranks[0]]
        for other in ranks[1:]:
            if arrays[other].tobytes() != content.tobytes():
                what = f"ranks {ranks[0]} and {other} hold the same slice, but their contents differ"
                raise DataError("ReplicasDiffer", what, where="sliced_parameters", fix="pass the slices of one training step")
        joined[cell_box(whole, layout.parts, cell).slices()] = content
    return joined


def _concatenated(arrays: list[Array]) -> Array:
    if not arrays[0].ndim or len({array.shape[1:] for array in arrays}) > 1:
        shapes = ", ".join(str(list(shape)) for shape in dict.fromkeys(array.shape for array in arrays))
        raise _refused("SlicesDisagree", f"slices of shapes {shapes} cannot be concatenated along dimension 0", _ONE)
    return np.concatenate(arrays)


def _one_shape(arrays: list[Array]) -> tuple[int, ...]:
    shapes: dict[tuple[int, ...], None] = dict.fromkeys(array.shape for array in arrays)
    if len(shapes) > 1:
        raise _refused("SlicesDisagree", f"the slices have different shapes: {', '.join(str(list(s)) for s in shapes)}", _ONE)
    return next(iter(shapes))


_ONE = "pass the slices of one parameter, one from each rank"


def _refused(reason: str, what: str, fix: str, where: str = "sliced_parameters") -> UsageError:
    return UsageError(reason, what, where=where, fix=fix)
