"""Resume a model and AdamW under fully_shard from distributed checkpoints, and train a step. The answer describes all states."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from contents import describe
from record import Net
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from world import answer, in_world


def resume_all(folders: list[str], ranks: int) -> list[Any]:
    found: list[Any] = in_world(ranks, _resume_all, folders, ranks)
    return found


def _resume_all(folders: list[str], ranks: int) -> list[Any]:
    return [resume(folder, ranks) for folder in folders]


def resume(folder: str, ranks: int) -> dict[str, Any]:
    torch.manual_seed(0)
    net, mesh = Net(), init_device_mesh("cpu", (ranks,), mesh_dim_names=("dp",))
    fully_shard(net, mesh=mesh)
    optimizer = torch.optim.AdamW(net.parameters())
    model, optim = get_state_dict(net, optimizer)  # creates the optimizer's state, which a load fills
    dcp.load({"model": model, "optim": optim}, checkpoint_id=folder)
    set_state_dict(net, optimizer, model_state_dict=model, optim_state_dict=optim)
    net(torch.ones(2, 6)).square().sum().backward()
    optimizer.step()
    model, optim = get_state_dict(net, optimizer)
    states = {f"{name}.{key}": value for name, state in optim["state"].items() for key, value in state.items()}
    return {name: describe(tensor) for name, tensor in (model | states).items()}


if __name__ == "__main__":
    answer(resume_all)
