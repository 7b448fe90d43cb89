"""Fuzz communication group files."""

from __future__ import annotations

from reshard.strategy.groups import restore_ranks

SEEDS = (b"\x12\x04\x0a\x02\x00\x04", b"\x12\x03\x08\x00\x08")


def read(content: bytes) -> None:
    restore_ranks(content, "fuzz")
