"""Fuzz shards of tensors in safetensors files: one of two files."""

from __future__ import annotations

import json
import struct

from inputs import Folder

from reshard.formats.registry import source_format

FORMAT = source_format("torch-safetensors")


def shard(row: int) -> bytes:
    header = {
        "__metadata__": {"DCP_SHARDING_INFO": json.dumps({"w": {"saved_offsets": [row, 0]}})},
        "w": {"dtype": "F32", "shape": [1, 3], "data_offsets": [0, 12]},
    }
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + bytes(12)


SEEDS = [shard(row) for row in (0, 1, 2)]


def read(content: bytes) -> None:
    names = [f"shard-0000{i}-model-00001-of-00001.safetensors" for i in (1, 2)]
    FORMAT.read(Folder(dict(zip(names, (shard(0), content), strict=True))))
