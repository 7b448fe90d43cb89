"""Load distributed checkpoints into one process, as torch does: folders. The answer describes each tensor of each."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from contents import describe
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from world import answer


def load_all(folders: list[str]) -> list[dict[str, dict[str, Any]]]:
    return [load(folder) for folder in folders]


def load(folder: str) -> dict[str, dict[str, Any]]:
    entries = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    state = {
        name: torch.zeros(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    dcp.load(state, checkpoint_id=folder, no_dist=True)
    return {name: describe(tensor) for name, tensor in state.items()}


if __name__ == "__main__":
    answer(load_all)
