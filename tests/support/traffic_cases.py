"""Checkpoints whose bytes several target ranks need, for tests of what is fetched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import disk
import models

if TYPE_CHECKING:
    from pathlib import Path

_COLUMNS = models.Cut((4,), ((), (0,))), models.Cut((8,), ((), (0,)))
_REPLICAS = models.Cut((4,), ((0,), ())), models.Cut((4, 2), ((0,), ()))
_SHARDS = models.Cut((4,), ((), ()), 1, 4), models.Cut((4, 2), ((), (0,)), 2, 4)
CASES = {
    "columns": [_COLUMNS],
    "replicas": [_REPLICAS],
    "shards": [_SHARDS],
    "mixture": [_COLUMNS, _REPLICAS, _SHARDS, (None, None)],
}


def made(folder: Path, case: str, seed: int = 1) -> disk.Checkpoint:
    """Write a checkpoint of 4 ranks that becomes one of 8: 4 parameters of each kind of a case."""
    tensors = [
        models.Tensor(f"w{number}", "Float32", () if before is None else (64, 4096), before, 0, after, 0)
        for number, (before, after) in enumerate(CASES[case] * 4)
    ]
    return disk.write(folder, models.Model(4, 1, 8, 1, tuple(tensors), seed, remove_redundancy=False), "safetensors")
