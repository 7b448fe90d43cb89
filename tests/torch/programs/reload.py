"""Read what was written without torch. The answers describe tensors, or name what differs from what torch would write."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from contents import describe, describe_values
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from world import answer


def resave(folder: str) -> list[str]:
    """Return the names of tensors whose archive differs from that of torch.save."""
    differing = []
    metadata = dcp.FileSystemReader(folder).read_metadata()
    for index, info in metadata.storage_data.items():
        if isinstance(metadata.state_dict_metadata[index.fqn], TensorStorageMetadata):
            with (Path(folder) / info.relative_path).open("rb") as file:
                file.seek(info.offset)
                archive = file.read(info.length)
            again = io.BytesIO()
            torch.save(torch.load(io.BytesIO(archive), weights_only=True), again)
            if again.getvalue() != archive:
                differing.append(index.fqn)
    return differing


def nest(folders: list[str]) -> list[Any]:
    """Return the whole content of each checkpoint, as dcp_to_torch nests it."""
    found = []
    for folder in folders:
        with tempfile.NamedTemporaryFile() as file:
            dcp_to_torch_save(folder, file.name)
            found.append(describe_values(torch.load(file.name, weights_only=True)))
    return found


def shards(folder: str) -> dict[str, Any]:
    """Return the tensors of shards in safetensors files."""
    metadata = HuggingFaceStorageReader(folder).read_metadata().state_dict_metadata
    state = {name: torch.zeros(entry.size, dtype=entry.properties.dtype) for name, entry in metadata.items()}
    dcp.load(state, storage_reader=HuggingFaceStorageReader(folder), no_dist=True)
    return {name: describe(tensor) for name, tensor in state.items()}


def save_model(folder: str) -> dict[str, Any]:
    """Save a small model with random weights, and return its answer to fixed tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415 - most answers need torch alone

    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2))
    model.save_pretrained(folder)
    return describe(_logits(model))


def load_models(folders: list[str]) -> list[dict[str, Any]]:
    """Load a model from each folder, and return its answer to the same tokens."""
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - as above

    return [describe(_logits(AutoModelForCausalLM.from_pretrained(folder))) for folder in folders]


def _logits(model: torch.nn.Module) -> torch.Tensor:
    torch.set_num_threads(1)
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(torch.arange(12).reshape(1, 12)).logits
    return logits


def megatron(folder: str) -> dict[str, Any]:
    """Return what Megatron-core's own loader gives one process, including the objects that 2 x 2 ranks saved."""
    from megatron.core import dist_checkpointing  # noqa: PLC0415 - most answers need torch alone
    from megatron.core.dist_checkpointing import ShardedTensor  # noqa: PLC0415 - as above
    from megatron.core.dist_checkpointing.mapping import ShardedObject  # noqa: PLC0415 - as above

    torch.cuda.synchronize = lambda *_: None
    torch.cuda.current_device = lambda: torch.device("cpu")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    metadata = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors = {name: entry for name, entry in metadata.items() if isinstance(entry, TensorStorageMetadata)}
    state = {
        name: ShardedTensor.from_rank_offsets(name, torch.zeros(entry.size, dtype=entry.properties.dtype))
        for name, entry in tensors.items()
    }
    grid = [(stage, tensor) for stage in range(2) for tensor in range(2)]
    objects = {f"rng{list(place)}": ShardedObject("rng_state", None, (2, 2), place) for place in grid}
    found = dist_checkpointing.load(state | objects, folder)
    return {name: describe(value) if isinstance(value, torch.Tensor) else repr(value) for name, value in found.items()}


if __name__ == "__main__":
    ANSWERS = {function.__name__: function for function in (resave, nest, shards, save_model, load_models, megatron)}
    answer(lambda kind, **arguments: ANSWERS[kind](**arguments))
