"""Fuzz the index of a source: it refers to files in the source, and to ranges in them."""

from __future__ import annotations

import disk
import models
from memory_tasks import task

from reshard.checkpoint.manifest import encode
from reshard.source.index import decode_index
from reshard.transform.prepare import encode_index

HALF, WHOLE = disk.Cut((2,), ((0,), ())), disk.Cut((1,), ((), ()))
TENSORS = (models.Tensor("w", "Float32", (4, 2), HALF, 0, WHOLE, 0), models.Tensor("step", "Int32", (), None, 0, None, 0))
MODEL = models.Model(2, 1, 1, 1, TENSORS, 1, remove_redundancy=False)
SEEDS = [encode_index(task(MODEL, kind, kind)[0]) for kind in ("ckpt", "safetensors")]


def read(content: bytes) -> None:
    found = decode_index(content, "fuzz")
    for file in found.inventory.files:
        assert not file.path.startswith("/")
        assert ".." not in file.path.split("/")
        for entry in found.inventory.structures[file.structure].tensors:
            assert all(offset >= 0 and length >= 0 for offset, length in entry.extents)
    found.strategies()
    assert decode_index(encode(found), "fuzz") == found
