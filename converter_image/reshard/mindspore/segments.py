"""The files of one rank, read as one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from reshard.errors import MissingInputError, UsageError
from reshard.mindspore.keys import decryption_of
from reshard.online.network import load_params, param_dict
from reshard.online.segments import read_segments

if TYPE_CHECKING:
    from collections.abc import Callable


def load_segmented_checkpoints(
    ckpt_file_dir: str,
    net: Any = None,  # noqa: ANN401 - a mindspore.nn.Cell
    strict_load: bool = False,
    filter_prefix: str | list[str] | tuple[str, ...] | None = None,
    dec_key: bytes | None = None,
    dec_mode: str = "AES-GCM",
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
        dec_key: the key of encrypted files.
        dec_mode: "AES-GCM", "AES-CBC" or "SM4-CBC".
        specify_prefix: the beginning of the names of parameters that are read, without others.
        choice_func: told a name, whether that parameter is read; asked if neither prefix is given.

    Returns:
        By name a `mindspore.Parameter` where the script has imported MindSpore or gives a network, else a numpy array (BFloat16
        by ml_dtypes); and text as `str`.

    Raises:
        ReshardError: of the kind that fits.
    """
    only, without = _prefixes(specify_prefix), _prefixes(filter_prefix)
    chosen = choice_func if choice_func is not None and not (only or without) else lambda _: True
    found = {
        name: array.item() if array.dtype.kind == "U" else array
        for name, array in read_segments(
            ckpt_file_dir,
            lambda name: name.startswith(only or ("",)) and not (without and name.startswith(without)) and chosen(name),
            decryption=decryption_of(dec_key, dec_mode),
        )
    }
    if not found:
        raise MissingInputError(
            "NothingToLoad",
            "no file has a parameter that was asked for",
            where=ckpt_file_dir,
            fix="take the names from reshard inspect",
        )
    if net is not None or "mindspore" in sys.modules:
        found |= param_dict((name, value) for name, value in found.items() if not isinstance(value, str))
    if net is not None:
        load_params(net, found, strict_load=strict_load)
    return found


def _prefixes(given: str | list[str] | tuple[str, ...] | None) -> tuple[str, ...]:
    prefixes = (given,) if isinstance(given, str) else tuple(given or ())
    if "" in prefixes:
        raise UsageError("InvalidOption", "a prefix is empty", where="filter_prefix or specify_prefix", fix="leave it out")
    return prefixes
