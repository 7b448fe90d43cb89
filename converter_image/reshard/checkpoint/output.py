"""Files as literal bytes, spans of tensors, and checksums. This separates file formats from data movement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import msgspec
import xxhash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence


class OutputTensor(msgspec.Struct, frozen=True, gc=False):
    """One tensor of a file to be written: all or a slice of a tensor of the checkpoint, or an object as bytes.

    Attributes:
        name: name, in any characters.
        dtype: name of the type in `reshard.checkpoint.dtypes`.
        shape: lengths of the slice in elements. For a `str`: the number of UTF-32 characters.
        nbytes: length of the content in bytes.
        start: index of the slice's first element in the whole tensor. Empty: 0 along each dimension.
        whole: lengths of the whole tensor. Empty: `shape`.
        keys: keys and positions that lead to the value in nested dicts and lists. Empty: the name alone.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    start: tuple[int, ...] = ()
    whole: tuple[int, ...] = ()
    keys: tuple[str | int, ...] = ()


def digest_of_tensors(tensors: Sequence[OutputTensor]) -> str:
    """Return a digest of the names, types and slices of a file's tensors, in their order."""
    return xxhash.xxh3_128_hexdigest(msgspec.msgpack.encode(tensors))


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One finished file of a checkpoint.

    Attributes:
        path: path relative to the checkpoint.
        size: length in bytes.
        tensors: tensors of the file, in content order.
    """

    path: str
    size: int
    tensors: tuple[OutputTensor, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """A range of bytes of a tensor's content. It may continue with the contents of the next tensors, without gaps.

    Attributes:
        tensor: position among the tensors of the file.
        offset: position of the first byte in the content.
        length: number of bytes.
    """

    tensor: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Checksum:
    """Bytes that depend on the content before them, so that they are known only after it has been produced.

    Attributes:
        length: number of bytes, at most a few KiB.
        render: function that returns the bytes for the CRC32 of the span directly before them.
    """

    length: int
    render: Callable[[int], bytes]


class OutputDefaults:
    """Default properties of `reshard.formats.protocol.OutputFormat`, for a format whose files describe themselves."""

    outputs: ClassVar[tuple[str, ...]] = ("PerRank",)
    once: ClassVar[bool] = False
    names_files: ClassVar[bool] = False
    document_names: ClassVar[tuple[str, ...]] = ()
    objects_of: ClassVar[frozenset[str]] = frozenset()
    has_settings: ClassVar[bool] = False
    can_encrypt: ClassVar[bool] = False
    can_be_empty: ClassVar[bool] = True
    one_header: ClassVar[bool] = False
    not_loaded: ClassVar[frozenset[str]] = frozenset()
    companions: tuple[str, ...] = ()

    def conflicting(self, ranks: int) -> tuple[str, ...]:
        """Return no names."""
        return ()

    def trailer(self, crc: int) -> bytes:
        """Return no bytes."""
        return b""

    def documents(self, files: Iterable[OutputFile]) -> Mapping[str, bytes]:
        """Return no documents."""
        return {}

    def carried(self, names: Sequence[str], where: str, *, settings: bool) -> Sequence[str]:
        """Return no files."""
        return ()


# A range of a file to be written.
Piece = bytes | Span | Checksum
