"""Read and write checkpoint files of both formats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reshard.checkpoint import ckpt, safetensors
from reshard.checkpoint.ckpt import crc_trailer
from reshard.checkpoint.dtypes import DTYPES
from reshard.checkpoint.output import OutputTensor, Span
from reshard.errors import DataError
from reshard.gitlfs import LONGEST_POINTER, refuse_pointer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from reshard.checkpoint.inventory import Format, Header, RangeReader, Structure

__all__ = [
    "OutputTensor",
    "Span",
    "can_hold",
    "check_crc",
    "content_order",
    "crc_reads",
    "crc_trailer",
    "file_size",
    "format_of",
    "pieces",
    "read_header",
]


def format_of(path: str) -> Format | None:
    """Return the format of a file, by its suffix. None: the suffix is unknown."""
    if path.endswith(".ckpt"):
        return "ckpt"
    if path.endswith(".safetensors"):
        return "safetensors"
    return None


def read_header(reader: RangeReader, seen: dict[bytes, Structure] | None = None) -> Header:
    """Read the header of a file.

    Args:
        reader: reader of the file, whose name determines its format.
        seen: structures of files that were read before, to share them. New ones are added.

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
        case None:
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


def can_hold(output: Format, name: str, dtype: str, shape: tuple[int, ...]) -> bool:
    """Return whether a format can hold a tensor. MindSpore loads shape [0] from a `.ckpt` file as a scalar without a value.

    Raises:
        DataError: the format does not support the type.
    """
    found = DTYPES[dtype]
    if output == "safetensors" and found.safetensors is None:
        what = f"safetensors has no equivalent of MindSpore's type {dtype}"
        fix = "write .ckpt files: --format ckpt (spec.target.format: Ckpt)"
    elif output == "ckpt" and not found.in_ckpt:
        what = f"a .ckpt file cannot contain the safetensors type {dtype}, because MindSpore has no equivalent"
        fix = "write safetensors files: --format safetensors (spec.target.format: Safetensors)"
    else:
        return output == "safetensors" or shape != (0,)
    raise DataError("UnknownType", what, where=f"parameter {name}", fix=fix)


def content_order(output: Format, tensors: Sequence[OutputTensor]) -> Sequence[int]:
    """Return the positions of tensors in the order in which a file holds their contents."""
    return range(len(tensors)) if output == "ckpt" else safetensors.content_order(tensors)


def pieces(
    output: Format, tensors: Sequence[OutputTensor], metadata: dict[str, str], crc: int | None = None
) -> Iterator[bytes | Span]:
    """Yield a file from its first byte to its last, without the CRC at the end of a `.ckpt` file.

    Args:
        output: format of the file.
        tensors: tensors of the file, in content order.
        metadata: metadata in the header of a safetensors file.
        crc: CRC32 in the header of a safetensors file. A `.ckpt` file has it at the end, see `crc_trailer`.

    Raises:
        DataError, OutputError: see `file_size`.
    """
    return ckpt.pieces(tensors) if output == "ckpt" else safetensors.pieces(tensors, metadata, crc)


def file_size(output: Format, tensors: Sequence[OutputTensor], metadata: dict[str, str], *, crc: bool = False) -> int:
    """Return the length of the file in bytes, including its CRC if it has one.

    Args:
        output: format of the file.
        tensors: tensors of the file, in content order.
        metadata: metadata in the header of a safetensors file.
        crc: whether the file has a CRC.

    Raises:
        DataError: the format reserves the name of a parameter.
        OutputError: the file would contain more parameters than the format allows.
    """
    if output == "ckpt":
        return ckpt.file_size(tensors, crc=crc)
    return safetensors.file_size(tensors, metadata, crc=crc)
