"""Sources with many parameters, or many shards, of a few bytes each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import rawfiles
from output_files import shard, write_checkpoint

from reshard.formats.torch.write import DCP
from reshard.layout import Layout
from reshard.strategy import StrategyFile, dump

if TYPE_CHECKING:
    from pathlib import Path


def _names(count: int) -> list[str]:
    return [f"model.layers.{number:06}.attention.weight.with.a.usual.na" for number in range(count)]


def names(folder: Path, count: int, ranks: int) -> list[str]:
    """Write ranks that hold a row of each parameter, in safetensors.

    Returns:
        The arguments that name the source, and equal layouts of the source and the target.
    """
    for rank in range(ranks):
        path = folder / "src" / f"rank_{rank}" / "net-1_100.safetensors"
        path.parent.mkdir(parents=True)
        row = np.full((1, 2), rank, np.float32)
        path.write_bytes(rawfiles.write("safetensors", dict.fromkeys(_names(count), row)))
    strategy = folder / "strategy.ckpt"
    layouts = dict.fromkeys(_names(count), Layout((ranks,), ((0,), ())))
    strategy.write_bytes(dump(StrategyFile(strategy.name, {0: layouts}), "protobuf"))
    return ["--source", str(folder / "src"), "--source-strategy", str(strategy), "--target-strategy", str(strategy)]


def shards(folder: Path, ranks: int, tensors: int, each: int) -> None:
    """Write a distributed checkpoint of PyTorch whose tensors have this number of shards, divided among the ranks."""
    whole = np.arange(each * 2, dtype=np.float32).reshape(each, 2)
    rows = [shard(name, whole, (row, 0), (1, 2), "Float32") for name in _names(tensors) for row in range(each)]
    folder.mkdir()
    write_checkpoint(DCP, folder, [rows[len(rows) * rank // ranks : len(rows) * (rank + 1) // ranks] for rank in range(ranks)])
