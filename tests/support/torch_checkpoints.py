"""PyTorch's distributed checkpoints in local folders, read whole by the product's readers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch_files import FileReader, sha256_of

from reshard.checkpoint.dtypes import DTYPES
from reshard.formats.torch.archive import locate, read_archive
from reshard.formats.torch.dcp import check_files, read_metadata
from reshard.formats.torch.names import metadata_files

if TYPE_CHECKING:
    from pathlib import Path

    from reshard.model import Checkpoint, TensorMeta


def read(folder: Path) -> Checkpoint:
    names = metadata_files([path.name for path in folder.iterdir()])
    found = read_metadata([(name, (folder / name).read_bytes()) for name in names])
    check_files(found, {path.name: path.stat().st_size for path in folder.iterdir()}, folder.name)
    return found


def describe(folder: Path, found: Checkpoint) -> dict[str, dict[str, Any]]:
    """Type, shape and SHA-256 of each whole tensor, as `describe_all` of the programs under real torch returns them."""
    readers = [FileReader(folder / name) for name in found.files]
    return {
        tensor.name: {
            "dtype": DTYPES[tensor.dtype].torch,
            "shape": list(tensor.shape),
            "sha256": sha256_of(assemble(readers, tensor)),
        }
        for tensor in found.tensors
    }


def assemble(readers: list[FileReader], tensor: TensorMeta) -> bytes:
    """A whole tensor, row-major, from all copies of all its shards."""
    itemsize = 0
    parts = []
    for tile in range(len(tensor.shards.tiling)):
        box = tensor.shards.tiling.box(tile)
        copies = set()
        for place in tensor.shards.places(tile):
            reader = readers[place.file]
            archive = read_archive(reader, place.offset, place.length)
            (stored,) = archive.tensors
            assert (stored.dtype.name, stored.shape, stored.name) == (tensor.dtype, box.shape, "")
            offset, length = locate(reader, archive, stored.storage)
            itemsize = stored.dtype.itemsize
            content = np.frombuffer(reader.read(offset, length), f"V{itemsize}")[stored.first :]
            steps = tuple(step * itemsize for step in stored.strides)
            copies.add(np.lib.stride_tricks.as_strided(content, box.shape, steps, writeable=False).tobytes())
        (content_of_tile,) = copies
        parts.append((box, content_of_tile))
    whole = np.zeros(tensor.shape, f"V{itemsize or 1}")
    for box, content_of_tile in parts:
        whole[box.slices()] = np.frombuffer(content_of_tile, whole.dtype).reshape(box.shape)
    return whole.tobytes()
