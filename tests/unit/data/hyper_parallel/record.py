"""Record a small checkpoint with HyperParallel on PyTorch, and its contents, for the tests of `reshard.formats.hyper_parallel`.

    PYTHONPATH=HYPER_PARALLEL python record.py OUTPUT

Needs torch, safetensors and a copy of https://github.com/mindspore-ai/hyper-parallel. See README.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import multiprocessing

RANKS = 4


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)


def save(rank: int, output: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29633", "RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    from hyper_parallel.core.checkpoint import save as save_checkpoint  # noqa: PLC0415 - needs the process group
    from hyper_parallel.core.device_mesh import init_device_mesh  # noqa: PLC0415 - as above
    from hyper_parallel.core.dtensor import DTensor  # noqa: PLC0415 - as above
    from hyper_parallel.core.placement_types import Replicate, Shard  # noqa: PLC0415 - as above

    mesh = init_device_mesh(device_type="cpu", mesh_shape=(2, 2), mesh_dim_names=("dp", "tp"))
    first, second = divmod(rank, 2)
    whole = {
        "rows": numbers(8, 3),
        "columns": numbers(4, 6, dtype=torch.bfloat16),
        "grid": numbers(4, 4),
        "replicated": numbers(3),
        "plain": numbers(5, dtype=torch.int64),
        "scalar": torch.tensor(7.0),
    }
    state = {
        "rows": DTensor.from_local(whole["rows"][4 * first : 4 * first + 4].clone(), mesh, [Shard(0), Replicate()]),
        "columns": DTensor.from_local(whole["columns"][:, 3 * second : 3 * second + 3].clone(), mesh, [Replicate(), Shard(1)]),
        "grid": DTensor.from_local(
            whole["grid"][2 * first : 2 * first + 2, 2 * second : 2 * second + 2].clone(), mesh, [Shard(0), Shard(1)]
        ),
        "replicated": DTensor.from_local(whole["replicated"].clone(), mesh, [Replicate(), Replicate()]),
        "plain": whole["plain"],
        "scalar": whole["scalar"],
        "epoch": 3,
    }
    for name, collectives in (("common", True), ("per_rank", False)):
        folder = Path(output, name)
        folder.mkdir(parents=True, exist_ok=True)
        dist.barrier()
        save_checkpoint(state, checkpoint_id=folder, use_collectives=collectives)
        dist.barrier()
        if rank == 0:
            expected = {
                key: {
                    "dtype": str(tensor.dtype).removeprefix("torch."),
                    "shape": list(tensor.shape),
                    "sha256": hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest(),
                }
                for key, tensor in whole.items()
            }
            (folder / "expected.json").write_text(json.dumps(expected, indent=0, sort_keys=True) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    multiprocessing.spawn(save, args=(sys.argv[1],), nprocs=RANKS)
