"""New files in MindSpore's `.ckpt` format, see `reshard.checkpoint.ckpt`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from reshard.checkpoint.ckpt import CRC_BYTES, CRC_MARK, TRAILER_BYTES, read_header
from reshard.checkpoint.dtypes import BY_CKPT_NAME, DTYPES, OBJECT, STRING
from reshard.checkpoint.output import OutputDefaults, Span
from reshard.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from reshard.checkpoint.inventory import RangeReader, Structure, TensorEntry
    from reshard.checkpoint.output import OutputTensor, Piece

# MindSpore splits larger tensors over several messages, each of which a loader parses as a whole (SLICE_SIZE).
CHUNK_BYTES = 512 << 20
_TYPE_NAMES = {dtype.name: name.encode() for name, dtype in BY_CKPT_NAME.items()}


def crc_trailer(crc: int) -> bytes:
    """Return the trailer of a file: the CRC32 of its messages."""
    return CRC_MARK + crc.to_bytes(CRC_BYTES, "big")


def pieces(tensors: Sequence[OutputTensor]) -> Iterator[bytes | Span]:
    """Yield a file of these tensors from its first byte to its last, without a CRC."""
    for number, tensor in enumerate(tensors):
        for offset, length in _chunks(tensor):
            yield _head(tensor, length)
            if length:
                yield Span(number, offset, length)


def file_size(tensors: Sequence[OutputTensor], *, crc: bool) -> int:
    """Return the length of the file in bytes."""
    messages = sum(len(_head(tensor, length)) + length for tensor in tensors for _, length in _chunks(tensor))
    return messages + (TRAILER_BYTES if crc else 0)


class CkptFormat(OutputDefaults):
    """The format as `reshard.formats.protocol.OutputFormat`."""

    name: Final = "ckpt"
    outputs = ("PerRank", "Stage", "Same")
    crc: Final = "Trailer"
    can_encrypt = True
    can_be_empty = False
    not_loaded = frozenset(dtype.name for dtype in DTYPES.values() if not dtype.loads_from_ckpt)

    def path(self, rank: int, ranks: int, stem: str) -> str:
        """Return the path of a rank's file."""
        return f"{stem}.ckpt"

    def can_hold(self, tensor: OutputTensor) -> bool:
        """Return whether a file can hold a value, which must be a tensor.

        A tensor of shape [0] is refused, because MindSpore loads it as a scalar without a value.

        Raises:
            DataError: MindSpore does not have the type.
        """
        if tensor.dtype == OBJECT:
            return False
        dtype = DTYPES[tensor.dtype]
        if dtype.ckpt is None:
            raise DataError(
                "UnknownType",
                f"a .ckpt file cannot contain the type {dtype.name}, because MindSpore has no equivalent",
                where=f"parameter {tensor.name}",
                fix="write safetensors files: --format safetensors (spec.target.format: Safetensors)"
                if dtype.safetensors
                else "save the checkpoint without this parameter",
            )
        return (tensor.whole or tensor.shape) != (0,)

    def content_order(self, tensors: Sequence[OutputTensor]) -> Sequence[int]:
        """Return the order of the tensors as it is."""
        return range(len(tensors))

    def pieces(
        self,
        tensors: Sequence[OutputTensor],
        metadata: Mapping[str, str],
        crc: int | None = None,
    ) -> Iterator[Piece]:
        """Yield a file without its CRC."""
        return pieces(tensors)

    def file_size(self, tensors: Sequence[OutputTensor], metadata: Mapping[str, str], *, crc: bool = False) -> int:
        """Return the length of a file in bytes."""
        return file_size(tensors, crc=crc)

    def trailer(self, crc: int) -> bytes:
        """Return the bytes at the end of a file with a CRC."""
        return crc_trailer(crc)

    def entries(
        self, reader: RangeReader, tensors: Iterable[OutputTensor], seen: dict[bytes, Structure] | None = None
    ) -> tuple[TensorEntry, ...]:
        """Return the tensors that a finished file describes."""
        return read_header(reader).structure.tensors


CKPT = CkptFormat()


def _chunks(tensor: OutputTensor) -> Iterator[tuple[int, int]]:
    for offset in range(0, max(tensor.nbytes, 1), CHUNK_BYTES):  # a tensor without elements also has a message
        yield offset, min(CHUNK_BYTES, tensor.nbytes - offset)


def _head(tensor: OutputTensor, length: int) -> bytes:
    """Return a message up to its content."""
    dims = (0,) if tensor.dtype == STRING else tensor.shape
    kind = _TYPE_NAMES[tensor.dtype]
    proto = b"".join(b"\x08" + _varint(n) for n in dims) + b"\x12" + _varint(len(kind)) + kind + b"\x1a" + _varint(length)
    tag = tensor.name.encode()
    value = b"\x0a" + _varint(len(tag)) + tag + b"\x12" + _varint(len(proto) + length) + proto
    return b"\x0a" + _varint(len(value) + length) + value


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
