"""The archive around the content of one tensor, byte for byte as `torch.save` writes it.

```
data.pkl, .format_version, .storage_alignment, byteorder     known in advance: the head
data/0                                                       the content, at a multiple of 64 bytes
version, .data/serialization_id, directory                   depend on the CRC32 of the content: the tail
```

Local headers have no sizes, because torch writes them before it knows the content; a descriptor after each entry has them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from zlib_ng import zlib_ng

from reshard.formats.torch.pickling import tensor_pickle

if TYPE_CHECKING:
    from collections.abc import Iterable

_ALIGNMENT = 64
_UTF8, _DESCRIPTOR = 0x0800, 0x0008  # flags: the name is UTF-8, sizes follow the content
_LARGE = 0xFFFFFFFF  # from here on, numbers are in a record of 64 bits
# Records after their signatures. torch leaves the other fields at 0, such as versions and times.
_LOCAL = struct.Struct("<4s2xH18xHH")  # flags; lengths of name and extra field
_DESCRIPTOR32, _DESCRIPTOR64 = struct.Struct("<4sIII"), struct.Struct("<4sIQQ")  # CRC32; length, twice
_CENTRAL = struct.Struct("<4s4xH6xIIIHH10xI")  # flags; CRC32; length, twice; lengths of name and extra field; local header
_END64 = struct.Struct("<4sQHH8xQQQQ")  # length of the rest, versions; entries, twice; length and offset of the directory
_LOCATOR = struct.Struct("<4s4xQI")  # offset of the record before it; disks
_END = struct.Struct("<4s4xHHII2x")  # entries, twice; length and offset of the directory
_END64_SIZE = 44
_MADE_BY, _NEEDED = 0x031E, 45  # ZIP 3.0 on Unix; version 4.5, for the records of 64 bits
# torch's hash of the names of the entries, as its serialization id starts with it.
_HASH_OF_NAMES = 15728199511854643026
_HASH_BITS = (1 << 64) - 1
_SHAPES = 1 << 12  # most tensors of a checkpoint have one of few shapes


class _Entry(NamedTuple):
    """An entry of an archive: its name, the offset of its local header, the length and the CRC32 of its content."""

    name: bytes
    header: int
    nbytes: int
    crc: int

    @property
    def flags(self) -> int:
        return _UTF8 | _DESCRIPTOR if self.nbytes else _UTF8

    @property
    def descriptor(self) -> bytes:
        """Bytes after the content. torch writes none if there is no content."""
        form = _DESCRIPTOR64 if max(self.nbytes, self.header) >= _LARGE else _DESCRIPTOR32
        return form.pack(b"PK\7\x08", self.crc, self.nbytes, self.nbytes) if self.nbytes else b""

    def central_header(self) -> bytes:
        """Return the entry in the directory."""
        wide = [self.nbytes] * 2 * (self.nbytes >= _LARGE) + [self.header] * (self.header >= _LARGE)
        size, extra = min(self.nbytes, _LARGE), _extra64(wide)
        lengths = len(self.name), len(extra)
        fields = _CENTRAL.pack(b"PK\1\2", self.flags, self.crc, size, size, *lengths, min(self.header, _LARGE))
        return fields + self.name + extra


def _extra64(numbers: list[int]) -> bytes:
    return struct.pack(f"<HH{len(numbers)}Q", 1, 8 * len(numbers), *numbers) if numbers else b""


class _Writer:
    """A part of an archive."""

    def __init__(self, start: int = 0, entries: Iterable[_Entry] = ()) -> None:
        self.entries = [*entries]
        self._start = start
        self._written = bytearray()

    @property
    def content(self) -> bytes:
        """Return the bytes so far, from where the writer started."""
        return bytes(self._written)

    @property
    def at(self) -> int:
        """Return the offset of the next byte in the archive."""
        return self._start + len(self._written)

    def begin(self, name: str, nbytes: int) -> None:
        """Append a local header that ends at a multiple of 64 bytes."""
        entry = _Entry(f"archive/{name}".encode(), self.at, nbytes, 0)
        extra = _extra64([nbytes, 0] * (nbytes >= _LARGE) + [self.at] * (self.at >= _LARGE))
        padding = -(self.at + _LOCAL.size + len(entry.name) + len(extra) + 4) % _ALIGNMENT
        extra += b"FB" + struct.pack("<H", padding) + b"Z" * padding
        self._written += _LOCAL.pack(b"PK\3\4", entry.flags, len(entry.name), len(extra)) + entry.name + extra
        self.entries.append(entry)

    def end(self, crc: int) -> None:
        """Append what follows the content of the last entry."""
        self.entries[-1] = self.entries[-1]._replace(crc=crc)
        self._written += self.entries[-1].descriptor

    def add(self, name: str, content: bytes) -> None:
        """Append an entry."""
        self.begin(name, len(content))
        self._written += content
        self.end(zlib_ng.crc32(content))

    def close(self) -> None:
        """Append the directory and the records at the end."""
        start, count = self.at, len(self.entries)
        for entry in self.entries:
            self._written += entry.central_header()
        size, end = self.at - start, self.at
        self._written += (
            _END64.pack(b"PK\6\6", _END64_SIZE, _MADE_BY, _NEEDED, count, count, size, start)
            + _LOCATOR.pack(b"PK\6\7", end, 1)
            + _END.pack(b"PK\5\6", count, count, size, min(start, _LARGE))
        )


@dataclass(frozen=True, slots=True)
class Envelope:
    """The bytes around the content of one tensor.

    Attributes:
        head: bytes before the content.
        nbytes: length of the content in bytes.
        tail_size: number of bytes after the content.
        entries: entries up to the content.
    """

    head: bytes
    nbytes: int
    tail_size: int
    entries: tuple[_Entry, ...]

    @property
    def size(self) -> int:
        """Length of the archive in bytes."""
        return len(self.head) + self.nbytes + self.tail_size

    def tail(self, crc: int) -> bytes:
        """Return the bytes after the content, which has this CRC32."""
        made = _Writer(len(self.head) + self.nbytes, self.entries)
        made.end(crc)
        made.add("version", b"3\n")
        made.add(".data/serialization_id", f"{_HASH_OF_NAMES:020d}{_combined(made.entries):020d}".encode())
        made.close()
        return made.content


@lru_cache(_SHAPES)
def envelope(dtype: str, shape: tuple[int, ...], nbytes: int) -> Envelope:
    """Return the bytes around a row-major tensor.

    Args:
        dtype: type of the elements, by its name in `reshard.checkpoint.dtypes`. torch must have it.
        shape: shape of the tensor.
        nbytes: length of the content in bytes.
    """
    made = _Writer()
    made.add("data.pkl", tensor_pickle(dtype, shape, nbytes))
    made.add(".format_version", b"1")
    made.add(".storage_alignment", str(_ALIGNMENT).encode())
    made.add("byteorder", b"little")
    made.begin("data/0", nbytes)
    unfinished = Envelope(made.content, nbytes, 0, tuple(made.entries))
    return replace(unfinished, tail_size=len(unfinished.tail(0)))


def _combined(entries: list[_Entry]) -> int:
    """Return torch's combined hash of the CRC32s of all entries with content."""
    combined = 0
    for entry in (entry for entry in entries if entry.nbytes):
        combined ^= entry.crc + 0x9E3779B9 + (combined << 6 & _HASH_BITS) + (combined >> 2) & _HASH_BITS
    return combined
