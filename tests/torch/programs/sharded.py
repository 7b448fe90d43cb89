"""Local shards of DTensors: ranks, cases, model.

Each case is a tensor with the numbers of its elements as content: `mesh` has the lengths of the axes, and `dims` the dimension
that each axis divides, or null. The answer has the content of each rank's shard, for each case.

`model` has the lengths of two axes, dp and tp. A small LLaMA is divided as torchtitan 0.2 does it
(torchtitan/models/llama3/infra/parallelize.py): `parallelize_module` by tp, then `fully_shard` by dp. The answer has the whole
shape and each rank's content of each parameter.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module
from world import answer, in_world

WIDTH, HIDDEN, VOCABULARY, LAYERS = 8, 20, 24, 2
COLUMNS = ("attention.wq", "attention.wk", "attention.wv", "feed_forward.w1", "feed_forward.w3")
ROWS = ("attention.wo", "feed_forward.w2")


def numbered(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.arange(prod(shape), dtype=torch.float32).reshape(shape)


class Model(nn.Module):
    """The parameters of a LLaMA with torchtitan's names."""

    def __init__(self) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleDict({str(i): Block() for i in range(LAYERS)})
        self.norm, self.output = nn.RMSNorm(WIDTH), linear(WIDTH, VOCABULARY)
        for parameter in self.parameters():
            parameter.data = numbered(tuple(parameter.shape))


def linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


class Block(nn.Module):
    """One layer. `fully_shard` requires a class of its own."""

    def __init__(self) -> None:
        super().__init__()
        attention = {"wq": linear(WIDTH, WIDTH), "wk": linear(WIDTH, 4), "wv": linear(WIDTH, 4), "wo": linear(WIDTH, WIDTH)}
        forward = {"w1": linear(WIDTH, HIDDEN), "w2": linear(HIDDEN, WIDTH), "w3": linear(WIDTH, HIDDEN)}
        self.attention, self.feed_forward = nn.ModuleDict(attention), nn.ModuleDict(forward)
        self.attention_norm, self.ffn_norm = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)


def divide(model: Model, lengths: list[int]) -> None:
    mesh = init_device_mesh("cpu", tuple(lengths), mesh_dim_names=("dp", "tp"))
    if lengths[1] > 1:
        outside = {"tok_embeddings": RowwiseParallel(), "norm": SequenceParallel(), "output": ColwiseParallel()}
        parallelize_module(model, mesh["tp"], outside)
        plan = {name: ColwiseParallel() for name in COLUMNS} | {name: RowwiseParallel() for name in ROWS}
        plan |= {name: SequenceParallel() for name in ("attention_norm", "ffn_norm")}
        for layer in model.layers.values():
            parallelize_module(layer, mesh["tp"], plan)
    for module in (model.tok_embeddings, *model.layers.values(), [model.norm, model.output], model):
        fully_shard(module, mesh=mesh["dp"])


def shards(cases: list[dict[str, Any]], lengths: list[int]) -> dict[str, Any]:
    meshes = {shape: init_device_mesh("cpu", shape) for shape in sorted({tuple(case["mesh"]) for case in cases})}
    mine = []
    for case in cases:
        placements = [Replicate() if dim is None else Shard(dim) for dim in case["dims"]]
        tensor = distribute_tensor(numbered(tuple(case["shape"])), meshes[tuple(case["mesh"])], placements, src_data_rank=None)
        mine.append(tensor.to_local().flatten().tolist())
    model = Model()
    whole = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    divide(model, lengths)
    parameters = {name: parameter.to_local().flatten().tolist() for name, parameter in model.named_parameters()}
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, (mine, parameters))
    return {
        "cases": [[of_rank[0][i] for of_rank in ranks] for i in range(len(cases))],
        "model": {name: {"shape": shape, "ranks": [of_rank[1][name] for of_rank in ranks]} for name, shape in whole.items()},
    }


def sharded(ranks: int, cases: list[dict[str, Any]], model: list[int]) -> dict[str, Any]:
    return in_world(ranks, shards, cases, model)


if __name__ == "__main__":
    answer(sharded)
