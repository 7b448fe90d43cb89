"""The safetensors format (8 bytes with the header's length, JSON header, contents without gaps), and MindSpore's metadata.

This module reads such files.
"""

from __future__ import annotations

import struct
from collections import Counter
from hashlib import sha256
from math import prod
from operator import attrgetter
from sys import intern
from typing import TYPE_CHECKING, Annotated

import msgspec

from reshard.checkpoint.ckpt import MAX_DIMENSIONS, MAX_TENSORS
from reshard.checkpoint.crc import NamedContents
from reshard.checkpoint.dtypes import BY_SAFETENSORS_NAME, INT4, STRING
from reshard.checkpoint.inventory import Header, Structure, TensorEntry
from reshard.errors import DataError
from reshard.strictjson import TooManyError, pairs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from reshard.checkpoint.inventory import RangeReader

    _Found = tuple[dict[str, str], Iterable[tuple[str, "TensorHeader"]]]  # metadata, and tensors by name

# The limit of the safetensors library (safetensors/src/tensor.rs, MAX_HEADER_SIZE).
MAX_HEADER_BYTES = 100_000_000
METADATA = "__metadata__"
CRC = "crc_num"
# JSON list of tensors that hold the code points of a `str`, because the format does not support text.
STRINGS = "reshard.str"
LENGTH = struct.Struct("<Q")
CRC_DIGITS = 10
_BLOCK = 1 << 20
_MAX_MARKS = 2 * MAX_TENSORS  # MindSpore marks every Int4 tensor


class TensorHeader(msgspec.Struct, gc=False):
    """One tensor in a header: type, shape, and the positions of its first byte and after its last byte in the contents."""

    dtype: str
    shape: Annotated[tuple[int, ...], msgspec.Meta(max_length=MAX_DIMENSIONS)]
    data_offsets: tuple[int, int]


_TENSOR = msgspec.json.Decoder(TensorHeader)
_TENSORS = msgspec.json.Decoder(dict[str, TensorHeader])
_METADATA_FIRST = b'{"__metadata__":'
# Bytes of a header that are decoded at a time.
PART_BYTES = 64 << 10
_TENSOR_QUOTES = 2 * len(TensorHeader.__struct_fields__) + 2  # around each key and the type
_MAX_TENSOR_KEYS = 64


def read_header(reader: RangeReader, seen: dict[bytes, Structure] | None = None) -> Header:
    """Read the header of a file.

    Args:
        reader: reader of the file.
        seen: cache of structures by encoded header, to which this function adds. Most ranks of a checkpoint share a structure.

    Raises:
        DataError: the file has another format, or is damaged.
    """
    if reader.size == 0:
        raise _damaged(reader, "the file is empty", reason="Empty")
    if reader.size < LENGTH.size:
        raise _damaged(reader, f"the file has only {reader.size} bytes", reason="Truncated")
    (length,) = LENGTH.unpack(reader.read(0, LENGTH.size))
    if length > MAX_HEADER_BYTES:
        raise _damaged(
            reader, f"the header has a length of {length} bytes, which is more than the format allows", reason="HeaderTooLarge"
        )
    begin = LENGTH.size + length
    if begin > reader.size:
        raise _damaged(reader, f"the header has a length of {length} bytes, but the file ends before that", reason="Truncated")
    header = reader.read(LENGTH.size, length)
    identity = sha256(header).digest()
    structure, crc = seen.get(identity) if seen is not None else None, None
    if structure is None:
        structure, crc = _parse(reader, header, begin)
        if seen is not None and crc is None:
            seen[identity] = structure
    end = structure.tensors[-1].extents[0][0] + structure.tensors[-1].extents[0][1] if structure.tensors else begin
    if end != reader.size:
        raise _damaged(reader, f"the tensors end at byte {end}, but the file ends at byte {reader.size}", reason="Truncated")
    return Header(structure, crc)


def crc_of(reader: RangeReader, structure: Structure) -> int:
    """Calculate MindSpore's CRC32 of a file. The file is read block by block."""
    found = NamedContents()
    for entry in in_order(structure):
        found.begin(entry.name, entry.dtype, entry.shape)
        for at, n in _blocks(entry):
            found.update(reader.read(at, n))
    return found.crc


def crc_reads(size: int, structure: Structure) -> Iterator[tuple[int, int]]:
    """Yield the ranges that `crc_of` reads."""
    return (block for entry in in_order(structure) for block in _blocks(entry))


def in_order(structure: Structure) -> Sequence[TensorEntry]:
    """Return the tensors by name, because the order of the contents depends on their types."""
    return sorted(structure.tensors, key=lambda e: e.name)


def _blocks(entry: TensorEntry) -> Iterator[tuple[int, int]]:
    for offset, length in entry.extents:
        for at in range(0, length, _BLOCK):
            yield offset + at, min(_BLOCK, length - at)


def _parse(reader: RangeReader, header: bytes, begin: int) -> tuple[Structure, int | None]:
    """Return the structure and the CRC32 in a header."""
    try:
        if not header.isascii():
            header.decode()  # the JSON decoder does not check text that it skips
        try:
            return _structure(reader, begin, *_usual(header))
        except OtherFormError:
            return _structure(reader, begin, *_any(reader, header))
    except TooManyError as error:
        raise _damaged(reader, f"the header is too large: {error}", reason="TooManyTensors") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(reader, f"the header is invalid: {error}", reason="HeaderInvalid") from None


def _structure(
    reader: RangeReader, begin: int, metadata: dict[str, str], tensors: Iterable[tuple[str, TensorHeader]]
) -> tuple[Structure, int | None]:
    """Return the structure and the CRC32, given the metadata and the tensors in a header."""
    crc = _crc(reader, metadata.pop(CRC, None))
    texts = _texts(reader, metadata.pop(STRINGS, None))
    known: dict[tuple[str, tuple[int, ...]], tuple[str, tuple[int, ...], int]] = {}
    entries, special = [], {*metadata, *texts}
    for name, tensor in tensors:
        kind, (first, end) = known.get((tensor.dtype, tensor.shape)), tensor.data_offsets
        if kind is None or end - first != kind[2] or first < 0 or name in special:
            entry = _entry(reader, name, tensor, begin, metadata, texts)
            if name not in texts and entry.dtype != INT4:
                known[tensor.dtype, tensor.shape] = (entry.dtype, entry.shape, entry.nbytes)
        else:
            # Strategies contain the same names.
            entry = TensorEntry(intern(name), kind[0], kind[1], ((begin + first, kind[2]),))
        entries.append(entry)
    if len(set(map(attrgetter("name"), entries))) < len(entries):
        raise OtherFormError
    entries.sort(key=attrgetter("extents"))
    at = begin
    for entry in entries:
        ((start, nbytes),) = entry.extents
        if start != at:
            raise _damaged(reader, f"the content starts at byte {start} instead of byte {at}", name=entry.name)
        at += nbytes
    return Structure("safetensors", tuple(entries), metadata), crc


class OtherFormError(Exception):
    """A header does not have the usual form, or is damaged."""


def _usual(header: bytes) -> _Found:
    """Return what a header contains in the form in which most programs write it, which takes the least time to read.

    It contains the metadata first, if any, no escapes, and only known keys. Without other strings, no tensor has a key twice.

    Raises:
        OtherFormError: the header has another form. The iterator raises it too.
    """
    quotes = header.count(b'"')
    if b"\\" in header or quotes > (MAX_TENSORS + 1) * (_TENSOR_QUOTES + 2) or not header.startswith(b"{"):
        raise OtherFormError
    if not header.startswith(_METADATA_FIRST):
        return {}, _usual_tensors(header, 1, quotes)
    end = header.find(b"}") + 1
    try:  # if a string contains this brace, the text up to it is not JSON
        metadata = msgspec.json.decode(header[len(_METADATA_FIRST) : end], type=dict[str, str])
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        raise OtherFormError from None
    if header[end : end + 1] != b",":
        raise OtherFormError
    return metadata, _usual_tensors(header, end + 1, quotes - 2 - 4 * len(metadata))


def _usual_tensors(header: bytes, at: int, quotes: int) -> Iterator[tuple[str, TensorHeader]]:
    """Yield the tensors of a header from byte `at`, which contains as many quotes. Few of them are in memory at a time.

    A part of the header ends before a comma and the quote of a name. If they are in a string, the part has an odd number of
    quotes, and is not JSON.
    """
    count = 0
    while at < len(header):
        end = header.find(b'},"', at + PART_BYTES) + 1 or len(header)
        try:
            found = _TENSORS.decode(b"{" + header[at:end] + (b"}" if end < len(header) else b""))
        except (ValueError, RecursionError):
            raise OtherFormError from None
        if METADATA in found:
            raise OtherFormError
        count += len(found)
        at = end + 1
        yield from found.items()
    if quotes != count * (_TENSOR_QUOTES + 2) or not count:  # without tensors, the comma after the metadata would be an error
        raise OtherFormError


def _any(reader: RangeReader, header: bytes) -> _Found:
    """Return what a header in any form contains.

    Raises:
        DataError: a name occurs twice.
        msgspec.DecodeError, UnicodeDecodeError, RecursionError: the header is invalid.
    """
    found = pairs(header, MAX_TENSORS + 1, msgspec.Raw)  # plus one for the metadata
    if twice := next((name for name, count in Counter(name for name, _ in found).items() if count > 1), None):
        raise DataError(
            "DuplicateParameter",
            "the parameter occurs twice in the header",
            where=f"{reader.name}: parameter {twice}",
            fix="the file is damaged; restore it",
        )
    raws = dict(found)
    metadata = dict(pairs(raws.pop(METADATA), _MAX_MARKS, str)) if METADATA in raws else {}
    return metadata, [(name, _tensor(raw)) for name, raw in raws.items()]


def _tensor(raw: msgspec.Raw) -> TensorHeader:
    """Decode the entry of one tensor.

    Raises:
        msgspec.DecodeError: the entry is invalid, or contains a key twice.
    """
    found = _TENSOR.decode(raw)
    if bytes(raw).count(b'"') != _TENSOR_QUOTES:  # it has more keys
        keys = [key for key, _ in pairs(raw, _MAX_TENSOR_KEYS, msgspec.Raw)]
        if len(set(keys)) < len(keys):
            raise msgspec.DecodeError("a tensor contains the same key twice")
    return found


def _entry(
    reader: RangeReader, name: str, tensor: TensorHeader, begin: int, metadata: dict[str, str], texts: frozenset[str]
) -> TensorEntry:
    dtype = BY_SAFETENSORS_NAME.get(tensor.dtype)
    if dtype is None:
        raise DataError(
            "UnknownType",
            f"tensors of the type {tensor.dtype!r} cannot be resharded",
            where=f"{reader.name}: parameter {name}",
            fix="save the checkpoint without this parameter",
        )
    shape = dtype.count_elements(tensor.shape)
    if shape is None:
        raise DataError(
            "NotByteAligned",
            f"the last dimension of {tensor.dtype}{list(tensor.shape)} is not a multiple of {dtype.values}, so its rows do not"
            " fill whole bytes",
            where=f"{reader.name}: parameter {name}",
            fix="save the checkpoint without this parameter, or with padded rows",
        )
    first, nbytes = tensor.data_offsets[0], prod(shape) * dtype.itemsize
    _check_offsets(reader, name, tensor, nbytes)
    kind = dtype.name
    if metadata.get(name) == INT4 and dtype.itemsize == 1:
        del metadata[name]
        kind = INT4
    elif name in texts and dtype.name == "UInt32" and len(tensor.shape) == 1:
        kind = STRING
    return TensorEntry(name, kind, shape, ((begin + first, nbytes),))


def _check_offsets(reader: RangeReader, name: str, tensor: TensorHeader, nbytes: int) -> None:
    """Check the range of a tensor's content, given the number of bytes that its type and shape require."""
    first, end = tensor.data_offsets
    if first < 0 or end - first != nbytes or min(tensor.shape, default=0) < 0:
        raise DataError(
            "SizeMismatch",
            f"{tensor.dtype}{list(tensor.shape)} requires {nbytes} bytes, but the header assigns {end - first}",
            where=f"{reader.name}: parameter {name}",
            fix="the file is damaged; restore it",
        )


def _crc(reader: RangeReader, text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= CRC_DIGITS):
        raise _damaged(reader, f"the CRC {text[:32]!r} is not a number", reason="HeaderInvalid")
    return int(text)


def _texts(reader: RangeReader, text: str | None) -> frozenset[str]:
    if text is None:
        return frozenset()
    try:
        return frozenset(msgspec.json.decode(text, type=list[str]))
    except msgspec.DecodeError as error:
        raise _damaged(
            reader, f"the metadata entry {STRINGS!r} is not a list of names: {error}", reason="HeaderInvalid"
        ) from None


def _damaged(reader: RangeReader, what: str, *, name: str | None = None, reason: str = "Damaged") -> DataError:
    where = reader.name if name is None else f"{reader.name}: parameter {name}"
    return DataError(reason, what, where=where, fix="the file is damaged or is not a safetensors file; restore it")
