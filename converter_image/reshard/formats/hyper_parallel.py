"""Distributed checkpoints of HyperParallel, for MindSpore and PyTorch.

The metadata is that of PyTorch with other names. A rank's tensors are in one safetensors file, whose header locates them, and its
other values in files that nothing opens here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from reshard.formats.detection import HYPER_PARALLEL_CONTENT, HYPER_PARALLEL_METADATA
from reshard.formats.torch.dcp import read_documents, read_metadata
from reshard.formats.torch.names import complete_metadata
from reshard.formats.torch.reader import find_contents

if TYPE_CHECKING:
    from collections.abc import Callable

    from reshard.formats.protocol import Folder
    from reshard.model import Checkpoint


def read(folder: Folder, workers: int = 1, wanted: Callable[[str], bool] | None = None) -> Checkpoint:
    """Return the tensors and objects of a checkpoint, see `SourceFormat.read`."""
    documents = tuple(complete_metadata(folder.names, folder.url, HYPER_PARALLEL_METADATA, HYPER_PARALLEL_CONTENT))
    entries: dict[str, int] = {}
    found = read_metadata(read_documents(folder, documents), entries=entries, wanted=wanted)
    return find_contents(replace(found, documents=documents), folder, workers, tuple(entries))
