"""Checkpoints of Megatron-core's `dist_checkpointing`: distributed checkpoints of PyTorch, with two documents.

`common.pt` holds everything that is not sharded, and `metadata.json`, written last, states the formats. Tensors have names of
the whole model, and equal layers are one tensor with an axis of layers, so the shards state all that a transform needs.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from reshard.errors import DataError, RequestError
from reshard.formats.torch.dcp import read_documents, read_metadata
from reshard.formats.torch.names import complete_metadata
from reshard.formats.torch.reader import find_contents
from reshard.structs import examined

if TYPE_CHECKING:
    from collections.abc import Callable

    from reshard.formats.protocol import Folder
    from reshard.model import Checkpoint

COMMON, CONFIG = "common.pt", "metadata.json"
_MOST = 1 << 20
# A buffer of a data-parallel group: the parameters of one tensor-parallel rank, in an order that only that group knows.
_FLAT = re.compile(r"(?:[\s\S]*\.)?dp_group_idx_[0-9]+\.(?:gbuf_idx_|param_state)[\s\S]*")


class _Config(msgspec.Struct):
    sharded_backend: str


def read(folder: Folder, workers: int = 1, wanted: Callable[[str], bool] | None = None) -> Checkpoint:
    """Return the tensors and objects of a checkpoint, see `SourceFormat.read`.

    Raises:
        RequestError: the optimizer state is in flat buffers, or the tensors are not in PyTorch's format.
    """
    try:
        backend = msgspec.json.decode(folder.read(CONFIG, _MOST), type=examined(_Config)).sharded_backend
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(
            "MetadataInvalid",
            f"the document does not describe a checkpoint of Megatron-core: {error}",
            where=f"{folder.url}/{CONFIG}",
            fix="restore the checkpoint",
        ) from None
    documents = complete_metadata(folder.names, folder.url)
    if backend != "torch_dist" or not documents:
        raise RequestError(
            "UnsupportedSource",
            f"a Megatron checkpoint of the format {backend!r} cannot be read",
            where=folder.url,
            fix="load it with a release of Megatron-core that supports the format, and save it with --ckpt-format torch_dist",
        )
    found = read_metadata(read_documents(folder, documents), wanted=wanted)
    names = [*(tensor.name for tensor in found.tensors), *(each.name for each in found.objects)]
    if flat := list(filter(_FLAT.fullmatch, names)):
        raise RequestError(
            "FlatOptimizer",
            f"{len(flat)} tensors of the optimizer are flat buffers, which cannot be divided in another way: {flat[0]}",
            where=folder.url,
            fix="exclude them with --exclude '*dp_group_idx_*' (spec.parameters.exclude), or save the checkpoint with Megatron's"
            " --dist-ckpt-optim-fully-reshardable",
        )
    there = tuple(name for name in (*documents, COMMON, CONFIG) if name in folder.names)
    return find_contents(replace(found, documents=there), folder, workers)
