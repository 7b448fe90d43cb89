"""What the real MindSpore does. Runs under its Python, one process for many cases:

python oracle.py transform FOLDER NUMBER...     FOLDER/<number>/ with inputs and outcome of each case
python oracle.py load FILE...                   what MindSpore's load_checkpoint finds, as JSON
python oracle.py signatures NAME...             of functions of the package, as JSON
"""

from __future__ import annotations

import inspect
import json
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1] / "support")]

import cases
import mindspore
import numpy as np
from mindspore.train import node_strategy_pb2 as straspb

if TYPE_CHECKING:
    from definition import Cut

PREFIX = "checkpoint_"


def tensor_of(bits: np.ndarray, dtype: str) -> Any:
    """A MindSpore tensor of these bits."""
    if dtype == "BFloat16":  # exact: float32 holds all its values
        return mindspore.Tensor((bits.astype(np.uint32) << 16).view(np.float32)).astype(mindspore.bfloat16)
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
    node = message.parallel_strategy_item.add(node_name=f"Default/MatMul-op{stage}")
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


def _json(layouts: dict[str, Cut], stage: int) -> dict[str, Any]:
    return {
        "current_stage": stage,
        "parallel_strategy_item": {"Default/MatMul-op0": {"stage": stage, "parallel_strategy": [[1, 1]]}},
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


def write_strategy(folder: Path, case: cases.Case, side: str) -> str | None:
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


def transform(folder: Path, case: cases.Case) -> dict[str, Any]:
    """Inputs of a case, and what MindSpore made of them."""
    folder.mkdir(parents=True)
    for rank in range(case.source_ranks):
        tensors = case.source(rank)
        save(folder / "source" / f"rank_{rank}" / case.file_name(rank), tensors, case.types())
        if case.trained:
            older = {name: np.zeros_like(bits) for name, bits in tensors.items()}
            save(folder / "source" / f"rank_{rank}" / f"net-2_25.{case.source_format}", older, case.types())
    before, after = write_strategy(folder, case, "source"), write_strategy(folder, case, "target")
    outcome: dict[str, Any] = {"error": None, "rank_lists": [], "by_rank": None}
    try:
        mindspore.transform_checkpoints(
            str(folder / "source"), str(folder / "mindspore"), PREFIX, before, after, output_format=case.target_format
        )
        for rank in range(case.target_ranks):
            outcome["rank_lists"].append([int(r) for r in mindspore.rank_list_for_transform(rank, before, after)])
        if case.source_format == case.target_format == "ckpt":
            rank = case.number % case.target_ranks
            files = {r: str(folder / "source" / f"rank_{r}" / case.file_name(r)) for r in outcome["rank_lists"][rank]}
            mindspore.transform_checkpoint_by_rank(rank, files, str(folder / "by_rank.ckpt"), before, after)
            outcome["by_rank"] = rank
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the outcome
        outcome["error"] = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
    (folder / "outcome.json").write_text(json.dumps(outcome), encoding="utf-8")
    return outcome


def main(command: str, *arguments: str) -> None:
    """Carry out one of the commands above."""
    if command == "transform":
        for number in arguments[1:]:
            transform(Path(arguments[0]) / number, cases.make(int(number)))


if __name__ == "__main__":
    main(*sys.argv[1:])
