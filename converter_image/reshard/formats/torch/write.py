"""Distributed checkpoints of PyTorch (DCP) and of Megatron-core: a file for each rank, and `.metadata`.

```
__<rank>_0.distcp     objects, then tensors: each is an archive as torch.save writes it
.metadata             types, shapes, and the range of bytes of each shard
```
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, ClassVar

from reshard.checkpoint.dtypes import DTYPES, OBJECT
from reshard.checkpoint.inventory import TensorEntry
from reshard.checkpoint.output import Checksum, OutputDefaults, Span
from reshard.errors import DataError, RequestError
from reshard.formats.torch.envelope import Envelope, envelope
from reshard.formats.torch.items import Item, Templates, locate_items
from reshard.formats.torch.pickling import Shard, Value, metadata_pickle

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from reshard.checkpoint.inventory import RangeReader, Structure
    from reshard.checkpoint.output import OutputFile, OutputTensor, Piece


@dataclass(frozen=True, slots=True)
class DistributedFormat(OutputDefaults):
    """One of the two formats, as `reshard.formats.protocol.OutputFormat`.

    Attributes:
        name: name of the format.
        nested: whether `.metadata` lists the keys of nested dicts.
        companions: files that a checkpoint needs and that only its source can provide.
    """

    name: str
    nested: bool
    companions: tuple[str, ...] = ()
    crc: ClassVar[None] = None
    once: ClassVar = True
    names_files: ClassVar = True
    document_names: ClassVar = (".metadata",)
    objects_of: ClassVar = frozenset(("torch-dcp", "megatron"))

    def path(self, rank: int, ranks: int, stem: str) -> str:
        """Return the path of a rank's file, as torch names it."""
        return f"__{rank}_0.distcp"

    def can_hold(self, tensor: OutputTensor) -> bool:
        """Return True.

        Raises:
            DataError: torch does not have the type.
        """
        if tensor.dtype != OBJECT and DTYPES[tensor.dtype].torch is None:
            raise DataError(
                "UnknownType",
                f"torch has no equivalent of the type {tensor.dtype}",
                where=f"parameter {tensor.name}",
                fix="exclude the parameter, or write safetensors files: --format safetensors (spec.target.format: Safetensors)",
            )
        return True

    def content_order(self, tensors: Sequence[OutputTensor]) -> Sequence[int]:
        """Return the order of torch: objects, then tensors."""
        return sorted(range(len(tensors)), key=lambda i: tensors[i].dtype != OBJECT)

    def pieces(self, tensors: Sequence[OutputTensor], metadata: Mapping[str, str], crc: int | None = None) -> Iterator[Piece]:
        """Yield a file of archives. An object is an archive already."""
        for number, tensor in enumerate(tensors):
            span = Span(number, 0, tensor.nbytes)
            if tensor.dtype == OBJECT:
                yield span
                continue
            around = _around(tensor)
            yield around.head
            if tensor.nbytes:
                yield span
                yield Checksum(around.tail_size, around.tail)
            else:
                yield around.tail(0)

    def file_size(self, tensors: Sequence[OutputTensor], metadata: Mapping[str, str], *, crc: bool = False) -> int:
        """Return the length of a file in bytes."""
        return sum(map(_length, tensors))

    def entries(
        self, reader: RangeReader, tensors: Iterable[OutputTensor], seen: dict[bytes, Structure] | None = None
    ) -> tuple[TensorEntry, ...]:
        """Return the tensors in the archives of a finished file.

        Raises:
            DataError: an archive is damaged, or is not the tensor that it should be.
        """
        tensors = tuple(tensors)
        starts = [0, *accumulate(map(_length, tensors))]
        if starts[-1] != reader.size:
            raise DataError(
                "SizeMismatch",
                f"the archives require {starts[-1]} bytes, but the file contains {reader.size}",
                where=reader.name,
                fix="the file is damaged; restore it",
            )
        archives = [
            Item(tensor.name, tensor.dtype, tensor.shape, start, end - start)
            for tensor, (start, end) in zip(tensors, pairwise(starts), strict=True)
            if tensor.dtype != OBJECT and tensor.nbytes
        ]
        contents = {}
        for item, content in zip(archives, locate_items(reader, archives, Templates()), strict=True):
            if content.strides is not None:
                raise DataError(
                    "UnsupportedStrides",
                    "the elements are not in row-major order, in which Reshard writes them",
                    where=f"{reader.name}: tensor {item.name}",
                    fix="the file is damaged; restore it",
                )
            contents[item.start] = content.offset, content.length
        return tuple(
            TensorEntry(tensor.name, tensor.dtype, tensor.shape, (contents.get(start, (start, tensor.nbytes)),))
            for tensor, start in zip(tensors, starts, strict=False)
        )

    def documents(self, files: Iterable[OutputFile]) -> Mapping[str, bytes]:
        """Return `.metadata`, with names and shards in ascending order. The first of equal shards counts."""
        described: dict[str, OutputTensor] = {}
        shards: defaultdict[str, dict[tuple[int, ...] | None, Shard]] = defaultdict(dict)
        for file in files:
            at = 0
            for tensor in file.tensors:
                described.setdefault(tensor.name, tensor)
                start, length = None if tensor.dtype == OBJECT else tensor.start or (0,) * len(tensor.shape), _length(tensor)
                shards[tensor.name].setdefault(start, Shard(start, tensor.shape, file.path, at, length))
                at += length
        values = {name: _value(described[name], list(shards[name].values())) for name in sorted(described)}
        return {".metadata": metadata_pickle(values, nested=self.nested)}

    def carried(self, names: Sequence[str], where: str, *, settings: bool) -> Sequence[str]:
        """Return the files of the source that the checkpoint needs.

        Raises:
            RequestError: the source does not have them.
        """
        missing = [name for name in self.companions if name not in names]
        if missing:
            raise RequestError(
                "NotMegatron",
                f"the source has no {' and no '.join(missing)}, which Megatron-core requires in a checkpoint",
                where=where,
                fix="use a checkpoint of Megatron-core as the source, or write a distributed checkpoint: --format torch-dcp",
            )
        return self.companions


DCP = DistributedFormat("torch-dcp", nested=True)
# Megatron-core saves nested dicts as they are, and what is not sharded in common.pt.
MEGATRON = DistributedFormat("megatron", nested=False, companions=("common.pt", "metadata.json"))


def _around(tensor: OutputTensor) -> Envelope:
    return envelope(tensor.dtype, tensor.shape, tensor.nbytes)


def _length(tensor: OutputTensor) -> int:
    return tensor.nbytes if tensor.dtype == OBJECT else _around(tensor).size


def _value(tensor: OutputTensor, shards: list[Shard]) -> Value:
    keys = tensor.keys or (tensor.name,)
    if tensor.dtype == OBJECT:
        return Value(None, (), keys, shards)
    shards.sort(key=lambda shard: shard.start or ())
    return Value(DTYPES[tensor.dtype].torch, tensor.whole or tensor.shape, keys, shards)
