"""ZIP files as `torch.save` writes them: stored entries in one folder, found by a few ranged reads.

The standard library's `zipfile` reads from a seekable file, and checks neither that entries are apart nor where they end. Content
is read here by ranges of a file that may be in an object store, so every offset is checked against the file first.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from reshard.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reshard.checkpoint.inventory import RangeReader

_END = struct.Struct("<4s4xHHIIH")  # entries on this disk, in all; size and offset of the directory; length of the comment
_LOCATOR = struct.Struct("<4s4xQ4x")
_END64 = struct.Struct("<4s20xQQQQ")
_CENTRAL = struct.Struct("<4s4xHH4xIIIHHH8xI")  # flags, method; CRC, sizes; lengths of name, extra, comment; offset of the header
_LOCAL = struct.Struct("<4s22xHH")
# An entry has a name, an extra field and a comment of at most 64 KiB each.
_LONGEST_ENTRY = 46 + 3 * 0xFFFF
_LONGEST_DIRECTORY = 1 << 30
_TAIL = 2048
_UNKNOWN32, _UNKNOWN16 = 0xFFFFFFFF, 0xFFFF
_ENCRYPTED = 1
CRC_AT = 16  # position of the CRC32 in a record of the directory
_LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")  # the magic number of torch before 1.6, as a pickle


class Entry(NamedTuple):
    """One entry of an archive.

    Attributes:
        header: first byte of its local header, from where the archive begins.
        size: length of its content in bytes.
        crc: CRC32 of the content; 0: perhaps not computed.
        record: first byte of its record in the directory, from where the archive begins.
    """

    header: int
    size: int
    crc: int
    record: int


@dataclass(frozen=True, slots=True)
class Container:
    """A ZIP file within a file.

    Attributes:
        start: first byte of the ZIP file in the file.
        root: name of the folder of all entries.
        entries: the entries by their names in that folder.
        bounds: first bytes of the local headers, ascending, and of the directory, from where the ZIP file begins.
    """

    start: int
    root: str
    entries: Mapping[str, Entry]
    bounds: tuple[int, ...]

    def header(self, name: str) -> tuple[int, int]:
        """Return where the local header of an entry is in the file, without its extra field, as (offset, length)."""
        return self.start + self.entries[name].header, _LOCAL.size + len(f"{self.root}/{name}".encode())

    def place(self, reader: RangeReader, name: str) -> tuple[int, int]:
        """Return the location of an entry's content in the file, after its local header, as (offset, length).

        Raises:
            DataError: the local header is damaged.
        """
        entry, full = self.entries[name], f"{self.root}/{name}".encode()
        raw = reader.read(*self.header(name))
        signature, n, extra = _LOCAL.unpack_from(raw)
        if signature != b"PK\3\4" or n != len(full) or raw[_LOCAL.size :] != full:
            raise _damaged(reader, f"the local header of the entry {name!r} does not match the directory")
        offset = entry.header + _LOCAL.size + n + extra
        if offset + entry.size > self.bounds[bisect_right(self.bounds, entry.header)]:
            raise _damaged(reader, f"the entry {name!r} overlaps the next one")
        if self.start + offset + entry.size > reader.size:
            raise _damaged(reader, f"the entry {name!r} extends beyond the end of the file")
        return self.start + offset, entry.size

    def content(self, reader: RangeReader, name: str, most: int) -> bytes:
        """Return the content of an entry of at most `most` bytes.

        Raises:
            DataError: the entry is larger, or its local header is damaged.
        """
        size = self.entries[name].size
        if size > most:
            raise _damaged(reader, f"the entry {name!r} has {size} bytes, more than {most}", reason="PickleTooLarge")
        return reader.read(*self.place(reader, name))


def read_container(reader: RangeReader, start: int, length: int) -> Container:
    """Read the central directory of a ZIP file within a file.

    Args:
        reader: the file.
        start: first byte of the ZIP file in it.
        length: number of bytes of the ZIP file.

    Raises:
        DataError: the ZIP file is damaged, compressed, encrypted, or not from `torch.save`.
    """
    first = reader.read(start, min(length, len(_LEGACY)))
    if first == _LEGACY:
        raise DataError(
            "LegacyTorchFile",
            "the file has the format of PyTorch before 1.6",
            where=reader.name,
            fix="load it with PyTorch and save it again: torch.save(torch.load(FILE), FILE)",
        )
    if first[:4] != b"PK\3\4":
        raise DataError(
            "NotTorchFile",
            "the file does not start with a ZIP header, as torch.save files do",
            where=reader.name,
            fix="specify a file that torch.save wrote",
        )
    tail_at = max(length - _TAIL, 0)
    tail = reader.read(start + tail_at, length - tail_at)
    offset, size, count = _directory(reader, start, tail, tail_at)
    longest = min(count * _LONGEST_ENTRY, _LONGEST_DIRECTORY)
    if offset + size > length or count > size // _CENTRAL.size or size > longest:
        raise _damaged(reader, f"the directory of {count} entries does not fit at bytes {offset} to {offset + size} of {length}")
    directory = tail[offset - tail_at :][:size] if offset >= tail_at else reader.read(start + offset, size)
    found: dict[str, Entry] = {}
    at = 0
    for _ in range(count):
        name, entry, at = _entry(reader, directory, at, offset)
        if name in found:
            raise _damaged(reader, f"the entry {name!r} occurs twice")
        found[name] = entry
    spans = sorted((entry.header, entry.size) for entry in found.values())
    if any(a + _LOCAL.size + n > b for (a, n), (b, _) in pairwise([*spans, (offset, 0)])):
        raise _damaged(reader, "entries overlap each other or the directory")
    root = next(iter(found), "").partition("/")[0]
    if not found or any(not name.startswith(f"{root}/") for name in found):
        raise DataError(
            "NotTorchFile",
            "the entries are not in one folder, as in torch.save files",
            where=reader.name,
            fix="specify a file that torch.save wrote",
        )
    entries = {name[len(root) + 1 :]: entry for name, entry in found.items()}
    return Container(start, root, entries, (*(header for header, _ in spans), offset))


def _directory(reader: RangeReader, start: int, tail: bytes, tail_at: int) -> tuple[int, int, int]:
    """Offset, size and number of entries of the central directory, from the records at the end."""
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < _END.size:
        raise _damaged(reader, "the end of the archive is missing", reason="Truncated")
    _, here, count, size, offset, _ = _END.unpack_from(tail, at)
    if at >= _LOCATOR.size and tail[at - _LOCATOR.size : at].startswith(b"PK\6\7"):
        _, end64 = _LOCATOR.unpack_from(tail, at - _LOCATOR.size)
        if end64 + _END64.size > tail_at + at:
            raise _damaged(reader, "the end record points outside the file")
        record = tail[end64 - tail_at :][: _END64.size] if end64 >= tail_at else reader.read(start + end64, _END64.size)
        signature, here, count, size, offset = _END64.unpack(record)
        if signature != b"PK\6\6":
            raise _damaged(reader, "the 64-bit end record is damaged")
    if here != count or offset + size > tail_at + at:
        raise _damaged(reader, "the directory is outside the file or split over several files")
    return offset, size, count


def _entry(reader: RangeReader, directory: bytes, at: int, start: int) -> tuple[str, Entry, int]:
    """An entry of the directory that begins at byte `start`, and where the next one begins."""
    record = start + at
    if len(directory) - at < _CENTRAL.size:
        raise _damaged(reader, "the directory is truncated")
    signature, flags, method, crc, packed, size, n, more, comment, header = _CENTRAL.unpack_from(directory, at)
    at += _CENTRAL.size
    try:
        name = directory[at : at + n].decode()
    except UnicodeDecodeError:
        raise _damaged(reader, "the name of an entry is not valid UTF-8") from None
    extra = directory[at + n : at + n + more]
    end = at + n + more + comment
    if signature != b"PK\1\2" or end > len(directory):
        raise _damaged(reader, "the ZIP central directory is damaged")
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if kind == 1:  # the numbers that do not fit into 32 bits, in this order
            wide = iter(struct.unpack_from(f"<{min(length, len(extra) - 4) // 8}Q", extra, 4))
            size, packed, header = (next(wide, old) if old == _UNKNOWN32 else old for old in (size, packed, header))
        extra = extra[4 + length :]
    if method or packed != size or flags & _ENCRYPTED:
        raise DataError(
            "ArchiveCompressed",
            f"the entry {name!r} is compressed or encrypted, so ranges of it cannot be read",
            where=reader.name,
            fix="save it again with torch.save",
        )
    return name, Entry(header, size, crc, record), end


def _damaged(reader: RangeReader, what: str, *, reason: str = "ArchiveInvalid") -> DataError:
    return DataError(reason, what, where=reader.name, fix="the file is damaged; restore it")
