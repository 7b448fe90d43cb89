"""The files of one rank, read as one."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from reshard.errors import MissingInputError, UsageError
from reshard.segments import read_segments

if TYPE_CHECKING:
    from collections.abc import Callable

    from reshard.arrays import Array


def load_segmented_checkpoints(
    ckpt_file_dir: str,
    net: Any = None,  # noqa: ANN401 - a mindspore.nn.Cell
    strict_load: bool = False,
    filter_prefix: str | list[str] | tuple[str, ...] | None = None,
    dec_key: bytes | None = None,
    dec_mode: str = "AES-GCM",  # noqa: ARG001 - it goes with the key
    specify_prefix: str | list[str] | tuple[str, ...] | None = None,
    choice_func: Callable[[str], bool] | None = None,
) -> dict[str, Any]:
    """Read all checkpoint files of one folder, such as `rank_0/` with the part of each pipeline stage.

    Unlike MindSpore's: safetensors too; of a parameter that several files hold the first counts, in the order of their numbers.

    Args:
        ckpt_file_dir: the folder.
        net: the network to load into, by MindSpore's `load_param_into_net`.
        strict_load: whether types must be equal there.
        filter_prefix: parameters whose names begin so are left out.
        dec_key: is refused.
        dec_mode: goes with it.
        specify_prefix: only parameters whose names begin so are read.
        choice_func: only parameters are read for whose names it is true; if neither prefix is given.

    Returns:
        By name a `mindspore.Parameter` where the script has imported MindSpore or gives a network, else a numpy array (BFloat16
        by ml_dtypes); and text as `str`.

    Raises:
        ReshardError: of the kind that fits.
    """
    if dec_key is not None:
        raise UsageError("InvalidOption", "encrypted files cannot be read", where="dec_key", fix="decrypt them with MindSpore")
    only, without = _prefixes(specify_prefix), _prefixes(filter_prefix)
    chosen = choice_func if choice_func is not None and not (only or without) else lambda _: True
    found = {
        name: array.item() if array.dtype.kind == "U" else array
        for name, array in read_segments(
            ckpt_file_dir,
            lambda name: name.startswith(only or ("",)) and not (without and name.startswith(without)) and chosen(name),
        )
    }
    if not found:
        raise MissingInputError("NothingToLoad", "no file has a parameter that was asked for", where=ckpt_file_dir)
    package = import_module("mindspore") if net is not None else sys.modules.get("mindspore")
    if package is not None:
        found = {name: value if isinstance(value, str) else _parameter(package, name, value) for name, value in found.items()}
    if net is not None and package is not None:
        package.load_param_into_net(net, found, strict_load)
    return found


def _prefixes(given: str | list[str] | tuple[str, ...] | None) -> tuple[str, ...]:
    prefixes = (given,) if isinstance(given, str) else tuple(given or ())
    if "" in prefixes:
        raise UsageError("InvalidOption", "a prefix is empty", where="filter_prefix or specify_prefix", fix="leave it out")
    return prefixes


def _parameter(mindspore: Any, name: str, array: Array) -> Any:  # noqa: ANN401 - of a package that need not be there
    """BFloat16 goes through float32, which holds all its values."""
    if array.dtype.name != "bfloat16":
        return mindspore.Parameter(mindspore.Tensor.from_numpy(array), name=name)
    return mindspore.Parameter(mindspore.Tensor(array.astype("float32")).astype(mindspore.bfloat16), name=name)
