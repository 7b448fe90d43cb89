"""Read headers over a network. Every read costs a round trip, so the reads are few and concurrent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reshard.checkpoint import read_header
from reshard.storage.ahead import prefetched

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from reshard.checkpoint.inventory import Header, RangeReader, Structure
    from reshard.storage.protocol import Reader

    # Reads of one file, as (offset, length) in bytes.
    Reads = tuple[tuple[int, int], ...]

# A `.ckpt` header is read head by head. If one is close to the previous one, the next will probably be too.
_SMALLEST_BLOCK = 16 << 10
_LARGEST_BLOCK = 1 << 20
_MEMORY = 4 << 20
# Size of a read at the known position of a head. Names are rarely longer.
_HEAD = 64 << 10
# Number of bytes before a head that are read with it: the end of an archive is found by a search in its last 2 KiB.
_BEFORE_HEAD = 2 << 10


class Blocks:
    """Reader of a file in blocks, which grow while the reads are sequential.

    Attributes:
        reads: blocks read so far, as (offset, length).
    """

    def __init__(self, reader: RangeReader) -> None:
        self.name, self.size = reader.name, reader.size
        self.reads: list[tuple[int, int]] = []
        self._reader = reader
        self._start, self._block, self._ahead = 0, b"", _SMALLEST_BLOCK

    def read(self, offset: int, length: int) -> bytes:
        """See `RangeReader.read`."""
        end = self._start + len(self._block)
        if not self._start <= offset <= offset + length <= end:
            close = self._block and 0 <= offset - self._start <= 2 * len(self._block)
            self._ahead = min(2 * self._ahead, _LARGEST_BLOCK) if close else _SMALLEST_BLOCK
            n = max(length, min(self._ahead, self.size - offset))
            self._block, self._start = self._reader.read(offset, n), offset
            self.reads.append((offset, n))
        at = offset - self._start
        return self._block[at : at + length]


def read_remote_header(reader: Reader, seen: dict[bytes, Structure] | None, expected: Reads) -> tuple[Header, Reads]:
    """Return the header of a file, see `reshard.checkpoint.read_header`, and the reads that it took.

    Args:
        reader: reader of the file.
        seen: structures of files read before.
        expected: reads of a file that is probably similar. They are prefetched.
    """
    inside = ((offset, min(length, reader.size - offset)) for offset, length in expected if offset < reader.size)
    with prefetched(reader, inside, _MEMORY, remote=True) as ahead:
        blocks = Blocks(ahead)
        return read_header(blocks, seen), tuple(blocks.reads)


def heads(positions: Iterable[int], size: int) -> Iterator[tuple[int, int]]:
    """Yield the reads of a file whose heads are at these positions."""
    starts = (max(position - _BEFORE_HEAD, 0) for position in positions)
    return ((start, min(_BEFORE_HEAD + _HEAD, size - start)) for start in starts)
