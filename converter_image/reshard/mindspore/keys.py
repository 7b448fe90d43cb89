"""Keys in the form that MindSpore's functions accept."""

from __future__ import annotations

from typing import cast

from reshard.spec.keys import Encryption, Key, Mode


def decryption_of(dec_key: bytes | None, dec_mode: str) -> Encryption | None:
    """Return the encryption for `dec_key` and `dec_mode`, or None if files are not encrypted.

    Raises:
        UsageError: the mode or the key is invalid.
    """
    return None if dec_key is None else Encryption(Key(dec_key), cast("Mode", dec_mode))
