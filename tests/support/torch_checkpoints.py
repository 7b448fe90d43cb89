"""PyTorch's distributed checkpoints in local folders, written, read whole and transformed by the product."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from output_files import opaque, shard, write_checkpoint
from torch_files import FileReader, sha256_of

from reshard.checkpoint.dtypes import DTYPES
from reshard.formats.torch.archive import locate, read_archive
from reshard.formats.torch.dcp import read_metadata
from reshard.formats.torch.names import metadata_files
from reshard.formats.torch.reader import check_files
from reshard.formats.torch.write import DCP
from reshard.spec.request import Options, Request
from reshard.transform.run import transform_checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping
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


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each whole tensor."""
    return {name: each["sha256"] for name, each in describe(folder, read(folder)).items()}


def objects(folder: Path) -> dict[str, bytes]:
    """The archive of each value that is not a tensor."""
    found = read(folder)
    contents = {}
    for each in found.objects:
        place = each.places[0]
        contents[each.name] = (folder / found.files[place.file]).read_bytes()[place.offset :][: place.length]
    return contents


def write(folder: Path, ranks: int, tensors: int, *, rows: int, columns: int, others: Mapping[str, bytes] | None = None) -> int:
    """Write a checkpoint of float32 tensors that are divided along their first dimension, and other values on rank 0.

    Returns:
        The number of bytes of the tensors and the other values.
    """
    held = [[opaque(name, content) for name, content in (others or {}).items()], *([] for _ in range(ranks - 1))]
    for number in range(tensors):
        whole = np.random.default_rng(number).random((rows + number % 7, columns), np.float32)
        cuts = [len(whole) * rank // ranks for rank in range(ranks + 1)]
        for contents, (start, end) in zip(held, pairwise(cuts), strict=True):
            contents.append(shard(f"layers.{number}.weight", whole, (start, 0), (end - start, columns), "Float32"))
    folder.mkdir()
    write_checkpoint(DCP, folder, held)
    return sum(tensor.nbytes for contents in held for tensor, _ in contents)


def transform(source: Path, target: Path, **options: Any) -> Path:
    """Transform a checkpoint, verify all of it, and return the target."""
    transform_checkpoint(Request(str(source), str(target), options=Options(**options, verification="Full")), workers=1)
    return target
