"""Read files in the two formats of MindSpore. The name of a file determines its format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from reshard.checkpoint import ckpt, safetensors
from reshard.errors import DataError
from reshard.gitlfs import LONGEST_POINTER, refuse_pointer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from reshard.checkpoint.inventory import Format, Header, RangeReader, Structure, TensorEntry

__all__ = ["FILE_FORMATS", "check_crc", "crc_reads", "format_of", "in_order", "read_header"]


class _FileFormat(Protocol):
    """The functions of a module of one format."""

    def read_header(self, reader: RangeReader, seen: dict[bytes, Structure] | None = None) -> Header: ...

    def crc_of(self, reader: RangeReader, structure: Structure) -> int: ...

    def crc_reads(self, size: int, structure: Structure) -> Iterator[tuple[int, int]]: ...

    def in_order(self, structure: Structure) -> Sequence[TensorEntry]: ...


# By name, which is also the suffix of the files.
FILE_FORMATS: Mapping[Format, _FileFormat] = {"ckpt": ckpt, "safetensors": safetensors}


def format_of(path: str) -> Format | None:
    """Return the format of a file, by its suffix, or None if the suffix is unknown."""
    return next((name for name in FILE_FORMATS if path.endswith(f".{name}")), None)


def read_header(reader: RangeReader, seen: dict[bytes, Structure] | None = None) -> Header:
    """Read the header of a file.

    Args:
        reader: reader of the file, whose name determines its format.
        seen: cache of the structures of other files, to which this function adds.

    Raises:
        DataError: the file is damaged, or its format is unknown.
    """
    if reader.size <= LONGEST_POINTER:
        refuse_pointer(reader.read(0, reader.size), reader.name)
    if (name := format_of(reader.name)) is None:
        raise DataError(
            "UnknownFormat",
            "the file name must end in .ckpt or .safetensors",
            where=reader.name,
            fix="use a .ckpt or .safetensors file",
        )
    return FILE_FORMATS[name].read_header(reader, seen)


def check_crc(reader: RangeReader, header: Header) -> None:
    """Read a whole file and compare it with the CRC32 that it contains, if any.

    Raises:
        DataError: the CRC32 differs.
    """
    if header.crc is None:
        return
    crc = FILE_FORMATS[header.structure.format].crc_of(reader, header.structure)
    if crc != header.crc:
        raise DataError(
            "CrcMismatch",
            f"the CRC32 of the content is {crc:#010x}, but the file records {header.crc:#010x}",
            where=reader.name,
            fix="the file is damaged; restore it",
        )


def crc_reads(size: int, header: Header) -> Iterator[tuple[int, int]]:
    """Yield the ranges that `check_crc` reads from a file of this length, as (offset, length)."""
    return FILE_FORMATS[header.structure.format].crc_reads(size, header.structure)


def in_order(structure: Structure) -> Sequence[TensorEntry]:
    """Return the tensors of a file in the order in which they are written to a new file."""
    return FILE_FORMATS[structure.format].in_order(structure)
