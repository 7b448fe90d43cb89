"""A key, read from where it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from reshard.errors import AccessError, MissingInputError, UsageError
from reshard.spec.keys import KEY_BYTES
from reshard.spec.urls import local_path

if TYPE_CHECKING:
    from reshard.spec.keys import Encryption, Key

# A file is read no further: nothing longer is a key.
_MOST_BYTES = max(max(lengths) for lengths in KEY_BYTES.values()) + 2


def read_key(encryption: Encryption) -> bytes:
    """The bytes of a key. One line end behind them is left out if they are of no right length otherwise.

    Raises:
        AccessError: the file may not be read.
        MissingInputError: there is no such file or variable.
        UsageError: there is no key of this length.
    """
    found, mode = _found(encryption.key), encryption.mode
    lengths = KEY_BYTES[mode]
    if len(found) not in lengths and len(found) - 1 in lengths and found.endswith(b"\n"):
        found = found[:-1]
    if len(found) not in lengths:
        *some, last = map(str, lengths)
        raise UsageError(
            "InvalidKey",
            f"it has {len(found) if len(found) < _MOST_BYTES else f'{_MOST_BYTES} or more'} bytes",
            where=_where(encryption.key),
            fix=f"{mode} takes {', '.join(some)}{' or ' if some else ''}{last}, as they are: neither hexadecimal nor base64",
        )
    return found


def _found(key: Key) -> bytes:
    if key.content is not None:
        return key.content
    if key.variable is not None:
        content = os.environb.get(os.fsencode(key.variable))
        if content is None:
            raise MissingInputError("KeyMissing", "it is not set", where=_where(key), fix="set it, or name another")
        return content
    try:
        with Path(local_path(key.file or "")).open("rb") as file:
            return file.read(_MOST_BYTES)
    except PermissionError as error:
        raise AccessError(
            "PermissionDenied", "the key may not be read", where=_where(key), fix="let this user read the file, or give another"
        ) from error
    except OSError as error:
        raise MissingInputError(
            "KeyMissing", f"the key cannot be read: {error.strerror}", where=_where(key), fix="give the file that holds it"
        ) from error


def _where(key: Key) -> str:
    return key.file or (f"environment variable {key.variable}" if key.variable else "key")
