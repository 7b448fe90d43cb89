"""Shards in safetensors files, as PyTorch's HuggingFaceStorageWriter saves them: the offsets of each shard are in the header.

The names of the files tell them from files of whole tensors. If they were renamed, the format has to be requested by its name.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import msgspec

from reshard.checkpoint.safetensors import read_header
from reshard.checkpoint.safetensors_output import SafetensorsFormat, file_size, pieces
from reshard.errors import DataError
from reshard.formats.detection import SHARD
from reshard.formats.huggingface.write import HUGGING_FACE, METADATA
from reshard.formats.shards import ShardTable
from reshard.model import Checkpoint
from reshard.parallel import parallel
from reshard.strictjson import pairs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from reshard.checkpoint.inventory import Structure
    from reshard.checkpoint.output import OutputTensor, Piece
    from reshard.formats.protocol import Folder

_INFO = "DCP_SHARDING_INFO"
_MOST_TENSORS = 1 << 20
# Types that safetensors.torch (0.8.0) does not list, although its `safe_open` returns tensors of them.
_NOT_READ = frozenset({"float4_e2m1fn_x2", "F8_E8M0"})


class _Offsets(msgspec.Struct):
    saved_offsets: Annotated[tuple[Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)], ...], msgspec.Meta(max_length=32)]


def read(folder: Folder, workers: int = 1, wanted: Callable[[str], bool] | None = None) -> Checkpoint:
    """Return the tensors of a checkpoint, see `SourceFormat.read`.

    No file states the shape of a whole tensor, or the number of files. The shape is that of the smallest box that contains all
    shards, so a tensor whose last shard is in a missing file appears to be shorter. A note tells the user.
    """
    files = [name for name in folder.names if name.endswith(".safetensors")]
    named = [name for name in files if re.fullmatch(SHARD, name)]
    files = sorted(named or files)

    def structure_of(name: str) -> Structure:
        with folder.open(name) as reader:
            return read_header(reader).structure

    table = ShardTable()
    for number, structure in enumerate(parallel(structure_of, files, at_once=workers)):
        where = f"{folder.url}/{files[number]}"
        if _INFO not in structure.metadata:
            raise DataError(
                "MetadataMissing",
                f"the metadata of the file has no {_INFO}, so the position of its shards is unknown",
                where=where,
                fix="remove the file if it holds whole tensors, and specify a folder that HuggingFaceStorageWriter wrote",
            )
        starts = saved_offsets(structure.metadata, where)
        for entry in structure.tensors:
            if wanted is None or wanted(entry.name):
                start = starts.get(entry.name, (0,) * len(entry.shape))
                table.add(entry.name, entry.dtype, start, entry.shape, (number, *entry.extents[0]), where)
    note = (
        f"{len(files)} files were read, up to {files[-1]}; check that each rank's files exist, because {_INFO} does not state the"
        " shapes of whole tensors, so a missing last file cannot be detected"
    )
    return Checkpoint(tuple(files), tuple(table.tensors()), notes=(note,))


def saved_offsets(metadata: Mapping[str, str], where: str) -> dict[str, tuple[int, ...]]:
    """Return the first element of the shard of each tensor in a file, from the metadata in its header.

    Raises:
        DataError: the metadata is damaged.
    """
    try:
        found = pairs(metadata.get(_INFO, "{}").encode(), _MOST_TENSORS, _Offsets)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise DataError(
            "MetadataInvalid", f"{_INFO} in the metadata of the file is damaged: {error}", where=where, fix="restore the file"
        ) from None
    return {name: offsets.saved_offsets for name, offsets in found}


class _ShardedOutput(SafetensorsFormat):
    """The format as `reshard.formats.protocol.OutputFormat`. Files have no index, because tensors are in several files."""

    name = "torch-safetensors"
    outputs = ("PerRank",)
    crc = None
    once = True
    names_files = True

    def path(self, rank: int, ranks: int, stem: str) -> str:
        """Return the path of a rank's file, as torch names it."""
        return f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors"

    def can_hold(self, tensor: OutputTensor) -> bool:
        """Return whether the value is a tensor.

        Raises:
            DataError: HuggingFaceStorageReader does not know the type, and would refuse all files.
        """
        held = HUGGING_FACE.can_hold(tensor)
        if tensor.dtype in _NOT_READ:
            raise DataError(
                "UnknownType",
                f"torch's HuggingFaceStorageReader cannot read the type {tensor.dtype}",
                where=f"parameter {tensor.name}",
                fix="exclude the parameter, or write a distributed checkpoint: --format torch-dcp",
            )
        return held

    def pieces(self, tensors: Sequence[OutputTensor], metadata: Mapping[str, str], crc: int | None = None) -> Iterator[Piece]:
        """Yield a file with the offsets of its shards."""
        return pieces(tensors, _metadata(tensors), None)

    def file_size(self, tensors: Sequence[OutputTensor], metadata: Mapping[str, str], *, crc: bool = False) -> int:
        """Return the length of a file in bytes."""
        return file_size(tensors, _metadata(tensors), crc=False)


SHARDED_OUTPUT = _ShardedOutput()


def _metadata(tensors: Sequence[OutputTensor]) -> dict[str, str]:
    offsets = {tensor.name: _Offsets(tensor.start) for tensor in tensors}
    return {_INFO: msgspec.json.encode(offsets).decode(), "DCP_VERSION": "1.0", **METADATA}
