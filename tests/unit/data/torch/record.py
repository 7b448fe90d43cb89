"""Record small checkpoints with PyTorch, and their contents, for the tests of `reshard.formats.torch`.

    python record.py OUTPUT [megatron]

Needs torch with all its dependencies and safetensors, and for `megatron` megatron-core. See README.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import multiprocessing, nn
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

warnings.filterwarnings("ignore")
RANKS = 4
TYPES = (
    *("bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"),
    *("float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"),
)


def numbers(*shape: int, dtype: torch.dtype = torch.float32, base: int = 0) -> torch.Tensor:
    count = 1
    for n in shape:
        count *= n
    return (torch.arange(count, dtype=torch.float64) + base).reshape(shape).to(dtype)


def raw(dtype: str, *shape: int) -> torch.Tensor:
    """A tensor of any type, with bytes that count up."""
    found = getattr(torch, dtype)
    count = torch.Size(shape).numel() * found.itemsize
    if dtype == "bool":
        return (torch.arange(count) % 3 == 0).reshape(shape)
    return (torch.arange(count) % 251).to(torch.uint8).view(found).reshape(shape)


def described(tensor: torch.Tensor) -> dict[str, object]:
    whole = (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().contiguous()
    content = whole.reshape(-1).view(torch.uint8).numpy().tobytes() if whole.numel() else b""
    return {
        "dtype": str(whole.dtype).removeprefix("torch."),
        "shape": list(whole.shape),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def flattened(value: object, name: str = "") -> dict[str, torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return {name: value}
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {k: v for key, each in inner for k, v in flattened(each, f"{name}.{key}" if name else str(key)).items()}


def note(folder: Path, state: object, rank: int = 0) -> None:
    found = {name: described(tensor) for name, tensor in flattened(state).items()}
    if rank == 0:
        (folder / "expected.json").write_text(json.dumps(found, indent=0, sort_keys=True) + "\n")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 10)
        self.b = nn.Linear(10, 6)
        self.norm = nn.LayerNorm(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.b(torch.relu(self.a(x))))


def distributed(rank: int, output: str, kind: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29619", "RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    record_megatron(rank, Path(output) / "megatron") if kind == "megatron" else record_dcp(rank, Path(output))
    dist.destroy_process_group()


def record_dcp(rank: int, output: Path) -> None:
    line = init_device_mesh("cpu", (RANKS,), mesh_dim_names=("dp",))
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    placements = {
        "shard0": distribute_tensor(numbers(8, 6), line, [Shard(0)]),
        "shard1": distribute_tensor(numbers(4, 8, dtype=torch.bfloat16), line, [Shard(1)]),
        "uneven": distribute_tensor(numbers(10, 3), line, [Shard(0)]),
        "empty_shards": distribute_tensor(numbers(2, 3), line, [Shard(0)]),
        "replicated": distribute_tensor(numbers(3, 3), line, [Replicate()]),
        "plain": numbers(5),
        "hsdp": distribute_tensor(numbers(6, 2), square, [Replicate(), Shard(0)]),
        "grid": distribute_tensor(numbers(5, 6), square, [Shard(0), Shard(1)]),
        "twice": distribute_tensor(numbers(9, 2), square, [Shard(0), Shard(0)]),
        "experts": distribute_tensor(numbers(6, 4), square["tp"], [Shard(0)]),
        "scalar": torch.tensor(7),
        "nothing": torch.zeros(0, 4),
        "float8": raw("float8_e8m0fnu", 3),
        "column_major": numbers(3, 4).t(),
        "rank_local": f"rank{rank}",
        "options": {"lr": 0.1, "betas": (0.9, 0.99), "none": None, "list": [1, {"a": torch.ones(2)}]},
    }
    save(placements, output / "placements", rank)
    save({k: placements[k] for k in ("shard0", "replicated", "scalar")}, output / "items", rank, single_file_per_rank=False)
    folder = output / "per_rank"
    state = {k: placements[k] for k in ("shard0", "uneven", "replicated", "plain", "rank_local")}
    dcp.save(state, checkpoint_id=folder, use_collectives=False)
    note(folder, state, rank)

    torch.manual_seed(0)
    net = Net()
    fully_shard(net.a, mesh=line)
    fully_shard(net, mesh=line)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    options = StateDictOptions()
    model, optim = get_state_dict(net, optimizer, options=options)
    save({"model": model, "optim": optim}, output / "fsdp2", rank)

    net = Net()
    parallelize_module(net, square["tp"], {"a": ColwiseParallel(), "b": RowwiseParallel()})
    fully_shard(net, mesh=square["dp"])
    save({"model": get_model_state_dict(net)}, output / "fsdp2_tp", rank)


def save(state: dict[str, object], folder: Path, rank: int, **options: object) -> None:
    dcp.save(state, storage_writer=FileSystemWriter(folder, **options))
    note(folder, state, rank)


def record_megatron(rank: int, folder: Path) -> None:
    from megatron.core import dist_checkpointing  # noqa: PLC0415 - torch alone is enough for the other recordings
    from megatron.core.dist_checkpointing import ShardedTensor  # noqa: PLC0415 - as above
    from megatron.core.dist_checkpointing.mapping import ShardedObject  # noqa: PLC0415 - as above

    torch.cuda.synchronize = lambda *_: None
    torch.cuda.current_device = lambda: torch.device("cpu")
    tensor, stage = rank % 2, rank // 2
    whole = {
        "embedding.word_embeddings.weight": numbers(8, 6),
        "decoder.layers.self_attention.linear_qkv.weight": numbers(2, 6, 6, base=1000),
        "decoder.layers.0.mlp.linear_fc2.weight": numbers(6, 8, base=5000),
    }
    embedding, qkv, fc2 = whole
    rows, columns = slice(4 * tensor, 4 * tensor + 4), slice(3 * tensor, 3 * tensor + 3)
    state = {
        "embedding": ShardedTensor.from_rank_offsets(embedding, whole[embedding][rows], (0, tensor, 2), replica_id=(stage, 0, 0)),
        "qkv": ShardedTensor.from_rank_offsets(
            qkv, whole[qkv][stage, columns].clone(), (0, stage, 2), (1, tensor, 2), prepend_axis_num=1
        ),
        "fc2": ShardedTensor.from_rank_offsets(fc2, whole[fc2][:, rows].clone(), (1, tensor, 2), replica_id=(stage, 0, 0)),
        "rng": ShardedObject("rng_state", {"seed": rank}, (2, 2), (stage, tensor), replica_id=0),
        "iteration": 7,
    }
    if rank == 0:
        folder.mkdir(parents=True)
    dist.barrier()
    dist_checkpointing.save(state, str(folder))
    note(folder, whole, rank)


def record_files(folder: Path) -> None:
    folder.mkdir(parents=True)
    shared = numbers(6, 4)
    state = {
        "model": {"w": shared, "tied": shared, "rows": shared[2:4], "column": shared[:, 1], "transposed": numbers(2, 3).t()},
        "parameter": nn.Parameter(numbers(2, 2)),
        "scalar": torch.tensor(3.5),
        "nothing": torch.zeros(0, 2),
        "expanded": torch.ones(1).expand(3),
        "epoch": 3,
        "args": {"name": "x", "lr": [0.1, 0.2], "betas": (0.9, 0.99)},
    }
    torch.save(state, folder / "shared.pt")
    types = {dtype: raw(dtype, 2, 3) for dtype in TYPES}
    torch.save(types, folder / "types.pt")
    torch.save({"conjugated": torch.ones(2, dtype=torch.complex64).conj()}, folder / "lazy.pt")
    torch.save({"q": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, folder / "quantised.pt")
    torch.save({"w": numbers(2)}, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({"f": Net()}, folder / "module.pt")
    found = {"shared.pt": flattened(state), "types.pt": types}
    expected = {file: {name: described(tensor) for name, tensor in tensors.items()} for file, tensors in found.items()}
    (folder / "expected.json").write_text(json.dumps(expected, indent=0, sort_keys=True) + "\n")


class Ends:
    """A file of which only the first and the last bytes are kept."""

    def __init__(self) -> None:
        self.first, self.last = b"", b""

    def write(self, part: bytes) -> int:
        view = memoryview(part).cast("B")
        self.first += bytes(view[: 1 << 10]) if len(self.first) < 1 << 10 else b""
        self.last = (self.last + bytes(view[-(1 << 11) :]))[-(1 << 11) :]
        return len(view)

    def flush(self) -> None:
        pass


def record_large(folder: Path) -> None:
    """Keep what is around 4 GiB and 5 bytes of zeros. This takes 5 GB of memory."""
    folder.mkdir(parents=True)
    ends = Ends()
    torch.save(torch.zeros((1 << 32) + 5, dtype=torch.uint8), ends)
    (folder / "head").write_bytes(ends.first.rstrip(b"\0"))
    (folder / "tail").write_bytes(ends.last.lstrip(b"\0"))


if __name__ == "__main__":
    OUTPUT, *KIND = sys.argv[1:]
    if not KIND:
        record_files(Path(OUTPUT) / "files")
        record_large(Path(OUTPUT) / "large")
    multiprocessing.spawn(distributed, args=(OUTPUT, KIND[0] if KIND else "dcp"), nprocs=RANKS)
