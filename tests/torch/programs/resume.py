"""Train a model under fully_shard, and resume it from distributed checkpoints with another number of ranks.

`train` (folder, ranks) trains three steps and saves a checkpoint. It has no answer.
`resume` (folders, ranks) loads each checkpoint and trains two more steps. The answer has all states and the losses of rank 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from contents import describe_values
from record import Net
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from world import answer, in_world


@dataclass(frozen=True)
class Training:
    """What is trained: a sharded model, AdamW with two groups of parameters, and a scheduler with schedulers in it."""

    net: Net
    optimizer: torch.optim.AdamW
    scheduler: SequentialLR

    def state(self) -> dict[str, Any]:
        """All that a checkpoint holds. This creates the optimizer's state, which a load fills."""
        model, optim = get_state_dict(self.net, self.optimizer)
        return {"model": model, "optim": optim, "scheduler": self.scheduler}

    def load(self, folder: str) -> None:
        state = self.state()
        dcp.load(state, checkpoint_id=folder)  # the scheduler takes its state itself
        set_state_dict(self.net, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"])

    def step(self, batch: int) -> float:
        generator = torch.Generator().manual_seed(100 * batch + dist.get_rank())
        self.optimizer.zero_grad()
        loss = self.net(torch.randn(2, 6, generator=generator)).pow(3).sum()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        return float(loss)


def create(seed: int) -> Training:
    torch.manual_seed(seed)
    net, mesh = Net(), init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("dp",))
    fully_shard(net.a, mesh=mesh)
    fully_shard(net, mesh=mesh)
    weights = [each for each in net.parameters() if each.ndim == 2]
    others = [each for each in net.parameters() if each.ndim != 2]
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": others, "lr": 0.02, "betas": (0.8, 0.95)}]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    parts = [LinearLR(optimizer, total_iters=2), CosineAnnealingLR(optimizer, T_max=10)]
    return Training(net, optimizer, SequentialLR(optimizer, parts, milestones=[2]))


def train(folder: str, ranks: int) -> None:
    in_world(ranks, _train, folder)


def _train(folder: str) -> None:
    training = create(seed=0)
    for batch in range(3):
        training.step(batch)
    dcp.save(training.state(), checkpoint_id=folder)


def resume(folders: list[str], ranks: int) -> list[Any]:
    found: list[Any] = in_world(ranks, _resume_all, folders)
    return found


def _resume_all(folders: list[str]) -> list[Any]:
    return [_resume(folder) for folder in folders]


def _resume(folder: str) -> dict[str, Any]:
    training = create(seed=1)
    training.load(folder)
    losses = [training.step(batch) for batch in (3, 4)]
    after = training.state()
    found: dict[str, Any] = describe_values({**after, "scheduler": training.scheduler.state_dict(), "losses": losses})
    return found


if __name__ == "__main__":
    ANSWERS = {function.__name__: function for function in (train, resume)}
    answer(lambda kind, **arguments: ANSWERS[kind](**arguments))
