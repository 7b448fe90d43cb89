"""Checkpoint files, strategies and inputs of cases, saved by the real MindSpore. For oracle.py, under MindSpore's Python."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import mindspore
import numpy as np
from definition import Cut
from mindspore.train import node_strategy_pb2 as straspb

if TYPE_CHECKING:
    from pathlib import Path

    import transforms


def tensor_of(bits: np.ndarray, dtype: str) -> Any:
    """A MindSpore tensor of these bits."""
    if dtype == "BFloat16":  # exact: float32 holds all its values
        return mindspore.Tensor((bits.reshape(-1).astype(np.uint32) << 16).view(np.float32).reshape(bits.shape)).astype(
            mindspore.bfloat16
        )
    if dtype == "Int4":
        return mindspore.Tensor(bits, mindspore.qint4x2)
    return mindspore.Tensor(bits.view(np.dtype(dtype.lower())).reshape(bits.shape))


def save(path: Path, tensors: dict[str, np.ndarray], types: dict[str, str], **options: Any) -> None:
    """A checkpoint file, by MindSpore."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = [{"name": name, "data": tensor_of(bits, types[name])} for name, bits in tensors.items()]
    mindspore.save_checkpoint(found, str(path), format=path.suffix[1:], **options)


def strategy(path: Path, layouts: dict[str, Cut], stage: int, *, nested: bool = False) -> None:
    """A strategy file of one stage: protobuf, or JSON if its name says so."""
    if path.suffix == ".json":
        path.write_text(json.dumps(_json(layouts, stage)), encoding="utf-8")
        return
    message = straspb.ParallelStrategyMap(current_stage=stage)
    for name in _nodes(stage):
        node = message.parallel_strategy_item.add(node_name=name)
        node.parallel_strategys.stage = stage
        node.parallel_strategys.parallel_strategy.add(dim=[1, 1])
    for name, cut in layouts.items():
        item = message.parallel_layout_item.add(param_name=name).parallel_layouts
        item.dev_matrix.add(dim=cut.matrix)
        if nested or any(len(axes) > 1 for axes in cut.maps):
            for axes in cut.maps:
                item.tensor_map.add(dim=axes or [-1])
            if len(cut.maps) == 1:
                item.tensor_map.add()
        else:
            item.tensor_map.add(dim=[axes[0] if axes else -1 for axes in cut.maps])
        item.param_split_shape.add()
        item.indices_offset.add()
        item.field, item.opt_weight_shard_step, item.opt_weight_shard_size = 0, cut.step, cut.size
    path.write_bytes(message.SerializeToString())


def read_strategy(path: Path) -> dict[str, Cut]:
    """The layouts of a strategy file of one stage, as MindSpore's own messages read it."""
    message = straspb.ParallelStrategyMap()
    message.ParseFromString(path.read_bytes())
    found = {}
    for item in message.parallel_layout_item:
        layout = item.parallel_layouts
        maps = [tuple(each.dim) for each in layout.tensor_map]
        if len(maps) == 1:
            maps = [(axis,) for axis in maps[0]]
        axes = tuple(() if each == (-1,) else each for each in maps if each)
        found[item.param_name] = Cut(
            tuple(layout.dev_matrix[0].dim), axes, layout.opt_weight_shard_step, layout.opt_weight_shard_size
        )
    return found


def _nodes(stage: int) -> list[str]:
    """Names of operators; some are the same in every stage."""
    return [f"Default/network/stage{stage}-Dense/MatMul-op0", "Default/Cast-op1"]


def _json(layouts: dict[str, Cut], stage: int) -> dict[str, Any]:
    return {
        "current_stage": stage,
        "parallel_strategy_item": {name: {"stage": stage, "parallel_strategy": [[1, 1]]} for name in _nodes(stage)},
        "parallel_layout_item": {
            name: {
                "dev_matrix": cut.matrix,
                "tensor_map": [axes[0] if axes else -1 for axes in cut.maps],
                "param_split_shape": [],
                "indices_offset": [],
                "field": 0,
                "opt_weight_shard_step": cut.step,
                "opt_weight_shard_size": cut.size,
            }
            for name, cut in layouts.items()
        },
    }


def write_strategy(folder: Path, case: transforms.Case, side: str) -> str | None:
    """A side's strategy, merged by MindSpore where there are several stages. Their own files are left in a folder."""
    if not getattr(case, f"{side}_named"):
        return None
    stages = getattr(case, f"{side}_stages")
    ending = "json" if case.json else "ckpt"
    single = folder / f"{side}_strategy.{ending}"
    if stages > 1:
        (folder / f"{side}_stages").mkdir()
    for stage in range(stages):
        layouts = {
            tensor.name: getattr(tensor, side)
            for tensor in case.tensors
            if getattr(tensor, side) is not None and stage in getattr(tensor, f"{side}_stages")
        }
        path = folder / f"{side}_stages" / f"strategy_{stage}.{ending}" if stages > 1 else single
        strategy(path, layouts, stage, nested=case.nested)
    if stages > 1:
        mindspore.merge_pipeline_strategys(str(folder / f"{side}_stages"), str(single))
    return str(single)


def inputs(folder: Path, case: transforms.Case) -> tuple[str | None, str | None]:
    """A case's source, and both its strategies."""
    folder.mkdir(parents=True)
    for rank in range(case.source_ranks):
        tensors = case.source(rank)
        save(folder / "source" / f"rank_{rank}" / case.file_name(rank), tensors, case.types())
        if case.trained:
            older = {name: np.zeros_like(bits) for name, bits in tensors.items()}
            save(folder / "source" / f"rank_{rank}" / f"net-2_25.{case.source_format}", older, case.types())
    return write_strategy(folder, case, "source"), write_strategy(folder, case, "target")
