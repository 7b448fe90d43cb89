"""Record small checkpoints with PyTorch, and their contents, for the tests of `reshard.formats.torch`.

    python record.py '{"folder": FOLDER, "kinds": [KIND, ...]}'

Each kind is a function below. It also works with older versions of torch; what a version lacks is not recorded. See
`tests/unit/data/torch/README.md`.
"""

from __future__ import annotations

import inspect
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from contents import describe, describe_all, flatten, numbers, raw
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from world import answer, in_world

try:  # torch 2.6 and newer
    from torch.distributed.fsdp import fully_shard
except ImportError:
    from torch.distributed._composable.fsdp import fully_shard
try:  # torch 2.5 and newer
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
except ImportError:
    from torch.distributed._tensor import Replicate, Shard, distribute_tensor

RANKS = 4
TYPES = (
    *("bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"),
    *("float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"),
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 10)
        self.b = nn.Linear(10, 6)
        self.norm = nn.LayerNorm(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.b(torch.relu(self.a(x))))


def line() -> Any:
    return init_device_mesh("cpu", (RANKS,), mesh_dim_names=("dp",))


def square() -> Any:
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))


def placed() -> dict[str, Any]:
    """Values of every placement. Two of them are not the same on all ranks."""
    one, two = line(), square()
    return {
        "shard0": distribute_tensor(numbers(8, 6), one, [Shard(0)]),
        "shard1": distribute_tensor(numbers(4, 8, dtype=torch.bfloat16), one, [Shard(1)]),
        "uneven": distribute_tensor(numbers(10, 3), one, [Shard(0)]),
        "empty_shards": distribute_tensor(numbers(2, 3), one, [Shard(0)]),
        "replicated": distribute_tensor(numbers(3, 3), one, [Replicate()]),
        "plain": numbers(5),
        "hsdp": distribute_tensor(numbers(6, 2), two, [Replicate(), Shard(0)]),
        "grid": distribute_tensor(numbers(5, 6), two, [Shard(0), Shard(1)]),
        "twice": distribute_tensor(numbers(9, 2), two, [Shard(0), Shard(0)]),
        "experts": distribute_tensor(numbers(6, 4), two["tp"], [Shard(0)]),
        "scalar": torch.tensor(7),
        "nothing": torch.zeros(0, 4),
        "column_major": numbers(3, 4).t(),
        "rank_local": f"rank{dist.get_rank()}",
        "options": {"lr": 0.1, "betas": (0.9, 0.99), "none": None, "list": [1, {"a": torch.ones(2)}]},
    }


def placements(folder: Path) -> None:
    state = placed()
    if hasattr(torch, "float8_e8m0fnu"):
        state["float8"] = raw("float8_e8m0fnu", 3)
    save(state, folder)


def items(folder: Path) -> None:
    """One file for each item."""
    save(some("shard0", "replicated", "scalar"), folder, single_file_per_rank=False)


def threads(folder: Path) -> None:
    """Two files for each rank."""
    save(some("shard0", "uneven", "grid", "plain", "scalar"), folder, thread_count=2)


def per_rank(folder: Path) -> None:
    """Metadata of each rank, in a file of its own."""
    if "use_collectives" in inspect.signature(dcp.save).parameters:
        state = some("shard0", "uneven", "replicated", "plain", "rank_local")
        dcp.save(state, checkpoint_id=folder, use_collectives=False)
        note(folder, state)


def asynchronous(folder: Path) -> None:
    state = some("shard0", "grid", "hsdp", "scalar", "rank_local")
    dcp.async_save(state, checkpoint_id=folder, process_group=dist.new_group(backend="gloo")).result()
    note(folder, state)


def fsdp2(folder: Path) -> None:
    torch.manual_seed(0)
    net = Net()
    fully_shard(net.a, mesh=line())
    step_and_save(net, folder)


def optimizer(folder: Path) -> None:
    """The same for one layer, which is small."""
    torch.manual_seed(0)
    step_and_save(nn.Linear(6, 10), folder)


def step_and_save(net: nn.Module, folder: Path) -> None:
    fully_shard(net, mesh=line())
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    model, optim = get_state_dict(net, optimizer)
    save({"model": model, "optim": optim}, folder)


def fsdp2_tp(folder: Path) -> None:
    """Strided shards."""
    net, mesh = Net(), square()
    parallelize_module(net, mesh["tp"], {"a": ColwiseParallel(), "b": RowwiseParallel()})
    fully_shard(net, mesh=mesh["dp"])
    save({"model": get_model_state_dict(net)}, folder)


def fsdp1(folder: Path) -> None:
    """ShardedTensor, the predecessor of DTensor."""
    from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType  # noqa: PLC0415 - deprecated, and used here only

    torch.manual_seed(0)
    net = FullyShardedDataParallel(Net(), device_id=torch.device("cpu"), use_orig_params=True)
    whole = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with FullyShardedDataParallel.state_dict_type(net, StateDictType.SHARDED_STATE_DICT):
        dcp.save({"model": net.state_dict()}, checkpoint_id=folder)
    note(folder, {"model": whole})


def safetensors(folder: Path, *objects: str) -> None:
    """A file of safetensors for each rank, with `.metadata` that gives each tensor the offset 0."""
    with suppress(ImportError):
        from torch.distributed.checkpoint.filesystem import SerializationFormat  # noqa: PLC0415 - torch 2.8 and newer

        state = some("shard0", "shard1", "grid", "hsdp", "experts", *objects)
        save(state, folder, serialization_format=SerializationFormat.SAFETENSORS)


def safetensors_and_objects(folder: Path) -> None:
    """The same with an object, which is before the header in the file of one rank."""
    safetensors(folder, "rank_local")


def huggingface(folder: Path) -> None:
    """Shards in files of safetensors, with the offsets in their headers, and no `.metadata`."""
    with suppress(ImportError):
        from torch.distributed.checkpoint import HuggingFaceStorageWriter  # noqa: PLC0415 - torch 2.8 and newer

        state = some("shard0", "shard1", "uneven", "grid", "hsdp", "experts", "replicated", "plain")
        mapping = {name: 1 + (name in {"grid", "plain"}) for name in state}
        writer = HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=mapping, save_distributed=True)
        dcp.save(state, storage_writer=writer)
        note(folder, state)


def dtensors(folder: Path) -> None:
    """A file of `torch.save` for each rank, with DTensors in it."""
    state = some("shard0", "uneven", "grid", "hsdp", "plain")
    torch.save(state, folder / f"model_world_size_{RANKS}_rank_{dist.get_rank()}.pt")
    note(folder, state)


def some(*names: str) -> dict[str, Any]:
    state = placed()
    return {name: state[name] for name in names}


def save(state: dict[str, Any], folder: Path, **options: Any) -> None:
    dcp.save(state, storage_writer=FileSystemWriter(folder, **options))
    note(folder, state)


def note(folder: Path, state: Any) -> None:
    """Write what each tensor of the state is."""
    found = describe_all(state)
    if dist.get_rank() == 0:
        (folder / "expected.json").write_text(json.dumps(found, indent=0, sort_keys=True) + "\n")


def megatron(folder: Path) -> None:
    """`torch_dist` of Megatron-core at TP 2, PP 2: a layer axis, a sharded object."""
    from megatron.core import dist_checkpointing  # noqa: PLC0415 - torch alone is enough for the other recordings
    from megatron.core.dist_checkpointing import ShardedTensor  # noqa: PLC0415 - as above
    from megatron.core.dist_checkpointing.mapping import ShardedObject  # noqa: PLC0415 - as above

    torch.cuda.synchronize = lambda *_: None
    torch.cuda.current_device = lambda: torch.device("cpu")
    rank = dist.get_rank()
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
    dist_checkpointing.save(state, str(folder))
    note(folder, whole)


def files(folder: Path) -> None:
    """Files of `torch.save` with shared and strided tensors, all types, and what readers have to reject. One process."""
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
    types = {dtype: raw(dtype, 2, 3) for dtype in TYPES if hasattr(torch, dtype)}
    torch.save(types, folder / "types.pt")
    torch.save({"conjugated": torch.ones(2, dtype=torch.complex64).conj()}, folder / "lazy.pt")
    torch.save({"q": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, folder / "quantised.pt")
    torch.save({"w": numbers(2)}, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({"f": Net()}, folder / "module.pt")
    found = {"shared.pt": flatten(state), "types.pt": types}
    expected = {file: {name: describe(tensor) for name, tensor in tensors.items()} for file, tensors in found.items()}
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


def large(folder: Path) -> None:
    """Keep what is around 4 GiB and 5 bytes of zeros. This takes 5 GB of memory."""
    ends = Ends()
    torch.save(torch.zeros((1 << 32) + 5, dtype=torch.uint8), ends)
    (folder / "head").write_bytes(ends.first.rstrip(b"\0"))
    (folder / "tail").write_bytes(ends.last.lstrip(b"\0"))


def transformers(folder: Path) -> None:
    """A model that transformers saved in several files of safetensors. One process."""
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415 - torch alone is enough for the other recordings

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=24, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, tie_word_embeddings=True
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="6KB")
    expected = {name: tensor for name, tensor in describe_all(model.state_dict()).items() if name != "lm_head.weight"}
    (folder / "expected.json").write_text(json.dumps(expected, indent=0, sort_keys=True) + "\n")


ALONE = {"files": files, "large": large, "transformers": transformers}
IN_WORLD = {
    kind.__name__: kind
    for kind in (
        *(placements, items, threads, per_rank, asynchronous, fsdp2, optimizer, fsdp2_tp, fsdp1),
        *(safetensors, safetensors_and_objects, huggingface, dtensors, megatron),
    )
}


def record(folder: str, kinds: list[str]) -> dict[str, str]:
    for kind in kinds:
        path = Path(folder) / kind
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        if kind in ALONE:
            ALONE[kind](path)
        else:
            in_world(RANKS, record_in_world, kind, path)
        if not any(path.iterdir()):
            path.rmdir()
    return {"torch": torch.__version__}


def record_in_world(kind: str, path: Path) -> None:
    IN_WORLD[kind](path)


if __name__ == "__main__":
    answer(record)
