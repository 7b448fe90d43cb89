"""MindSpore's `.ckpt` format: protobuf messages `Checkpoint{Value{tag, TensorProto{dims, tensor_type, tensor_content}}}`.

This module reads such files. Contents are length-delimited, so the header is read by skipping them.
(mindspore/ccsrc/utils/checkpoint.proto, mindspore/train/serialization.py)
"""

from __future__ import annotations

from math import prod
from sys import intern
from typing import TYPE_CHECKING

from zlib_ng import zlib_ng

from reshard.checkpoint.blockcipher import mode_of
from reshard.checkpoint.dtypes import BY_CKPT_NAME, DTYPES, STRING
from reshard.checkpoint.inventory import Header, Structure, TensorEntry
from reshard.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from reshard.checkpoint.inventory import RangeReader

# More tensors than any model has, and few enough not to exhaust the memory.
MAX_TENSORS = 1 << 20
MAX_DIMENSIONS = 32
_MAX_NAME_BYTES = 1 << 16
_MAX_TYPE_BYTES = 64
_MAX_FIELD = (1 << 29) - 1  # of protobuf
_MAX_LENGTH = (1 << 63) - 1  # of a dimension, which is an int64
# All of a message except its content.
LONGEST_HEAD = 2 * _MAX_NAME_BYTES

CRC_MARK = b"crc_num"
CRC_BYTES = 10
TRAILER_BYTES = len(CRC_MARK) + CRC_BYTES

# The minimum read size: the head of a message with a name of common length.
_WINDOW = 8 << 10
_BLOCK = 1 << 20


def read_header(reader: RangeReader, seen: dict[bytes, Structure] | None = None) -> Header:
    """Read the header of a file, which consists of the fields before each tensor's content.

    An empty file has no parameters. MindSpore saves it on ranks that hold none after redundancy was removed.

    Raises:
        DataError: the file has another format, is damaged or encrypted, or contains an unknown type.
    """
    end = reader.size
    crc = None
    if end >= TRAILER_BYTES:
        tail = reader.read(end - TRAILER_BYTES, TRAILER_BYTES)
        if tail.startswith(CRC_MARK):
            crc = int.from_bytes(tail[len(CRC_MARK) :], "big")
            end -= TRAILER_BYTES
    window = _Window(reader, end)
    _refuse_encrypted(reader, window)
    tensors: list[TensorEntry] = []
    names: set[str] = set()
    position = 0
    while position < end:
        name, dtype, dims, content, position = _message(window, position)
        last = tensors[-1] if tensors else None
        if last is not None and last.name == name and last.dtype == dtype and last.shape == dims:
            tensors[-1] = TensorEntry(name, dtype, dims, (*last.extents, content))
            continue
        if name in names:
            raise DataError(
                "DuplicateParameter",
                "the parameter occurs twice in the file",
                where=f"{reader.name}: parameter {name}",
                fix="the file is damaged; restore it",
            )
        if len(names) == MAX_TENSORS:
            raise _damaged(reader, f"the file contains more than {MAX_TENSORS} tensors", reason="TooManyTensors")
        names.add(name)
        tensors.append(TensorEntry(name, dtype, dims, (content,)))
    return Header(Structure("ckpt", tuple(_checked(entry, reader) for entry in tensors)), crc)


def begins(reader: RangeReader, head: bytes) -> bool:
    """Return whether this is a valid start of a `.ckpt` file, which the result of decryption with a wrong key almost never is.

    Args:
        reader: reader of a file that is at least as long.
        head: start of its content, at least up to the first parameter's name, type and shape.
    """
    if head.startswith(CRC_MARK):
        return True
    try:
        _parse(_Cursor(reader, head, 0, 0), reader.size)
    except IndexError:
        return False
    except DataError as error:  # valid files may contain types that this version does not support
        return error.reason in {"MapParameter", "UnknownType"}
    return True


def crc_of(reader: RangeReader, structure: Structure) -> int:
    """Return the CRC32 of all bytes before the CRC at the end of a file. The file is read block by block."""
    crc = 0
    for at, n in crc_reads(reader.size, structure):
        crc = zlib_ng.crc32(reader.read(at, n), crc)
    return crc


def crc_reads(size: int, structure: Structure) -> Iterator[tuple[int, int]]:
    """Yield the ranges that `crc_of` reads from a file of this length."""
    end = size - TRAILER_BYTES
    return ((at, min(_BLOCK, end - at)) for at in range(0, end, _BLOCK))


def in_order(structure: Structure) -> Sequence[TensorEntry]:
    """Return the tensors in the order of the file."""
    return structure.tensors


class _Window:
    """Window of a file in memory, which moves forward as messages are read."""

    def __init__(self, reader: RangeReader, end: int) -> None:
        self.reader = reader
        self.end = end
        self._start = 0
        self._bytes = b""

    def at(self, position: int, nbytes: int = _WINDOW) -> tuple[bytes, int]:
        """Return bytes with at least `nbytes` from `position` on, or all that remain, and the index of `position` in them."""
        wanted = min(position + nbytes, self.end)
        if not self._start <= position or wanted > self._start + len(self._bytes):
            self._start = position
            self._bytes = self.reader.read(position, min(max(nbytes, _WINDOW), self.end - position))
        return self._bytes, position - self._start


_Head = tuple[str, str, tuple[int, ...], tuple[int, int], int]


def _message(window: _Window, position: int) -> _Head:
    """Return the name, type, dims, content as (offset, length), and end of the message at `position`."""
    for nbytes in (256, _WINDOW, LONGEST_HEAD):
        buffer, at = window.at(position, nbytes)
        try:
            return _parse(_Cursor(window.reader, buffer, at, position - at), window.end)
        except IndexError:  # the head is longer than the window
            if position + nbytes >= window.end:
                break
    raise _damaged(window.reader, f"the message at byte {position} is truncated", reason="Truncated")


class _Cursor:
    """Protobuf reader on a buffer that starts at byte `base` of the file. Raises IndexError at the end of the buffer."""

    __slots__ = ("at", "base", "buffer", "reader")

    def __init__(self, reader: RangeReader, buffer: bytes, at: int, base: int) -> None:
        self.reader, self.buffer, self.at, self.base = reader, buffer, at, base

    @property
    def position(self) -> int:
        """Position of the next byte in the file."""
        return self.base + self.at

    def varint(self) -> int:
        """Read an unsigned integer of at most 64 bits."""
        buffer, at = self.buffer, self.at
        byte = buffer[at]
        value, shift = byte & 0x7F, 7
        while byte >= 0x80:  # more bytes follow
            if shift > 63:
                raise _damaged(self.reader, f"the number at byte {self.position} is longer than 64 bits")
            at += 1
            byte = buffer[at]
            value |= (byte & 0x7F) << shift
            shift += 7
        self.at = at + 1
        return value

    def text(self, most: int, end: int) -> str:
        """Read text of at most `most` bytes that ends before byte `end` of the file."""
        n, start = self.varint(), self.position
        if n > most or start + n > end:
            raise _damaged(self.reader, f"the text at byte {start} has an invalid length of {n} bytes")
        content = self.buffer[self.at : self.at + n]
        if len(content) < n:
            raise IndexError
        self.at += n
        try:
            return intern(content.decode())
        except UnicodeDecodeError:
            raise _damaged(self.reader, f"the text at byte {start} is not UTF-8") from None

    def skip(self, key: int) -> None:
        """Skip an unknown field."""
        if not 0 < key >> 3 <= _MAX_FIELD:
            raise _damaged(self.reader, f"the field before byte {self.position} has the invalid number {key >> 3}")
        match key & 7:
            case 0:
                self.varint()
            case 1:
                self.at += 8
            case 2:
                n = self.varint()
                self.at += n
            case 5:
                self.at += 4
            case kind:
                raise _damaged(self.reader, f"the field at byte {self.position} has an unknown wire type ({kind})")
        if self.at > len(self.buffer):
            raise IndexError


def _parse(cursor: _Cursor, file_end: int) -> _Head:
    """Read the message at the cursor. Raises IndexError if the buffer ends before the content."""
    reader, start = cursor.reader, cursor.position
    if cursor.buffer[cursor.at] != 0x0A:
        raise _damaged(reader, f"no parameter starts at byte {start}", reason="NotCheckpoint")
    cursor.at += 1
    length = cursor.varint()
    end = cursor.position + length
    if end > file_end:
        raise _damaged(
            reader,
            f"the message at byte {start} has a length of {length} bytes, but the file ends before that",
            reason="Truncated",
        )
    name: str | None = None
    while cursor.position < end:
        key = cursor.varint()
        if key == 0x0A:
            name = cursor.text(_MAX_NAME_BYTES, end)
        elif key == 0x12 and name is not None:
            return name, *_parse_tensor(cursor, end, name), end
        elif key == 0x1A:
            raise DataError(
                "MapParameter",
                "a MapParameter cannot be resharded",
                where=f"{reader.name}: parameter {name}",
                fix="save the checkpoint without this parameter",
            )
        else:
            cursor.skip(key)
    raise _damaged(reader, f"the message at byte {start} contains no named tensor")


def _parse_tensor(cursor: _Cursor, end: int, name: str) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    """Return the type, dims and content of a tensor. Tensor and content end with the message, at byte `end` of the file."""
    reader = cursor.reader
    length = cursor.varint()
    if cursor.position + length != end:
        raise _damaged(reader, "the length of the tensor does not match the message that contains it", name=name)
    dtype: str | None = None
    dims: list[int] = []
    content = (end, 0)
    while cursor.position < end:
        key = cursor.varint()
        if key == 0x08:
            dims.append(cursor.varint())
        elif key == 0x0A:
            dims += _packed_dims(cursor, end, name)
        elif key == 0x12:
            dtype = cursor.text(_MAX_TYPE_BYTES, end)
        elif key == 0x1A:
            n = cursor.varint()
            content = (cursor.position, n)
            if sum(content) != end:
                raise _damaged(reader, f"the content has a length of {n} bytes, but only {end - content[0]} remain", name=name)
            break
        else:
            cursor.skip(key)
        if len(dims) > MAX_DIMENSIONS:
            raise _damaged(reader, f"the tensor has more than {MAX_DIMENSIONS} dimensions", name=name)
    return _known_type(reader, dtype, name), tuple(dims), content


def _packed_dims(cursor: _Cursor, end: int, name: str) -> list[int]:
    """Return the dims in one field of a tensor that ends at byte `end` of the file, or one more than a tensor can have."""
    dims: list[int] = []
    stop = cursor.varint() + cursor.position
    if stop > end:
        raise _damaged(cursor.reader, f"the list of dimensions ends at byte {stop}, but the tensor ends at byte {end}", name=name)
    while cursor.position < stop and len(dims) <= MAX_DIMENSIONS:
        dims.append(cursor.varint())
    return dims


def _known_type(reader: RangeReader, dtype: str | None, name: str) -> str:
    found = BY_CKPT_NAME.get(dtype or "")
    if found is None:
        raise DataError(
            "UnknownType",
            f"the type {dtype!r} is not a MindSpore type",
            where=f"{reader.name}: parameter {name}",
            fix="restore the file; types that MindSpore added after 2.10 are not supported",
        )
    return found.name


def _checked(entry: TensorEntry, reader: RangeReader) -> TensorEntry:
    """Return the entry with the shape of its content. A scalar may be written with dims [0], and text always is."""
    nbytes, itemsize = entry.nbytes, DTYPES[entry.dtype].itemsize
    shape = entry.shape
    if entry.dtype == STRING and nbytes % itemsize == 0:
        shape = (nbytes // itemsize,)
    elif shape == (0,) and nbytes:
        shape = ()
    if prod(shape) * itemsize != nbytes or max(shape, default=0) > _MAX_LENGTH:
        raise DataError(
            "SizeMismatch",
            f"{entry.dtype}{list(shape)} requires {prod(shape) * itemsize} bytes, but the file contains {nbytes}",
            where=f"{reader.name}: parameter {entry.name}",
            fix="the file is damaged; restore it",
        )
    return entry if shape == entry.shape else TensorEntry(entry.name, entry.dtype, shape, entry.extents)


def _refuse_encrypted(reader: RangeReader, window: _Window) -> None:
    start, _ = window.at(0)
    mode = mode_of(start)
    if mode:
        raise DataError(
            "Encrypted",
            f"the file is encrypted ({mode})",
            where=reader.name,
            fix=f"specify the key with --decryption-key-file FILE --decryption-mode {mode} (spec.source.decryption)",
        )


def _damaged(reader: RangeReader, what: str, *, name: str | None = None, reason: str = "Damaged") -> DataError:
    where = reader.name if name is None else f"{reader.name}: parameter {name}"
    return DataError(reason, what, where=where, fix="the file is damaged or is not a MindSpore checkpoint; restore it")
