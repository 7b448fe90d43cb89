"""Keys and modes of encrypted files, by their names. Shared by oracle.py and the tests."""

from __future__ import annotations

import re

MODES = {"AES-GCM": (16, 24, 32), "AES-CBC": (16, 24, 32), "SM4-CBC": (16,)}
CASES = [(mode, length) for mode, lengths in MODES.items() for length in lengths]


def key(length: int) -> bytes:
    """Return a key that contains a line end and bytes that are not text."""
    return b"\xff\x00\n" + bytes(range(3, length))


def encryption(name: str) -> tuple[str, int] | None:
    """Mode and length of the key of a file that is named <mode>.<length>..."""
    found = re.match(r"(AES-GCM|AES-CBC|SM4-CBC)\.(\d+)", name)
    return (found[1], int(found[2])) if found else None
