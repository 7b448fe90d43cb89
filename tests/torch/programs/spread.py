"""Load distributed checkpoints on several ranks, into DTensors: folders, ranks.

For each folder, placement and tensor, the answer has the SHA-256 of what each rank holds.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from contents import content
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh
from world import answer, in_world

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor.placement_types import Placement

PLACEMENTS = (Replicate(), Shard(0), Shard(1))


def spread_all(folders: list[str], ranks: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = in_world(ranks, _spread_all, folders)
    return found


def _spread_all(folders: list[str]) -> list[dict[str, Any]]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return [{str(placement): spread(folder, mesh, placement) for placement in PLACEMENTS} for folder in folders]


def spread(folder: str, mesh: DeviceMesh, placement: Placement) -> dict[str, list[str]]:
    entries = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    state = {
        name: distribute_tensor(torch.zeros(entry.size, dtype=entry.properties.dtype), mesh, [placement], src_data_rank=None)
        for name, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata) and (placement == Replicate() or placement.dim < len(entry.size))
    }
    dcp.load(state, checkpoint_id=folder)
    of_ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(of_ranks, {name: hashlib.sha256(content(each.to_local())).hexdigest() for name, each in state.items()})
    return {name: [of_rank[name] for of_rank in of_ranks] for name in state}


if __name__ == "__main__":
    answer(spread_all)
