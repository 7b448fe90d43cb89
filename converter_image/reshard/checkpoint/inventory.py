"""The content of a checkpoint's files as frozen data: the result of reading headers, and the input of a plan."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from math import prod
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

import msgspec

from reshard.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

Format = str  # "ckpt", "safetensors", or the name of another format, see `reshard.formats.registry`
# Ranks: each file belongs to a rank, sharded by a strategy. Unified: files of whole parameters; those that no strategy names are
# in a separate file. Sharded: files of whole parameters as Hugging Face libraries write them, without any strategy. Boxes: the
# checkpoint's own metadata locates the shards of each tensor.
Kind = Literal["Ranks", "Unified", "Sharded", "Boxes"]

# An inventory may come from an untrusted document: no number is negative, and no path leads outside the source.
_Count = Annotated[int, msgspec.Meta(ge=0)]
_Path = Annotated[str, msgspec.Meta(pattern=r"^(?![\s\S]*(?:^|/)\.{0,2}(?:/|$))[^\x00]+$")]
# Keys of dicts and positions in lists, from the outermost to the innermost.
Keys = tuple[str | _Count, ...]


class RangeReader(Protocol):
    """Reader of byte ranges of one file. This is the only interface between formats and storages."""

    @property
    def name(self) -> str:
        """The file's path, for messages."""

    @property
    def size(self) -> int:
        """The file's length in bytes."""

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`. Raises StorageError or DataError if there are fewer."""


class TensorEntry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One parameter in one file.

    Attributes:
        name: name in the file, in any characters.
        dtype: name of the type in `reshard.checkpoint.dtypes`.
        shape: lengths of this file's slice. For a `str`: the number of UTF-32 characters.
        extents: ranges of the content in the file, as (offset, length) in bytes, in order. Only a `.ckpt` parameter above 512 MiB
            has several.
    """

    name: str
    dtype: str
    shape: tuple[_Count, ...]
    extents: tuple[tuple[_Count, _Count], ...]

    @property
    def nbytes(self) -> int:
        """Length of the content in bytes."""
        return self.extents[0][1] if len(self.extents) == 1 else sum(length for _, length in self.extents)

    def located(self, start: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges of the file that hold `length` bytes of the content from byte `start`, as (offset, length).

        Raises:
            DataError: the content is shorter.
        """
        for offset, held in self.extents:
            if start < held:
                n = min(held - start, length)
                yield offset + start, n
                length -= n
                start = 0
                if not length:
                    return
            else:
                start -= held
        raise DataError(
            "Truncated",
            f"the content has {self.nbytes} bytes, which is too few for {prod(self.shape)} elements",
            where=f"parameter {self.name}",
            fix="the file is damaged; restore it",
        )


class Structure(msgspec.Struct, frozen=True, array_like=True):
    """The structure of a file, from its header. Ranks of one SPMD program have equal structures, which are stored once.

    Attributes:
        format: the format of the file.
        tensors: parameters in the file, in the order of their content.
        metadata: metadata of a safetensors file, without values that are specific to this file (`crc_num`) or contained in the
            entries.
    """

    format: Format
    tensors: tuple[TensorEntry, ...]
    metadata: dict[str, str] = {}

    @property
    def key(self) -> Hashable:
        """Digest that is equal for equal structures."""
        return (self.format, self.tensors, tuple(sorted(self.metadata.items())))


class ShardedTensor(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One tensor whose shards the metadata of the checkpoint locates, see `reshard.model.packing`.

    Attributes:
        name: name in the checkpoint, in any characters.
        dtype: name of the type in `reshard.checkpoint.dtypes`.
        shape: lengths of the whole tensor, in elements.
        shards: shards as little-endian 64-bit integers. Each shard consists of its first element and its length along each
            dimension, the number of its file, its offset and its length in bytes.
    """

    name: str
    dtype: str
    shape: tuple[_Count, ...]
    shards: bytes

    @property
    def count(self) -> int:
        """Number of shards, with replicas."""
        return len(self.shards) // (8 * (2 * len(self.shape) + 3))


class OpaqueObject(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A value that is not a tensor. It is copied as bytes and never opened.

    Attributes:
        name: name in the checkpoint.
        file: number of the file.
        offset: offset of the first byte in the file.
        length: number of bytes.
    """

    name: str
    file: _Count
    offset: _Count
    length: _Count


class CarriedFile(msgspec.Struct, frozen=True):
    """A small file of the source that is copied to the target unchanged, such as the configuration of a model.

    Attributes:
        path: name of the file, in the source and in the target.
        size: length in bytes.
        digest: digest of the content, like that of a file's record.
    """

    path: Annotated[str, msgspec.Meta(pattern=r"^[^./\x00][^/\x00]{0,254}$")]
    size: _Count
    digest: str


class Header(msgspec.Struct, frozen=True, array_like=True):
    """The header of one file: its structure, and its CRC32, if any."""

    structure: Structure
    crc: int | None = None


class SourceFile(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One file of the source.

    Attributes:
        rank: source rank that wrote the file.
        path: path relative to the source.
        size: length in bytes.
        version: value that changes when the file does: modification time in a file system, ETag in an object store.
        structure: position in `Inventory.structures`.
        crc: CRC32 in the file. None means that the file has none.
        sample: digest of some of the content, to distinguish files with the same size and time.
        changed: see `Reader.changed`. A new owner or link changes it too, so it only shows which contents to compare.
    """

    rank: _Count
    path: _Path
    size: _Count
    version: str
    structure: _Count
    crc: int | None = None
    sample: str = ""
    changed: _Count = 0


class Inventory(msgspec.Struct, frozen=True):
    """All files of a source checkpoint, in ascending order of rank.

    Attributes:
        files: all files of the checkpoint.
        structures: distinct structures of the files.
        kind: kind of the files. Files of whole parameters are numbered like ranks.
        foreign: whether the unified files were written by another program: MindSpore's index lists them, but no manifest.
        may_be_slices: names of parameters for which the files may contain only rank 0's slice.
        keys: keys that lead to values in nested dicts and lists, see `reshard.model.Checkpoint`.
        tensors: tensors whose shards the metadata of the checkpoint locates. The structures of its files are empty.
        objects: values in the checkpoint that are not tensors.
        carried: small files of the source that are copied unchanged.
        documents: number of the last files, which hold only metadata.
        unread: names of tensors and objects whose metadata was not read, because the request excludes them.
    """

    files: tuple[SourceFile, ...]
    structures: tuple[Structure, ...]
    kind: Kind = "Ranks"
    foreign: bool = False
    may_be_slices: tuple[str, ...] = ()
    keys: dict[str, Keys] = {}
    tensors: tuple[ShardedTensor, ...] = ()
    objects: tuple[OpaqueObject, ...] = ()
    documents: int = 0
    unread: tuple[str, ...] = ()
    carried: tuple[CarriedFile, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all parameters, each once."""
        every = (entry.name for structure in self.structures for entry in structure.tensors)
        return tuple(dict.fromkeys((*every, *(tensor.name for tensor in self.tensors))))

    @property
    def empty_files(self) -> tuple[SourceFile, ...]:
        """Files without parameters, which should hold some."""
        if self.kind == "Boxes":
            return ()
        return tuple(file for file in self.files if not self.structures[file.structure].tensors)

    @property
    def identity(self) -> Inventory:
        """Return the inventory without the times of files whose content was sampled, so that copies of a source are equal."""
        files = (msgspec.structs.replace(f, version="" if f.sample else f.version, changed=0) for f in self.files)
        return msgspec.structs.replace(self, files=tuple(files))

    @property
    def pinned(self) -> Inventory:
        """Inventory with only the times of files that change together with their content."""
        return msgspec.structs.replace(self, files=tuple(msgspec.structs.replace(file, changed=0) for file in self.files))

    @property
    def versions(self) -> str:
        """Digest of all files' versions. If it is equal, no file was written, copied or replaced."""
        found = [(file.rank, file.version, file.changed) for file in self.files]
        return hashlib.sha256(msgspec.json.encode(found)).hexdigest()

    @property
    def format(self) -> Format:
        """Format of all files."""
        return self.structures[0].format

    def file_of(self, rank: int) -> SourceFile | None:
        """Return the file of a rank, or None if the rank has no file."""
        at = bisect_left(self.files, rank, key=lambda file: file.rank)
        return self.files[at] if at < len(self.files) and self.files[at].rank == rank else None

    @property
    def checkable(self) -> tuple[SourceFile, ...]:
        """Files with a CRC32 of their own content. MindSpore's unified files have the CRC32 of a source rank's file."""
        return () if self.foreign else tuple(file for file in self.files if file.crc is not None)

    @property
    def unified(self) -> bool:
        """True if the files contain whole parameters, to which no strategy applies."""
        return self.kind != "Ranks"
