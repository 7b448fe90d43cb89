"""Fuzz manifests, as a later transform reads them."""

from __future__ import annotations

import json

from reshard.checkpoint.manifest import SCHEMA, Manifest, decode, indented
from reshard.source.cuts import recorded_strategy
from reshard.source.described import paths_of
from reshard.target.parts import is_whole, listed_ranks, losses_of, unite

LAYOUT = {"deviceMatrix": [2], "tensorMap": [[0], []], "stages": [0]}
MANIFEST = {
    "schema": SCHEMA,
    "version": "1",
    "digest": "0123456789abcdef0",
    "source": {"url": "s", "format": "ckpt", "ranks": 2, "nbytes": 100},
    "format": "ckpt",
    "ranks": "0-1",
    "targetRanks": 2,
    "options": {"output": "PerRank", "targetRanks": None},
    "bytesNeeded": 1,
    "bytesDistinct": 1,
    "files": [
        {
            "rank": rank,
            "path": f"rank_{rank}/a.ckpt",
            "size": 50,
            "digest": "xxh3-128:0",
            "bytesFetched": 1,
            "requests": 1,
            "bytesCopied": 0,
            "verified": "Full",
        }
        for rank in (0, 1)
    ],
    "parameters": {
        "kinds": [{"dtype": "Float32", "shape": [4, 2], "role": "cut", "source": None, "target": LAYOUT}],
        "records": [{"name": "a", "kind": 0, "rounded": 1, "overflowed": 0}],
    },
}
SEEDS = [json.dumps(MANIFEST).encode()]


def read(content: bytes) -> None:
    found = decode(content, Manifest, "fuzz")
    assert all(".." not in record.path.split("/") and not record.path.startswith("/") for record in found.files)
    assert decode(b"".join(indented(found)), Manifest, "fuzz") == found
    recorded_strategy(found, "fuzz")
    listed_ranks(found)
    losses_of(found)
    if found.stages and is_whole(found):
        unite([found])
    paths_of(found, "fuzz")
