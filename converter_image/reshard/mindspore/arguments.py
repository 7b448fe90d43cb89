"""Checks and conversions of arguments that several of MindSpore's functions accept."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

from reshard.errors import UsageError
from reshard.spec.keys import Encryption, Key, Mode

if TYPE_CHECKING:
    from collections.abc import Mapping


def path_of(value: Any, name: str) -> str:  # noqa: ANN401 - any argument of a script
    """Return a path as text.

    Raises:
        UsageError: the value is neither text nor a path.
    """
    if isinstance(value, str | os.PathLike):
        found = os.fspath(value)
        if isinstance(found, str):
            return found
    raise _wrong(value, name, "a path")


def strategy_of(value: Any, name: str) -> str | None:  # noqa: ANN401 - any argument of a script
    """Return the path of a strategy as text, or None if there is no strategy.

    Raises:
        UsageError: the value is neither text nor a path.
    """
    return None if value is None else path_of(value, name)


def rank_of(value: Any, name: str) -> int:  # noqa: ANN401 - any argument of a script
    """Return the number of a rank.

    Raises:
        UsageError: the value is not an integer.
    """
    if hasattr(value, "__index__") and not isinstance(value, bool):
        return int(value.__index__())
    raise _wrong(value, name, "an integer")


def files_of(value: Any, name: str) -> Mapping[int, str]:  # noqa: ANN401 - any argument of a script
    """Return files by rank.

    Raises:
        UsageError: the value is not a dict of integers and paths.
    """
    if not isinstance(value, dict):
        raise _wrong(value, name, "a dict from ranks to files")
    return {rank_of(rank, name): path_of(path, name) for rank, path in value.items()}


def workers_of(value: Any, name: str) -> int:  # noqa: ANN401 - any argument of a script
    """Return the number of concurrent tasks.

    Raises:
        UsageError: the value is not an integer greater than 0.
    """
    found = rank_of(value, name)
    if found < 1:
        raise UsageError("InvalidOption", f"{found} is less than 1", where=name, fix="pass 1 or more")
    return found


def decryption_of(dec_key: bytes | None, dec_mode: str) -> Encryption | None:
    """Return the encryption for `dec_key` and `dec_mode`, or None if files are not encrypted.

    Raises:
        UsageError: the mode or the key is invalid.
    """
    return None if dec_key is None else Encryption(Key(dec_key), cast("Mode", dec_mode))


def _wrong(value: object, name: str, wanted: str) -> UsageError:
    return UsageError("InvalidType", f"{value!r:.100} is not {wanted}", where=name, fix=f"pass {wanted}")
