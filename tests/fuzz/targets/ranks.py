"""Fuzz lists of ranks, which manifests and requests contain."""

from __future__ import annotations

from reshard.spec.ranks import format_ranks, parse_ranks

SEEDS = [b"0", b"0,2-5", b" 3 - 4,9", b"0-16777215"]


def read(content: bytes) -> None:
    found = parse_ranks(content.decode(errors="replace"))
    if len(found) < 1000:
        assert parse_ranks(format_ranks(found)) == found
    parse_ranks(content.decode(errors="replace"), 100)
