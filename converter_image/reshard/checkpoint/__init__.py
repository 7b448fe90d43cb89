"""Read files in the two formats of MindSpore. The name of a file determines its format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reshard.checkpoint import ckpt, safetensors
from reshard.errors import DataError
from reshard.gitlfs import LONGEST_POINTER, refuse_pointer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reshard.checkpoint.inventory import Format, Header, RangeReader, Structure

__all__ = ["check_crc", "crc_reads", "format_of", "read_header"]


def format_of(path: str) -> Format | None:
    """Return the format of a file, by its suffix, or None if the suffix is unknown."""
    if path.endswith(".ckpt"):
        return "ckpt"
    if path.endswith(".safetensors"):
        return "safetensors"
    return None


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
    match format_of(reader.name):
        case "ckpt":
            return ckpt.read_header(reader)
        case "safetensors":
            return safetensors.read_header(reader, seen)
        case _:
            raise DataError(
                "UnknownFormat",
                "the file name must end in .ckpt or .safetensors",
                where=reader.name,
                fix="use a .ckpt or .safetensors file",
            )


def check_crc(reader: RangeReader, header: Header) -> None:
    """Read a whole file and compare it with the CRC32 that it contains, if any.

    Raises:
        DataError: the CRC32 differs.
    """
    if header.crc is None:
        return
    crc = ckpt.crc_of(reader) if header.structure.format == "ckpt" else safetensors.crc_of(reader, header.structure)
    if crc != header.crc:
        raise DataError(
            "CrcMismatch",
            f"the CRC32 of the content is {crc:#010x}, but the file records {header.crc:#010x}",
            where=reader.name,
            fix="the file is damaged; restore it",
        )


def crc_reads(size: int, header: Header) -> Iterator[tuple[int, int]]:
    """Yield the ranges that `check_crc` reads from a file of this length, as (offset, length)."""
    return ckpt.crc_reads(size) if header.structure.format == "ckpt" else safetensors.crc_reads(header.structure)
