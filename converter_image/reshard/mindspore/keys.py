"""MindSpore's way to give a key."""

from __future__ import annotations

from typing import cast

from reshard.spec.keys import Encryption, Key, Mode


def decryption_of(dec_key: bytes | None, dec_mode: str) -> Encryption | None:
    """How files are encrypted, by `dec_key` and `dec_mode`; None: they are not.

    Raises:
        UsageError: there is no such mode, or the key is none.
    """
    return None if dec_key is None else Encryption(Key(dec_key), cast("Mode", dec_mode))
