"""Read a key from a file, an environment variable or memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from reshard.errors import AccessError, MissingInputError, UsageError
from reshard.spec.keys import KEY_BYTES
from reshard.spec.urls import local_path

if TYPE_CHECKING:
    from reshard.spec.keys import Encryption, Key

# Maximum number of bytes read from a file. No key is longer.
_MOST_BYTES = max(max(lengths) for lengths in KEY_BYTES.values()) + 2


def read_key(encryption: Encryption) -> bytes:
    """Return the bytes of a key. A line ending after the key is removed if the key would have an invalid length otherwise.

    Raises:
        AccessError: permission to read the file is denied.
        MissingInputError: the file or variable does not exist.
        UsageError: the key has an invalid length.
    """
    found, mode = _found(encryption.key), encryption.mode
    lengths = KEY_BYTES[mode]
    if len(found) not in lengths and len(found) - 1 in lengths and found.endswith(b"\n"):
        found = found[:-1]
    if len(found) not in lengths:
        *some, last = map(str, lengths)
        raise UsageError(
            "InvalidKey",
            f"the key has {len(found) if len(found) < _MOST_BYTES else f'{_MOST_BYTES} or more'} bytes",
            where=_where(encryption.key),
            fix=f"{mode} requires {', '.join(some)}{' or ' if some else ''}{last} raw bytes, not hexadecimal or base64 text",
        )
    return found


def _found(key: Key) -> bytes:
    if key.content is not None:
        return key.content
    if key.variable is not None:
        content = os.environb.get(os.fsencode(key.variable))
        if content is None:
            raise MissingInputError(
                "KeyMissing", "the variable is not set", where=_where(key), fix="set the variable, or specify another one"
            )
        return content
    try:
        with Path(local_path(key.file or "")).open("rb") as file:
            return file.read(_MOST_BYTES)
    except PermissionError as error:
        raise AccessError(
            "PermissionDenied",
            "permission to read the key file was denied",
            where=_where(key),
            fix="allow this user to read the file, or specify another file",
        ) from error
    except OSError as error:
        raise MissingInputError(
            "KeyMissing",
            f"the key cannot be read: {error.strerror}",
            where=_where(key),
            fix="specify a file that contains the key",
        ) from error


def _where(key: Key) -> str:
    return key.file or (f"environment variable {key.variable}" if key.variable else "key")
