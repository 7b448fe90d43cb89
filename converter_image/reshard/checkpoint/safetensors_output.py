"""New files in the safetensors format with MindSpore's metadata, see `reshard.checkpoint.safetensors`."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import msgspec

from reshard.checkpoint.dtypes import DTYPES, INT4, OBJECT, SAFETENSORS_ORDER, STRING
from reshard.checkpoint.output import OutputDefaults, Span
from reshard.checkpoint.safetensors import CRC, CRC_DIGITS, LENGTH, MAX_HEADER_BYTES, METADATA, STRINGS, TensorHeader, read_header
from reshard.errors import DataError, OutputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from reshard.checkpoint.inventory import RangeReader, Structure, TensorEntry
    from reshard.checkpoint.output import OutputTensor, Piece

_ENCODED_TOGETHER = 4096


def content_order(tensors: Sequence[OutputTensor]) -> list[int]:
    """Return the order in which the safetensors library writes contents: by type, widest first, then by name."""
    ranks = {name: -SAFETENSORS_ORDER[DTYPES[name].safetensors] for name in {tensor.dtype for tensor in tensors}}
    keys = [(ranks[tensor.dtype], tensor.name) for tensor in tensors]
    return sorted(range(len(tensors)), key=keys.__getitem__)


def pieces(tensors: Sequence[OutputTensor], metadata: Mapping[str, str], crc: int | None) -> Iterator[bytes | Span]:
    """Yield a file of these tensors, in content order, from its first byte to its last.

    Raises:
        DataError: the format reserves the name of a tensor.
        OutputError: the header is longer than the format allows.
    """
    yield _header(tensors, metadata, crc)
    if length := sum(tensor.nbytes for tensor in tensors):
        yield Span(0, 0, length)


def file_size(tensors: Sequence[OutputTensor], metadata: Mapping[str, str], *, crc: bool) -> int:
    """Return the length of the file in bytes."""
    return len(_header(tensors, metadata, 0 if crc else None)) + sum(tensor.nbytes for tensor in tensors)


class SafetensorsFormat(OutputDefaults):
    """The format with MindSpore's names and metadata, as `reshard.formats.protocol.OutputFormat`."""

    name: str = "safetensors"
    outputs: ClassVar[tuple[str, ...]] = ("PerRank", "Stage", "Unified", "Same")
    one_header: ClassVar[bool] = True
    crc: Literal["Header"] | None = "Header"

    def path(self, rank: int, ranks: int, stem: str) -> str:
        """Return the path of a rank's file."""
        return f"{stem}.safetensors"

    def can_hold(self, tensor: OutputTensor) -> bool:
        """Return whether the value is a tensor.

        Raises:
            DataError: the format does not have the type, or counts numbers where a scalar has several.
        """
        if tensor.dtype == OBJECT:
            return False
        dtype = DTYPES[tensor.dtype]
        if dtype.safetensors is None:
            raise DataError(
                "UnknownType",
                f"safetensors has no equivalent of the type {dtype.name}",
                where=f"parameter {tensor.name}",
                fix="write .ckpt files: --format ckpt (spec.target.format: Ckpt)"
                if dtype.ckpt
                else "save the checkpoint without this parameter",
            )
        if dtype.values > 1 and not tensor.shape:
            raise DataError(
                "NotByteAligned",
                f"a scalar of the type {dtype.name} has {dtype.values} numbers, but a scalar in a safetensors file has one",
                where=f"parameter {tensor.name}",
                fix="save the tensor with a dimension, or save the checkpoint without this parameter",
            )
        return True

    def content_order(self, tensors: Sequence[OutputTensor]) -> Sequence[int]:
        """Return the order of the safetensors library."""
        return content_order(tensors)

    def pieces(self, tensors: Sequence[OutputTensor], metadata: Mapping[str, str], crc: int | None = None) -> Iterator[Piece]:
        """Yield a file with a CRC in its header, or without one."""
        return pieces(tensors, metadata, crc)

    def file_size(self, tensors: Sequence[OutputTensor], metadata: Mapping[str, str], *, crc: bool = False) -> int:
        """Return the length of a file in bytes."""
        return file_size(tensors, metadata, crc=crc)

    def entries(
        self, reader: RangeReader, tensors: Iterable[OutputTensor], seen: dict[bytes, Structure] | None = None
    ) -> tuple[TensorEntry, ...]:
        """Return the tensors that a finished file describes."""
        return read_header(reader, seen).structure.tensors


SAFETENSORS = SafetensorsFormat()


def _header(tensors: Sequence[OutputTensor], metadata: Mapping[str, str], crc: int | None) -> bytes:
    """Return the part of the file before its contents, as the library writes it, padded to a multiple of 8 bytes."""
    marks, dtypes = dict(metadata), {name: DTYPES[name] for name in {tensor.dtype for tensor in tensors}}
    if STRING in dtypes:
        marks[STRINGS] = msgspec.json.encode([tensor.name for tensor in tensors if tensor.dtype == STRING]).decode()
    if crc is not None:
        marks[CRC] = f"{crc:0{CRC_DIGITS}d}"  # fixed length, so that the file size is known before the content
    reserved = {METADATA, *marks, CRC, STRINGS}
    for tensor in tensors:
        if tensor.name in reserved and (tensor.name == METADATA or tensor.name in marks or tensor.dtype == INT4):
            raise DataError(
                "ReservedName",
                f"safetensors reserves the name of this {tensor.dtype} parameter",
                where=f"parameter {tensor.name}",
                fix="rename the parameter; unless the output is unified, you can also write .ckpt files: "
                "--format ckpt (spec.target.format: Ckpt)",
            )
    if INT4 in dtypes:
        marks |= {tensor.name: INT4 for tensor in tensors if tensor.dtype == INT4}
    # Few tensors are in memory in another form at a time.
    parts, end = [msgspec.json.encode({METADATA: marks})[1:-1]] if marks else [], 0
    for at in range(0, len(tensors), _ENCODED_TOGETHER):
        header = {}
        for tensor in tensors[at : at + _ENCODED_TOGETHER]:
            dtype, first, end = dtypes[tensor.dtype], end, end + tensor.nbytes
            shape = tensor.shape if dtype.values == 1 else dtype.count_values(tensor.shape)
            header[tensor.name] = TensorHeader(dtype.safetensors or "", shape, (first, end))
        parts.append(msgspec.json.encode(header)[1:-1])
    encoded = b"{" + b",".join(parts) + b"}"
    encoded += b" " * (-len(encoded) % 8)
    if len(encoded) > MAX_HEADER_BYTES:
        raise OutputError(
            "HeaderTooLarge",
            f"the header of {len(tensors)} tensors has {len(encoded)} bytes, which is more than the format allows",
            where="target",
            fix="write .ckpt files: --format ckpt (spec.target.format: Ckpt); for --output unified, lower --max-file-size-bytes",
        )
    return LENGTH.pack(len(encoded)) + encoded
