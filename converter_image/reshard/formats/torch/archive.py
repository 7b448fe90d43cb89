"""Archives that `torch.save` writes: a ZIP file with a pickle of the structure, and the content of each storage as it is.

Each item of a distributed checkpoint is such an archive too, so all offsets here count from where the archive begins.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from reshard.errors import DataError
from reshard.formats.torch.dtypes import BY_STORAGE, REFUSED, TYPES, TorchType, torch_type
from reshard.formats.torch.unpickle import LIMITS, Global, Limits, Record, load
from reshard.layout.box import strides

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from reshard.checkpoint.inventory import RangeReader
    from reshard.formats.torch.unpickle import Rule

_END = struct.Struct("<4s4xHHIIH")  # entries on this disk, in all; size and offset of the directory; length of the comment
_LOCATOR = struct.Struct("<4s4xQ4x")
_END64 = struct.Struct("<4s20xQQQQ")
_CENTRAL = struct.Struct("<4s4xHH4xIIIHHH8xI")  # flags, method; CRC, sizes; lengths of name, extra, comment; offset of the header
_LOCAL = struct.Struct("<4s22xHH")
_TAIL = 2048
_UNKNOWN32, _UNKNOWN16 = 0xFFFFFFFF, 0xFFFF
_ENCRYPTED = 1
_LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")  # the magic number of torch before 1.6, as a pickle
_MOST_DIMENSIONS = 32
_MOST_VALUES = 1 << 20
_DEEPEST = 64

_TENSORS = {"torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"}
_PARAMETERS = {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
_QUANTISED = "torch._utils._rebuild_qtensor"
_UNTYPED = "torch.storage.UntypedStorage"
_ARRAYS = ("_reconstruct", "scalar")
ALLOWED: Mapping[str, Rule] = {
    **dict.fromkeys((*_TENSORS, *_PARAMETERS, _QUANTISED), "record"),
    **{f"torch.{name}": "name" for name in (*BY_STORAGE, *TYPES, *REFUSED)},
    "torch.QInt8Storage": "name",
    "torch.QUInt8Storage": "name",
    "torch.QInt32Storage": "name",
    "torch.per_tensor_affine": "name",
    "torch.per_channel_affine": "name",
    _UNTYPED: "name",
    "torch.Size": "argument",
    "torch.device": "argument",
    "torch.serialization._get_layout": "argument",
    "collections.OrderedDict": "pairs",
    # What people save next to tensors. It is skipped.
    "collections.defaultdict": "record",
    "collections.Counter": "record",
    "argparse.Namespace": "record",
    "_codecs.encode": "record",
    "__builtin__.set": "argument",
    "builtins.set": "argument",
    "numpy.ndarray": "record",
    "numpy.dtype": "record",
    **{f"numpy.{core}.multiarray.{name}": "record" for core in ("core", "_core") for name in _ARRAYS},
}


class Entry(NamedTuple):
    """One entry of an archive.

    Attributes:
        header: first byte of its local header, from where the archive begins.
        size: length of its content in bytes.
        crc: CRC32 of the content; 0: perhaps not computed.
    """

    header: int
    size: int
    crc: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as an archive describes it.

    Attributes:
        name: keys and positions that lead to it, joined by dots.
        dtype: its type.
        shape: lengths in elements.
        strides: elements between neighbours along each dimension, none negative. All elements are within the storage.
        storage: key of the storage. Several tensors may share one.
        first: position of the first element in the storage.
    """

    name: str
    dtype: TorchType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    storage: str
    first: int

    @property
    def row_major(self) -> bool:
        """Whether the elements are in the storage in row-major order without gaps, so that ranges of bytes are ranges of them."""
        rows = strides(self.shape)
        return 0 in self.shape or all(
            n == 1 or a == b for n, a, b in zip(self.shape, self.strides, rows, strict=True)
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Archive:
    """What an archive holds.

    Attributes:
        start: first byte of the archive in its file.
        root: name of the folder of all entries.
        entries: the entries by their names in that folder.
        tensors: the tensors, in the order of the structure.
        others: the number of values that are no tensors.
    """

    start: int
    root: str
    entries: Mapping[str, Entry]
    tensors: tuple[StoredTensor, ...]
    others: int


def read_archive(reader: RangeReader, start: int = 0, length: int | None = None, limits: Limits = LIMITS) -> Archive:
    """Return what an archive holds, by a few small reads: none of the content of tensors.

    Args:
        reader: the file.
        start: first byte of the archive in the file.
        length: number of bytes of the archive. None: to the end of the file.
        limits: how much its pickle may hold.

    Raises:
        DataError: it is damaged, or no such archive; it is compressed, encrypted or big-endian; its pickle names what is not
            allowed; a tensor is not within its storage or has a type that is not supported.
    """
    length = reader.size - start if length is None else length
    if start < 0 or length < 0 or start + length > reader.size:
        raise DataError(
            "Truncated",
            f"it has {reader.size} bytes, an archive would be at {start} to {start + length}",
            where=reader.name,
            fix="the file is damaged; restore it",
        )
    root, entries = _entries(reader, start, length)
    order = _content(reader, start, root, entries, "byteorder", 16) if "byteorder" in entries else b"little"
    if order != b"little":
        raise DataError(
            "BigEndian",
            f"its content has the byte order {order[:16].decode('ascii', 'backslashreplace')!r}",
            where=reader.name,
            fix="load and save it on a little-endian machine",
        )
    if "data.pkl" not in entries or "constants.pkl" in entries:
        raise DataError(
            "NotTorchFile",
            "it is a ZIP file, and not one that torch.save wrote" + (" but a TorchScript module" * ("constants.pkl" in entries)),
            where=reader.name,
            fix="save a state_dict with torch.save",
        )
    tree = load(_content(reader, start, root, entries, "data.pkl", limits.nbytes), ALLOWED, reader.name, limits=limits)
    tensors, others = [], 0
    for name, value in _leaves(tree, reader.name):
        tensor = _tensor(value, name, entries, reader.name) if type(value) is Record else None
        if tensor is None:
            others += 1
        else:
            tensors.append(tensor)
    names = [tensor.name for tensor in tensors]
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise DataError(
            "DuplicateParameter",
            "keys with dots give two tensors this name",
            where=f"{reader.name}: tensor {twice}",
            fix="rename a key",
        )
    return Archive(start, root, entries, tuple(tensors), others)


def locate(reader: RangeReader, archive: Archive, storage: str) -> tuple[int, int]:
    """Return where the content of a storage is in the file, as (offset, length).

    Raises:
        DataError: its local header is damaged.
    """
    return _place(reader, archive.start, archive.root, archive.entries, f"data/{storage}")


def _damaged(reader: RangeReader, what: str, *, reason: str = "ArchiveInvalid") -> DataError:
    return DataError(reason, what, where=reader.name, fix="the file is damaged; restore it")


def _entries(reader: RangeReader, start: int, length: int) -> tuple[str, dict[str, Entry]]:
    """The folder of all entries, and the entries by their names in it, from the central directory."""
    first = reader.read(start, min(length, len(_LEGACY)))
    if first == _LEGACY:
        raise DataError(
            "LegacyTorchFile",
            "it is in the format of torch before 1.6, a row of pickles",
            where=reader.name,
            fix="load it with torch and save it again: torch.save(torch.load(FILE), FILE)",
        )
    if first[:4] != b"PK\3\4":
        raise DataError(
            "NotTorchFile",
            "it does not begin as an archive of torch.save does",
            where=reader.name,
            fix="give a file that torch.save wrote",
        )
    tail_at = max(length - _TAIL, 0)
    tail = reader.read(start + tail_at, length - tail_at)
    offset, size, count = _directory(reader, start, tail, tail_at)
    if offset + size > length or count > size // _CENTRAL.size:
        raise _damaged(reader, f"its directory of {count} entries would be at {offset} to {offset + size}, it has {length} bytes")
    directory = tail[offset - tail_at :][:size] if offset >= tail_at else reader.read(start + offset, size)
    found: dict[str, Entry] = {}
    at = 0
    for _ in range(count):
        name, entry, at = _entry(reader, directory, at)
        if name in found:
            raise _damaged(reader, f"it has the entry {name!r} twice")
        found[name] = entry
    spans = sorted((entry.header, entry.size) for entry in found.values())
    if any(a + _LOCAL.size + n > b for (a, n), (b, _) in pairwise([*spans, (offset, 0)])):
        raise _damaged(reader, "its entries overlap or reach into its directory")
    root = next(iter(found), "").partition("/")[0]
    if not found or any(not name.startswith(f"{root}/") for name in found):
        raise DataError(
            "NotTorchFile",
            "its entries are not in one folder, as torch.save writes them",
            where=reader.name,
            fix="give a file that torch.save wrote",
        )
    return root, {name[len(root) + 1 :]: entry for name, entry in found.items()}


def _directory(reader: RangeReader, start: int, tail: bytes, tail_at: int) -> tuple[int, int, int]:
    """Offset, size and number of entries of the central directory, from the records at the end."""
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < _END.size:
        raise _damaged(reader, "no archive ends there", reason="Truncated")
    _, here, count, size, offset, _ = _END.unpack_from(tail, at)
    if at >= _LOCATOR.size and tail[at - _LOCATOR.size : at].startswith(b"PK\6\7"):
        _, end64 = _LOCATOR.unpack_from(tail, at - _LOCATOR.size)
        if end64 + _END64.size > tail_at + at:
            raise _damaged(reader, "the record of its directory is outside")
        record = tail[end64 - tail_at :][: _END64.size] if end64 >= tail_at else reader.read(start + end64, _END64.size)
        signature, here, count, size, offset = _END64.unpack(record)
        if signature != b"PK\6\6":
            raise _damaged(reader, "the record of its directory is none")
    if here != count or offset + size > tail_at + at:
        raise _damaged(reader, "its directory is outside, or in several files")
    return offset, size, count


def _entry(reader: RangeReader, directory: bytes, at: int) -> tuple[str, Entry, int]:
    """An entry of the directory, and where the next one begins."""
    if len(directory) - at < _CENTRAL.size:
        raise _damaged(reader, "its directory is cut off")
    signature, flags, method, crc, packed, size, n, more, comment, header = _CENTRAL.unpack_from(directory, at)
    at += _CENTRAL.size
    try:
        name = directory[at : at + n].decode()
    except UnicodeDecodeError:
        raise _damaged(reader, "an entry has a name that is no text") from None
    extra = directory[at + n : at + n + more]
    end = at + n + more + comment
    if signature != b"PK\1\2" or end > len(directory):
        raise _damaged(reader, "its directory is damaged")
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if kind == 1:  # the numbers that do not fit into 32 bits, in this order
            wide = iter(struct.unpack_from(f"<{min(length, len(extra) - 4) // 8}Q", extra, 4))
            size, packed, header = (next(wide, old) if old == _UNKNOWN32 else old for old in (size, packed, header))
        extra = extra[4 + length :]
    if method or packed != size or flags & _ENCRYPTED:
        raise DataError(
            "ArchiveCompressed",
            f"its entry {name!r} is compressed or encrypted, so that no part of it can be read by itself",
            where=reader.name,
            fix="save it again with torch.save",
        )
    return name, Entry(header, size, crc), end


def _place(reader: RangeReader, start: int, root: str, entries: Mapping[str, Entry], name: str) -> tuple[int, int]:
    """Where the content of an entry is in the file, after its local header."""
    entry, full = entries[name], f"{root}/{name}".encode()
    raw = reader.read(start + entry.header, _LOCAL.size + len(full))
    signature, n, extra = _LOCAL.unpack_from(raw)
    if signature != b"PK\3\4" or n != len(full) or raw[_LOCAL.size :] != full:
        raise _damaged(reader, f"its entry {name!r} is not where its directory says")
    offset = entry.header + _LOCAL.size + n + extra
    following = [other.header for other in entries.values() if other.header > entry.header]
    if following and offset + entry.size > min(following):
        raise _damaged(reader, f"its entry {name!r} reaches into the next")
    if start + offset + entry.size > reader.size:
        raise _damaged(reader, f"its entry {name!r} reaches past the end")
    return start + offset, entry.size


def _content(reader: RangeReader, start: int, root: str, entries: Mapping[str, Entry], name: str, most: int) -> bytes:
    if entries[name].size > most:
        raise _damaged(reader, f"its entry {name!r} has {entries[name].size} bytes, more than {most}", reason="PickleTooLarge")
    return reader.read(*_place(reader, start, root, entries, name))


def _leaves(tree: object, where: str) -> Iterator[tuple[str, object]]:
    """Yield what is in nested dicts, lists and tuples, with the keys that lead to it joined by dots."""
    waiting: list[tuple[str, int, object]] = [("", 0, tree)]
    seen = 0
    while waiting:
        name, depth, value = waiting.pop()
        seen += 1
        inner: list[tuple[str, object]]
        if isinstance(value, dict):
            inner = [(str(key), each) for key, each in value.items()]
        elif isinstance(value, list | tuple):
            inner = [(str(i), each) for i, each in enumerate(value)]
        else:
            yield name, value
            continue
        if depth == _DEEPEST or seen + len(waiting) + len(inner) > _MOST_VALUES:
            raise DataError(
                "PickleTooLarge",
                f"its structure nests more than {_DEEPEST} times or has more than {_MOST_VALUES} values",
                where=where,
                fix="save the tensors alone",
            )
        waiting += [(f"{name}.{key}" if name else key, depth + 1, each) for key, each in reversed(inner)]


def _tensor(record: Record, name: str, entries: Mapping[str, Entry], where: str) -> StoredTensor | None:
    """The tensor that a record describes; None: it is another value.

    Raises:
        DataError: it is not within its storage, or of a kind that cannot be copied.
    """
    where = f"{where}: tensor {name}" if name else where
    for _ in range(_DEEPEST):
        if record.name not in _PARAMETERS or not record.args or type(record.args[0]) is not Record:
            break
        record = record.args[0]
    if record.name == _QUANTISED:
        torch_type("qint8", where)
    if record.name not in _TENSORS:
        return None
    try:
        return _checked(record, name, entries, where)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            "TensorInvalid",
            f"its description is damaged ({type(error).__name__})",
            where=where,
            fix="the file is damaged; restore it",
        ) from None


def _checked(record: Record, name: str, entries: Mapping[str, Entry], where: str) -> StoredTensor:
    storage, first, shape, steps, *rest = record.args
    kind, of, key, _, count = storage.args
    if storage.name or kind != "storage" or type(of) is not Global or type(key) is not str:
        raise TypeError
    _, _, *extra = rest  # requires_grad and hooks
    named = extra.pop(0) if record.name.endswith("v3") else None
    dtype = BY_STORAGE[of.name.removeprefix("torch.")] if named is None else torch_type(named.name.removeprefix("torch."), where)
    if extra and extra[0]:
        raise DataError(
            "LazyTensor",
            f"its content is to be changed when it is loaded ({', '.join(map(str, extra[0]))[:100]})",
            where=where,
            fix="save it as tensor.resolve_conj().resolve_neg()",
        )
    if len(shape) != len(steps) or len(shape) > _MOST_DIMENSIONS:
        raise ValueError
    if any(type(n) is not int or not 0 <= n < 1 << 62 for n in (first, count, *shape, *steps)):
        raise ValueError
    nbytes = count * (1 if of.name == _UNTYPED else dtype.bits // 8)
    end = first + sum((n - 1) * step for n, step in zip(shape, steps, strict=True)) + 1 if prod(shape) else first
    held = entries[f"data/{key}"].size
    if held != nbytes or end * dtype.bits // 8 > held:
        raise DataError(
            "TensorOutside",
            f"shape {list(shape)} with strides {list(steps)} from element {first} is not within its storage of {held} bytes",
            where=where,
            fix="the file is damaged; restore it",
        )
    return StoredTensor(name, dtype, shape, steps, key, first)
