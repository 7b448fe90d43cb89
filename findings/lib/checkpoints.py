"""Inputs that several scripts of this folder share: strategy files and checkpoints, written with MindSpore."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import mindspore
from mindspore.train import node_strategy_pb2

if TYPE_CHECKING:
    import numpy as np

Layout = tuple[list[int], list[int], int, int]


def strategy(path: str, **layouts: Layout) -> None:
    """Write a strategy file; a layout is (device matrix, tensor map, optimizer shard's step, its size)."""
    message = node_strategy_pb2.ParallelStrategyMap(current_stage=0)
    node = message.parallel_strategy_item.add(node_name="MatMul").parallel_strategys
    node.stage = 0
    node.parallel_strategy.add(dim=[1, 1])
    for name, (matrix, tensor_map, step, size) in layouts.items():
        layout = message.parallel_layout_item.add(param_name=name.replace("__", ".")).parallel_layouts
        layout.dev_matrix.add(dim=matrix)
        layout.tensor_map.add(dim=tensor_map)
        layout.param_split_shape.add()
        layout.indices_offset.add()
        layout.field, layout.opt_weight_shard_step, layout.opt_weight_shard_size = 0, step, size
    Path(path).write_bytes(message.SerializeToString())


def save(path: str, **arrays: np.ndarray) -> None:
    """Write a checkpoint file; `__` in a name stands for a dot."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    found = [{"name": name.replace("__", "."), "data": mindspore.Tensor(array)} for name, array in arrays.items()]
    mindspore.save_checkpoint(found, path, format=path.rpartition(".")[2])


def load(path: str) -> dict[str, Any]:
    """Return the arrays of a checkpoint file as lists, by name."""
    found = mindspore.load_checkpoint(path, format=path.rpartition(".")[2])
    return {name: parameter.asnumpy().tolist() for name, parameter in found.items()}
