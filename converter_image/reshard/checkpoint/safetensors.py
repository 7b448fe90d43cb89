"""The safetensors format (8 bytes with the header's length, JSON header, contents without gaps), and MindSpore's metadata."""

from __future__ import annotations

import struct
from collections import Counter
from hashlib import sha256
from math import prod
from operator import attrgetter
from sys import intern
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import msgspec

from reshard.checkpoint.ckpt import MAX_DIMENSIONS, MAX_TENSORS
from reshard.checkpoint.crc import NamedContents
from reshard.checkpoint.dtypes import BY_SAFETENSORS_NAME, DTYPES, INT4, OBJECT, SAFETENSORS_ORDER, STRING
from reshard.checkpoint.inventory import Header, Structure, TensorEntry
from reshard.checkpoint.output import OutputDefaults, Span
from reshard.errors import DataError, OutputError
from reshard.strictjson import TooManyError, pairs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from reshard.checkpoint.inventory import RangeReader
    from reshard.checkpoint.output import OutputTensor, Piece

    _Found = tuple[dict[str, str], Iterable[tuple[str, "_Header"]]]  # metadata, and tensors by name

# The limit of the safetensors library (safetensors/src/tensor.rs, MAX_HEADER_SIZE).
MAX_HEADER_BYTES = 100_000_000
_METADATA = "__metadata__"
_CRC = "crc_num"
# JSON list of tensors that hold the code points of a `str`, because the format does not support text.
_STRINGS = "reshard.str"
_LENGTH = struct.Struct("<Q")
_CRC_DIGITS = 10
_BLOCK = 1 << 20
_ENCODED_TOGETHER = 4096
_MAX_MARKS = 2 * MAX_TENSORS  # MindSpore marks every Int4 tensor


class _Header(msgspec.Struct, gc=False):
    dtype: str
    shape: Annotated[tuple[int, ...], msgspec.Meta(max_length=MAX_DIMENSIONS)]
    data_offsets: tuple[int, int]


_TENSOR = msgspec.json.Decoder(_Header)
_TENSORS = msgspec.json.Decoder(dict[str, _Header])
_METADATA_FIRST = b'{"__metadata__":'
# Bytes of a header that are decoded at a time.
PART_BYTES = 64 << 10
_TENSOR_QUOTES = 2 * len(_Header.__struct_fields__) + 2  # around each key and the type
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
    if reader.size < _LENGTH.size:
        raise _damaged(reader, f"the file has only {reader.size} bytes", reason="Truncated")
    (length,) = _LENGTH.unpack(reader.read(0, _LENGTH.size))
    if length > MAX_HEADER_BYTES:
        raise _damaged(
            reader, f"the header has a length of {length} bytes, which is more than the format allows", reason="HeaderTooLarge"
        )
    begin = _LENGTH.size + length
    if begin > reader.size:
        raise _damaged(reader, f"the header has a length of {length} bytes, but the file ends before that", reason="Truncated")
    header = reader.read(_LENGTH.size, length)
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
        marks[_STRINGS] = msgspec.json.encode([tensor.name for tensor in tensors if tensor.dtype == STRING]).decode()
    if crc is not None:
        marks[_CRC] = f"{crc:0{_CRC_DIGITS}d}"  # fixed length, so that the file size is known before the content
    reserved = {_METADATA, *marks, _CRC, _STRINGS}
    for tensor in tensors:
        if tensor.name in reserved and (tensor.name == _METADATA or tensor.name in marks or tensor.dtype == INT4):
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
    parts, end = [msgspec.json.encode({_METADATA: marks})[1:-1]] if marks else [], 0
    for at in range(0, len(tensors), _ENCODED_TOGETHER):
        header = {}
        for tensor in tensors[at : at + _ENCODED_TOGETHER]:
            dtype, first, end = dtypes[tensor.dtype], end, end + tensor.nbytes
            shape = tensor.shape if dtype.values == 1 else dtype.count_values(tensor.shape)
            header[tensor.name] = _Header(dtype.safetensors or "", shape, (first, end))
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
    return _LENGTH.pack(len(encoded)) + encoded


def _parse(reader: RangeReader, header: bytes, begin: int) -> tuple[Structure, int | None]:
    """Return the structure and the CRC32 in a header."""
    try:
        try:
            return _structure(reader, begin, *_usual(header))
        except OtherFormError:
            return _structure(reader, begin, *_any(reader, header))
    except TooManyError as error:
        raise _damaged(reader, f"the header is too large: {error}", reason="TooManyTensors") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(reader, f"the header is invalid: {error}", reason="HeaderInvalid") from None


def _structure(
    reader: RangeReader, begin: int, metadata: dict[str, str], tensors: Iterable[tuple[str, _Header]]
) -> tuple[Structure, int | None]:
    """Return the structure and the CRC32, given the metadata and the tensors in a header."""
    crc = _crc(reader, metadata.pop(_CRC, None))
    texts = _texts(reader, metadata.pop(_STRINGS, None))
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


def _usual_tensors(header: bytes, at: int, quotes: int) -> Iterator[tuple[str, _Header]]:
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
        if _METADATA in found:
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
    metadata = dict(pairs(raws.pop(_METADATA), _MAX_MARKS, str)) if _METADATA in raws else {}
    return metadata, [(name, _tensor(raw)) for name, raw in raws.items()]


def _tensor(raw: msgspec.Raw) -> _Header:
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
    reader: RangeReader, name: str, tensor: _Header, begin: int, metadata: dict[str, str], texts: frozenset[str]
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


def _check_offsets(reader: RangeReader, name: str, tensor: _Header, nbytes: int) -> None:
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
    if not (text.isascii() and text.isdigit() and len(text) <= _CRC_DIGITS):
        raise _damaged(reader, f"the CRC {text[:32]!r} is not a number", reason="HeaderInvalid")
    return int(text)


def _texts(reader: RangeReader, text: str | None) -> frozenset[str]:
    if text is None:
        return frozenset()
    try:
        return frozenset(msgspec.json.decode(text, type=list[str]))
    except msgspec.DecodeError as error:
        raise _damaged(
            reader, f"the metadata entry {_STRINGS!r} is not a list of names: {error}", reason="HeaderInvalid"
        ) from None


def _damaged(reader: RangeReader, what: str, *, name: str | None = None, reason: str = "Damaged") -> DataError:
    where = reader.name if name is None else f"{reader.name}: parameter {name}"
    return DataError(reason, what, where=where, fix="the file is damaged or is not a safetensors file; restore it")
