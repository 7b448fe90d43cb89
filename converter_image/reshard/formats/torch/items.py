"""The content of tensors in the items of a distributed checkpoint, each of which is an archive of one tensor.

Items of equal tensors differ in content and checksums only. One of them is read in full; the others are compared with it byte by
byte, because reading each of 100,000 archives in full takes a minute.
"""

from __future__ import annotations

from itertools import islice, pairwise
from typing import TYPE_CHECKING, NamedTuple

from reshard.errors import DataError
from reshard.formats.torch.archive import locate, read_archive
from reshard.formats.torch.strided import Content
from reshard.formats.torch.unpickle import Limits
from reshard.formats.torch.zip import CRC_AT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from reshard.checkpoint.inventory import RangeReader
    from reshard.formats.torch.archive import Archive

_HEAD, _TAIL = 1 << 10, 1 << 11  # bytes before and after the content of a tensor that torch writes with its defaults
_MOST_AROUND = 1 << 16
_GAP = 1 << 14  # a gap that is read, to save a request
_MOST_READ = 1 << 20
_BLOCK = 1 << 10
_LIMITS = Limits(nbytes=1 << 20)  # the pickle of one tensor has about 150 bytes
_PARSED = {"data.pkl", "byteorder"}


class Item(NamedTuple):
    """A range of a file, and its description in the metadata of the checkpoint.

    Attributes:
        name: name of the tensor.
        dtype: type of its elements, by its name in `reshard.checkpoint.dtypes`.
        shape: lengths of the shard. It has elements.
        start: first byte in the file.
        length: number of bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    length: int


class _Template(NamedTuple):
    """An item, without the bytes that do not affect what `read_archive` returns.

    Attributes:
        offset: first byte of the content, from the start of the item.
        nbytes: number of bytes of the content.
        head: bytes of the item, each with its distance from the start of the item.
        tail: bytes of the item, each with its distance from the end of the item.
    """

    offset: int
    nbytes: int
    head: tuple[tuple[int, bytes], ...]
    tail: tuple[tuple[int, bytes], ...]

    def matches(self, head: bytes, tail: bytes) -> bool:
        """Return whether an item of the same length that starts and ends with these bytes is equal to the template."""
        for at, found in self.head:
            if not head.startswith(found, at):
                return False
        size = len(tail)
        return all(back <= size and tail.startswith(found, size - back) for back, found in self.tail)


class Templates:
    """Items that were read in full, by their descriptions in the metadata.

    Attributes:
        head: number of bytes to read at the start of an item.
        tail: number of bytes to read at the end of an item.
    """

    def __init__(self) -> None:
        self.head, self.tail = _HEAD, _TAIL
        self._found: dict[tuple[int, str, tuple[int, ...]], _Template] = {}
        self._left = 1 << 24  # bytes

    def find(self, item: Item) -> _Template | None:
        """Return the template for an item."""
        return self._found.get((item.length, item.dtype, item.shape))

    def add(self, reader: RangeReader, item: Item, archive: Archive, content: Content) -> None:
        """Keep an item as a template, unless it takes too much memory.

        Args:
            reader: the file.
            item: the item.
            archive: the item, read in full.
            content: location of its elements, in row-major order.
        """
        fixed = list(_fixed(reader, item, archive))
        offset, size = locate(reader, archive, archive.tensors[0].storage)
        low, high = offset - item.start, offset - item.start + size
        if max(low, item.length - high) > _MOST_AROUND:
            return
        # Items that follow are read up to where the content of this one starts.
        self.head = max(self.head, low)
        self.tail = max(self.tail, item.length - high)
        self._left -= sum(end - start for start, end in fixed)
        if self._left < 0:
            return
        parts = [(start, reader.read(item.start + start, end - start)) for start, end in fixed]
        self._found[item.length, item.dtype, item.shape] = _Template(
            content.offset - item.start,
            content.length,
            tuple((at, found) for at, found in parts if at < low),
            tuple((item.length - at, found) for at, found in parts if at >= high),
        )


def locate_items(reader: RangeReader, items: Iterable[Item], templates: Templates) -> Iterator[Content]:
    """Yield the location of each item's elements in the file.

    Args:
        reader: the file.
        items: items within the file, by their start.
        templates: items that were read in full, to which this function adds.

    Raises:
        DataError: an item is damaged, or is not the tensor that the metadata describes.
    """
    for block in _blocks(items):
        pieces = _read_together(reader, _spans(block, templates))
        for item, head, tail in zip(block, pieces, pieces, strict=True):
            found = templates.find(item)
            if found is not None and found.matches(head, tail):
                yield Content(item.start + found.offset, found.nbytes)
            else:
                yield _read_in_full(_Pieces(reader, item, head, tail), item, templates)


def reads(items: Iterable[Item], templates: Templates) -> Iterator[tuple[int, int]]:
    """Yield the reads of `locate_items` as (offset, length), without those of items that no template matches."""
    for block in _blocks(items):
        yield from ((low, high - low) for low, high, _ in _grouped(_spans(block, templates)))


def _blocks(items: Iterable[Item]) -> Iterator[list[Item]]:
    left = iter(items)
    while block := list(islice(left, _BLOCK)):
        yield block


def _spans(items: Sequence[Item], templates: Templates) -> list[tuple[int, int]]:
    """The start and the end of each item, as ranges of the file."""
    spans = []
    for item in items:
        end = item.start + item.length
        spans.append((item.start, min(item.start + templates.head, end)))
        spans.append((max(end - templates.tail, item.start), end))
    return spans


def _grouped(spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, Sequence[tuple[int, int]]]]:
    """Yield ranges of the file that are read with one request each, and the spans in them: spans that are neighbours."""
    first = 0
    while first < len(spans):
        low, end = spans[first]
        following = first + 1
        while following < len(spans):
            start, stop = spans[following]
            if not low <= start <= end + _GAP or stop - low > _MOST_READ:
                break
            end = max(end, stop)
            following += 1
        yield low, end, spans[first:following]
        first = following


def _read_together(reader: RangeReader, spans: Sequence[tuple[int, int]]) -> Iterator[bytes]:
    """Yield the bytes of each span, in order."""
    for low, end, inside in _grouped(spans):
        content = reader.read(low, end - low)
        yield from (content[start - low : stop - low] for start, stop in inside)


class _Pieces:
    """A file of which the start and the end of an item were read."""

    def __init__(self, reader: RangeReader, item: Item, head: bytes, tail: bytes) -> None:
        self._reader = reader
        self.name = f"{reader.name}: tensor {item.name}"
        self.size = reader.size
        self._pieces = ((item.start, head), (item.start + item.length - len(tail), tail))

    def read(self, offset: int, length: int) -> bytes:
        for start, content in self._pieces:
            if start <= offset and offset + length <= start + len(content):
                return content[offset - start : offset - start + length]
        return self._reader.read(offset, length)


def _read_in_full(reader: RangeReader, item: Item, templates: Templates) -> Content:
    archive = read_archive(reader, item.start, item.length, _LIMITS)
    if len(archive.tensors) != 1 or archive.tensors[0].name:
        raise DataError(
            "TensorInvalid",
            f"the item is not one tensor: it has {len(archive.tensors)} tensors and {archive.others} other values",
            where=reader.name,
            fix="save the tensor as a plain tensor or DTensor",
        )
    (tensor,) = archive.tensors
    if (tensor.dtype.name, tensor.shape) != (item.dtype, item.shape):
        raise DataError(
            "MetadataMismatch",
            f"the file contains {tensor.dtype.name}{list(tensor.shape)},"
            f" but the metadata describes {item.dtype}{list(item.shape)}",
            where=reader.name,
            fix="the files belong to different checkpoints; restore the files of one",
        )
    content = tensor.content(reader, archive)
    if content.strides is None:
        templates.add(reader, item, archive, content)
    return content


def _fixed(reader: RangeReader, item: Item, archive: Archive) -> Iterator[tuple[int, int]]:
    """Yield the ranges of an item, from its start, that affect what `read_archive` returns or could affect it.

    The rest is the content of entries that are not parsed, what follows the content of an entry up to the next one, which is a
    second copy of sizes and checksum, and the checksums in the directory.
    """
    container = archive.container
    entries = sorted(container.entries.items(), key=lambda found: found[1].header)
    free = []
    for (name, entry), following in zip(entries, container.bounds[1:], strict=True):
        offset, size = container.place(reader, name)
        start = offset - item.start
        free.append((start + size if name in _PARSED else start, following))
        free.append((entry.record + CRC_AT, entry.record + CRC_AT + 4))
    bounds = [(0, 0), *sorted(free), (item.length, item.length)]
    yield from ((end, start) for (_, end), (start, _) in pairwise(bounds) if end < start)
