"""Distributed checkpoints of PyTorch (DCP) and of Megatron-core: a file for each rank, and `.metadata`.

```
__<rank>_0.distcp     objects, then tensors: each is an archive as torch.save writes it
.metadata             types, shapes, and the range of bytes of each shard
```
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from reshard.checkpoint.dtypes import DTYPES, OBJECT
from reshard.checkpoint.inventory import TensorEntry
from reshard.checkpoint.output import Checksum, Span
from reshard.errors import DataError, RequestError
from reshard.formats.torch.archive import locate, read_archive
from reshard.formats.torch.envelope import Envelope, envelope
from reshard.formats.torch.pickling import Item, Value, metadata_pickle

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from reshard.checkpoint.inventory import RangeReader
    from reshard.checkpoint.output import OutputFile, OutputTensor, Piece


@dataclass(frozen=True, slots=True)
class DistributedFormat:
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

    def conflicting(self, ranks: int) -> tuple[str, ...]:
        """Return no names."""
        return ()

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

    def trailer(self, crc: int) -> bytes:
        """Return no bytes: each archive has its own CRCs."""
        return b""

    def entries(self, reader: RangeReader, tensors: Sequence[OutputTensor]) -> tuple[TensorEntry, ...]:
        """Return the tensors that the archives of a finished file describe."""
        found, at = [], 0
        for tensor in tensors:
            length = _length(tensor)
            found.append(_entry(reader, tensor, at, length))
            at += length
        if at != reader.size:
            raise _damaged(reader, f"the file has {reader.size} bytes instead of {at}")
        return tuple(found)

    def documents(self, files: Iterable[OutputFile]) -> Mapping[str, bytes]:
        """Return `.metadata`, with names and shards in ascending order. The first of equal shards counts."""
        described: dict[str, OutputTensor] = {}
        items: defaultdict[str, dict[tuple[int, ...] | None, Item]] = defaultdict(dict)
        for file in files:
            at = 0
            for tensor in file.tensors:
                described.setdefault(tensor.name, tensor)
                start, length = None if tensor.dtype == OBJECT else tensor.start, _length(tensor)
                items[tensor.name].setdefault(start, Item(start, tensor.shape, file.path, at, length))
                at += length
        values = {name: _value(described[name], list(items[name].values())) for name in sorted(described)}
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


def _value(tensor: OutputTensor, items: list[Item]) -> Value:
    if tensor.dtype == OBJECT:
        return Value(None, (), tensor.keys, items)
    items.sort(key=lambda item: item.start or ())
    return Value(DTYPES[tensor.dtype].torch, tensor.whole, tensor.keys, items)


def _entry(reader: RangeReader, tensor: OutputTensor, at: int, length: int) -> TensorEntry:
    """Return what a finished file holds in a range of bytes.

    Raises:
        DataError: it is not an archive of one row-major tensor.
    """
    if tensor.dtype == OBJECT:
        return TensorEntry(tensor.name, OBJECT, (length,), ((at, length),))
    archive = read_archive(reader, at, length)
    stored = archive.tensors[0] if len(archive.tensors) == 1 else None
    if stored is None or not stored.row_major or stored.first:
        raise _damaged(reader, "the archive does not hold one row-major tensor", name=tensor.name)
    return TensorEntry(tensor.name, stored.dtype.name, stored.shape, (locate(reader, archive, stored.storage),))


def _damaged(reader: RangeReader, what: str, *, name: str | None = None) -> DataError:
    where = reader.name if name is None else f"{reader.name}: parameter {name}"
    return DataError("ArchiveInvalid", what, where=where, fix="the file is damaged; restore it")
