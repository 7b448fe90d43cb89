"""Sources with many parameters, or many shards, of a few bytes each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import rawfiles
import torch_files
from output_files import opaque, shard, write_checkpoint

from reshard.formats.torch.write import DCP
from reshard.layout import Layout
from reshard.strategy import StrategyFile, dump

if TYPE_CHECKING:
    from pathlib import Path

    from output_files import Content


def _names(count: int) -> list[str]:
    return [f"model.layers.{number:06}.self_attention.query_norm.bias" for number in range(count)]


def names(folder: Path, count: int, ranks: int, *, absent: int = 0) -> list[str]:
    """Write ranks that hold a row of each parameter, in safetensors.

    Args:
        folder: folder of the source and the strategy.
        count: number of parameters.
        ranks: number of ranks.
        absent: number of other parameters, which only the strategy contains.

    Returns:
        The arguments that name the source, and equal layouts of the source and the target.
    """
    for rank in range(ranks):
        path = folder / "src" / f"rank_{rank}" / "net-1_100.safetensors"
        path.parent.mkdir(parents=True)
        row = np.full((1, 2), rank, np.float32)
        path.write_bytes(rawfiles.write("safetensors", dict.fromkeys(_names(count), row)))
    strategy = folder / "strategy.ckpt"
    layouts = dict.fromkeys(_names(count + absent), Layout((ranks,), ((0,), ())))
    strategy.write_bytes(dump(StrategyFile(strategy.name, {0: layouts}), "protobuf"))
    return ["--source", str(folder / "src"), "--source-strategy", str(strategy), "--target-strategy", str(strategy)]


def shards(folder: Path, ranks: int, tensors: int, each: int) -> None:
    """Write a distributed checkpoint of PyTorch whose tensors have this number of shards, divided among the ranks."""
    whole = np.arange(each * 2, dtype=np.float32).reshape(each, 2)
    _write(folder, ranks, [shard(name, whole, (row, 0), (1, 2), "Float32") for name in _names(tensors) for row in range(each)])


def pickled(path: Path, count: int) -> None:
    """Write a file of PyTorch with this number of tensors."""
    tensors = b"".join(torch_files.text(name) + torch_files.tensor(key=str(key)) for key, name in enumerate(_names(count)))
    contents = {f"data/{key}": bytes(24) for key in range(count)}
    path.write_bytes(torch_files.archive(b"\x80\x02}(" + tensors + b"u.", contents))


def objects(folder: Path, ranks: int, count: int) -> None:
    """Write a distributed checkpoint of PyTorch with one tensor and this number of other values, divided among the ranks."""
    tensor = shard("w", np.zeros((1, 2), np.float32), (0, 0), (1, 2), "Float32")
    _write(folder, ranks, [tensor, *(opaque(name, bytes(200)) for name in _names(count))])


def _write(folder: Path, ranks: int, contents: list[Content]) -> None:
    """Write contents in nested dicts, as PyTorch flattens them."""
    nested = [(msgspec.structs.replace(each, keys=("state", *each.name.split(".", 2))), content) for each, content in contents]
    folder.mkdir()
    count = len(nested)
    write_checkpoint(DCP, folder, [nested[count * rank // ranks : count * (rank + 1) // ranks] for rank in range(ranks)])
