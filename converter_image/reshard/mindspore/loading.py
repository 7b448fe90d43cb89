"""Load the parameters of one file, or of the files of one rank, into memory or a network."""

from __future__ import annotations

import sys
from io import BytesIO
from typing import TYPE_CHECKING, Any

from reshard.checkpoint import format_of
from reshard.errors import MissingInputError, UsageError
from reshard.mindspore.arguments import decryption_of, path_of
from reshard.mindspore.errors import documented
from reshard.online.network import load_params, param_dict
from reshard.online.segments import read_file, read_segments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from reshard.checkpoint.arrays import Array

Prefixes = str | list[str] | tuple[str, ...] | None


@documented()
def load_checkpoint(
    ckpt_file_name: str | BytesIO,
    net: Any = None,  # noqa: ANN401 - a mindspore.nn.Cell
    strict_load: bool = False,
    filter_prefix: Prefixes = None,
    dec_key: bytes | None = None,
    dec_mode: str = "AES-GCM",
    specify_prefix: Prefixes = None,
    choice_func: Callable[[str], bool] | None = None,
    crc_check: bool = False,
    remove_redundancy: bool = False,
    format: str = "ckpt",  # noqa: A002 - MindSpore's name
) -> dict[str, Any]:
    """Load one checkpoint file.

    Differences from MindSpore: works without MindSpore. Prefixes apply to safetensors too. Memory is limited to the requested
    parameters. Types that MindSpore writes but cannot load are returned as numpy arrays unless MindSpore is imported.

    Args:
        ckpt_file_name: path of the file, or content of a safetensors file.
        net: network to load into, with MindSpore's `load_param_into_net`.
        strict_load: whether types must be equal in the network.
        filter_prefix: prefixes of the names of parameters that are left out.
        dec_key: key of an encrypted file.
        dec_mode: "AES-GCM", "AES-CBC" or "SM4-CBC".
        specify_prefix: prefixes of the names of parameters that are loaded.
        choice_func: function that returns, for a name, whether to load the parameter. It is used if neither prefix is set.
        crc_check: whether to compare the content with the CRC32 in the file. A file without one causes a warning.
        remove_redundancy: whether ranks share their parameters, for `load_param_into_net`.
        format: "ckpt" or "safetensors". The name of the file must have this suffix.

    Returns:
        Parameters by name: `mindspore.Parameter` objects if the script has imported MindSpore or passes a network, otherwise
        numpy arrays (BFloat16 from ml_dtypes). Text is `str`.

    Raises:
        ReshardError: also a TypeError (an argument is not a path) or a ValueError (a file is missing, damaged, or has another
            format, or no parameter matches).
    """
    if format not in ("ckpt", "safetensors"):
        what = f"{format!r} is neither 'ckpt' nor 'safetensors'"
        raise UsageError("InvalidFormat", what, where="format", fix="pass one of these formats")
    source: str | BytesIO
    if isinstance(ckpt_file_name, BytesIO):
        source, where = ckpt_file_name, "ckpt_file_name"
        matches = format == "safetensors"
    else:
        source = where = path_of(ckpt_file_name, "ckpt_file_name")
        matches = format_of(where) == format
    if not matches:
        fix = "pass the format of the file; only safetensors can be read from memory"
        raise UsageError("InvalidFormat", f"the file name does not match the format {format}", where=where, fix=fix)
    wanted = _wanted(filter_prefix, specify_prefix, choice_func)
    found = read_file(source, wanted, crc_check=crc_check, decryption=decryption_of(dec_key, dec_mode))
    return _loaded(found, where, net, strict_load=strict_load, remove_redundancy=remove_redundancy)


@documented()
def load_segmented_checkpoints(
    ckpt_file_dir: str,
    net: Any = None,  # noqa: ANN401 - a mindspore.nn.Cell
    strict_load: bool = False,
    filter_prefix: Prefixes = None,
    dec_key: bytes | None = None,
    dec_mode: str = "AES-GCM",
    specify_prefix: Prefixes = None,
    choice_func: Callable[[str], bool] | None = None,
) -> dict[str, Any]:
    """Load all checkpoint files of one folder, such as `rank_0/` with one file per pipeline stage.

    Differences from MindSpore: reads safetensors too. If several files hold a parameter, the one with the lowest number is used.
    If no manifest lists the files, copies of small parameters, such as `global_step`, are compared.

    Args:
        ckpt_file_dir: path of the folder.
        net: network to load into, with MindSpore's `load_param_into_net`.
        strict_load: whether types must be equal in the network.
        filter_prefix: prefixes of the names of parameters that are left out.
        dec_key: key of encrypted files.
        dec_mode: "AES-GCM", "AES-CBC" or "SM4-CBC".
        specify_prefix: prefixes of the names of parameters that are loaded.
        choice_func: function that returns, for a name, whether to load the parameter. It is used if neither prefix is set.

    Returns:
        Parameters by name, like `load_checkpoint`.

    Raises:
        ReshardError: also a TypeError (an argument is not a path) or a ValueError (files are missing or damaged, copies
            differ, or no parameter matches).
    """
    folder = path_of(ckpt_file_dir, "ckpt_file_dir")
    wanted = _wanted(filter_prefix, specify_prefix, choice_func)
    return _loaded(
        read_segments(folder, wanted, decryption=decryption_of(dec_key, dec_mode)), folder, net, strict_load=strict_load
    )


def _wanted(without: Prefixes, only: Prefixes, choice: Callable[[str], bool] | None) -> Callable[[str], bool]:
    """Return a function that selects names by two lists of prefixes or, if neither is set, by a function."""
    left_out, chosen = _prefixes(without, "filter_prefix"), _prefixes(only, "specify_prefix")
    if choice is not None and not (left_out or chosen):
        return choice
    return lambda name: name.startswith(chosen or ("",)) and not (left_out and name.startswith(left_out))


def _prefixes(given: Prefixes, where: str) -> tuple[str, ...]:
    if given is not None and not isinstance(given, str | list | tuple):
        raise UsageError(
            "InvalidType",
            f"{given!r:.100} is neither a string nor a list",
            where=where,
            fix="pass a prefix or a list of prefixes",
        )
    prefixes = (given,) if isinstance(given, str) else tuple(given or ())
    if not all(isinstance(prefix, str) for prefix in prefixes):
        raise UsageError("InvalidType", "a prefix is not a string", where=where, fix="pass a prefix or a list of prefixes")
    if "" in prefixes or (given is not None and not prefixes):
        raise UsageError("InvalidOption", "a prefix or the list of prefixes is empty", where=where, fix="omit the argument")
    return prefixes


def _loaded(
    tensors: Iterable[tuple[str, Array]],
    where: str,
    net: Any,  # noqa: ANN401 - a mindspore.nn.Cell
    *,
    strict_load: bool,
    remove_redundancy: bool = False,
) -> dict[str, Any]:
    """Return the tensors, as parameters if MindSpore is imported, and load them into the network if one is passed."""
    found: dict[str, Any] = {name: array.item() if array.dtype.kind == "U" else array for name, array in tensors}
    if not found:
        raise MissingInputError(
            "NothingToLoad",
            "no file contains any of the requested parameters",
            where=where,
            fix="list the parameters with `reshard inspect`",
        )
    if net is not None or "mindspore" in sys.modules:
        found |= param_dict((name, value) for name, value in found.items() if not isinstance(value, str))
    if net is not None:
        load_params(net, found, strict_load=strict_load, remove_redundancy=remove_redundancy)
    return found
