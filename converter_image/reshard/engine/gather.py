"""Read a box of a tensor from the file of a source rank. No other module decides how a source is read."""

from __future__ import annotations

import threading
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from reshard.checkpoint.dtypes import DTYPES
from reshard.engine.small import padded, scatter
from reshard.errors import DataError, MissingInputError
from reshard.layout.box import Box, contiguous_runs, shifted, strides
from reshard.layout.tiles import divide, flat_span
from reshard.plan.fetched import MOST_OVERREAD
from reshard.plan.runs import reads_of
from reshard.source.changed import source_changed
from reshard.source.reading import has_same_header
from reshard.storage.ahead import Ahead
from reshard.storage.cancellable import cancelled_by, current_check
from reshard.storage.digest import sample_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from reshard.checkpoint.inventory import Inventory, TensorEntry
    from reshard.engine.memory import Budget
    from reshard.engine.small import Placed
    from reshard.storage.ahead import Read
    from reshard.storage.protocol import Reader, ReadStore
    from reshard.storage.traffic import Meter

# As `MOST_OVERREAD`, if the caller asks for short gaps to be read.
_MOST_OVERREAD_OF_GAPS = 4
# Below this length, many runs are not worth one system call each if every page contains one: a store reads whole pages.
_SMALLEST_RUN = 64
_MANY_RUNS = 4096
_PAGE_BYTES = 4096

Elements = np.ndarray[Any, np.dtype[Any]]
_ELEMENT = {1: "u1", 2: "u2", 3: "V3", 4: "u4", 8: "u8", 16: "c16"}


def element_type(dtype: str) -> np.dtype[Any]:
    """Return a numpy type of the same size. Elements are moved, but never interpreted."""
    return np.dtype(_ELEMENT[DTYPES[dtype].itemsize])


class SourceFiles:
    """The files of a source, opened on first use and checked against the inventory. Threads may share it.

    Readers stay open until `close`. The store decides how many file descriptors this takes.

    Args:
        store: store of the files.
        inventory: inventory of the source.
        content: meter of what is fetched after a file is opened and checked: the content of tensors.
        indexed: whether an index describes the source. If `Reader.changed` differs, the file may have been copied, or replaced
            with the same modification time: its header is then compared with the index.
        planned: whether an earlier process has read the inventory. `Reader.changed` then detects a file that was replaced since
            with the same modification time.
    """

    def __init__(
        self,
        store: ReadStore,
        inventory: Inventory,
        content: Meter | None = None,
        *,
        indexed: bool = False,
        planned: bool = False,
    ) -> None:
        self.remote = store.remote
        self._store = store
        self._indexed, self._planned = indexed, planned
        self._inventory = inventory
        self._files = {file.rank: file for file in inventory.files}
        self._open: dict[int, Reader] = {}
        self._ahead: Ahead | None = None
        self._lock = threading.Lock()
        self._content = content
        self._check = current_check()

    def expect(self, sources: Sequence[int], reads: Iterable[Read], budget: Budget) -> None:
        """Prefetch the reads that will follow, in this order, if the first source waits for a server or a disk.

        Args:
            sources: ranks whose files are read.
            reads: reads in their order. They are not consumed if there is nothing to wait for.
            budget: memory for prefetched data.
        """
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None
        if sources and self.opened(sources[0]).waits:
            memory = budget.ahead if self.remote else budget.disk_ahead
            self._ahead = Ahead(reads, self.opened, memory, budget.windows, disk=not self.remote)

    def reader(self, rank: int) -> Reader:
        """See `OpenFiles.reader`."""
        return self.opened(rank) if self._ahead is None else self._ahead.reader(rank)

    def view(self, rank: int, offset: int, length: int) -> memoryview | None:
        """See `OpenFiles.view`. Bytes that are prefetched are in memory until the next call."""
        return None if self._ahead is None else self._ahead.view(rank, offset, length)

    def opened(self, rank: int) -> Reader:
        """Return the open file of a source rank, without prefetched bytes. Errors are the same as for `reader`."""
        reader = self._open.get(rank)
        if reader is None:
            with self._lock:  # only one of several threads opens the file
                reader = self._open.get(rank)
                if reader is None:
                    reader = self._open[rank] = self._newly_opened(rank)
        return reader

    def _newly_opened(self, rank: int) -> Reader:
        file = self._files[rank]
        try:
            with cancelled_by(self._check):  # any thread may be the first to need the file
                reader = self._store.open(file.path)
        except MissingInputError as error:
            raise self._changed(rank, "was deleted") from error
        except DataError as error:
            if error.reason == "SourceChanged":  # the store checks the versions of encrypted files too
                raise self._changed(rank) from error
            raise
        try:
            same = reader.version == file.version and (not file.sample or sample_of(reader) == file.sample)
            if same and reader.changed != file.changed:
                same = not self._planned and (not self._indexed or has_same_header(self._store, self._inventory, file))
        except BaseException:
            reader.close()
            raise
        if not same:
            reader.close()
            raise self._changed(rank)
        if self._content is not None:
            reader.count_in(self._content)
        return reader

    def check_unchanged(self) -> None:
        """Check that no file changed while it was read. Object stores guarantee this for each open file.

        Raises:
            DataError: a file changed.
        """
        if self.remote:
            return
        for rank in sorted(self._open):
            found = self._store.stat(self._files[rank].path)
            if found is None:
                raise self._changed(rank, "was deleted")
            if found.version != self._files[rank].version:
                raise self._changed(rank)

    def close(self) -> None:
        """Close all files."""
        if self._ahead is not None:
            self._ahead.close()
        while self._open:
            self._open.popitem()[1].close()

    def _changed(self, rank: int, how: str = "changed") -> DataError:
        return source_changed(self._files[rank].path, how, indexed=self._indexed)


class OpenFiles(Protocol):
    """The open files of a source, some of whose bytes may be in memory."""

    def reader(self, rank: int) -> Reader:
        """Return the open file of a source rank.

        Raises:
            DataError: the file is not the one that the plan was created for.
        """

    def view(self, rank: int, offset: int, length: int) -> memoryview | None:
        """Return bytes of a source rank's file that are in memory, or None if they must be read."""


class Gatherer:
    """Reads boxes of source tensors into memory, with buffers that are created on first use, and reused.

    Args:
        files: files of the source.
        tile_bytes: size of the buffers. Boxes of any size are read in parts that fit.
        gap_bytes: gaps of at most this length between runs are read as well.
    """

    def __init__(self, files: OpenFiles, tile_bytes: int, gap_bytes: int = 0) -> None:
        self._files = files
        self._gap_bytes = gap_bytes
        self._tile_bytes, self._span_bytes = tile_bytes, span_bytes(tile_bytes)

    @cached_property
    def _compact(self) -> bytearray:
        return bytearray(self._tile_bytes)

    @cached_property
    def _span(self) -> bytearray:
        return bytearray(self._span_bytes)

    def read(self, rank: int, entry: TensorEntry, box: Box, into: Elements) -> None:
        """Fill `into` (with the shape of the box, the element type, and any strides) with a box of a source rank's slice."""
        if (held := self._held(rank, entry, box, into.dtype)) is not None:
            np.copyto(into, held)
            return
        itemsize = into.itemsize
        length, starts, together = _way(entry, box, itemsize, self._gap_bytes)
        if into.flags.c_contiguous and not together:
            self._read_runs(rank, entry, length, starts, memoryview(into.reshape(-1)).cast("B"))  # type: ignore[arg-type]  # an array is a buffer
        elif together or length == into.nbytes:
            self._read_spans(rank, entry, box, into)
        else:
            for part in divide(box.shape, Box.whole(box.shape), self._tile_bytes // itemsize):
                length, starts, _ = _way(entry, shifted(part, box.start), itemsize, self._gap_bytes)
                view = memoryview(self._compact)[: part.size * itemsize]
                self._read_runs(rank, entry, length, starts, view)
                np.copyto(into[part.slices()], np.frombuffer(view, into.dtype).reshape(part.shape))

    def _held(self, rank: int, entry: TensorEntry, box: Box, element: np.dtype[Any]) -> Elements | None:
        """Return a box of a source rank's slice that is in memory, with the gaps between its runs."""
        if len(entry.extents) != 1:
            return None
        first, end = flat_span(entry.shape, box)
        itemsize = element.itemsize
        view = self._files.view(rank, entry.extents[0][0] + first * itemsize, (end - first) * itemsize)
        if view is None:
            return None
        return np.ndarray(box.shape, element, view, strides=[step * itemsize for step in strides(entry.shape)])

    def read_small(self, tensors: Placed, into: memoryview) -> None:
        """Read small tensors to their places in a buffer, in the source's type. Padding consists of zeros."""
        reader, view = self._files.reader, self._files.view
        for place, length in padded(tensors):
            into[place : place + length] = bytes(length)
        for alone, together in reads_of(tensors.plan, tensors.numbers, tensors.places, self._span_bytes):
            for rank, source, place, length in alone:
                if (held := view(rank, source, length)) is not None:
                    into[place : place + length] = held
                else:
                    reader(rank).read_into(into[place : place + length], source)
            for rank, start, end, runs in together:
                content = view(rank, start, end - start)
                if content is None:
                    content = memoryview(self._span)[: end - start]
                    reader(rank).read_into(content, start)
                scatter(content, start, runs, into)

    def _read_runs(self, rank: int, entry: TensorEntry, length: int, starts: Iterator[int], view: memoryview) -> None:
        """Read runs of equal length, one after the other."""
        reader = self._files.reader(rank)
        if length == len(view):
            self._read_range(reader, entry, next(starts), view)
        elif len(entry.extents) == 1:
            base = entry.extents[0][0]
            reader.read_runs(view, length, [base + start for start in starts])
        else:
            for i, start in enumerate(starts):
                self._read_range(reader, entry, start, view[i * length : (i + 1) * length])

    def _read_spans(self, rank: int, entry: TensorEntry, box: Box, into: Elements) -> None:
        """Read a box in parts, each together with the gaps between its runs."""
        reader, element, itemsize = self._files.reader(rank), into.dtype, into.itemsize
        steps = tuple(step * itemsize for step in strides(entry.shape))
        for part in divide(entry.shape, box, self._span_bytes // itemsize):
            first, end = flat_span(entry.shape, part)
            span = memoryview(self._span)[: (end - first) * itemsize]
            self._read_range(reader, entry, first * itemsize, span)
            np.copyto(into[part.relative_to(box.start).slices()], np.ndarray(part.shape, element, span, strides=steps))

    def _read_range(self, reader: Reader, entry: TensorEntry, start: int, view: memoryview) -> None:
        """Read bytes of a tensor's content, which a `.ckpt` file may hold in several pieces."""
        done = 0
        for offset, n in entry.located(start, len(view)):
            reader.read_into(view[done : done + n], offset)
            done += n


def reads_of_box(rank: int, entry: TensorEntry, box: Box, tile_bytes: int, gap_bytes: int = 0) -> Iterator[Read]:
    """Yield the reads of `Gatherer.read`, in order."""
    itemsize = DTYPES[entry.dtype].itemsize
    length, starts, together = _way(entry, box, itemsize, gap_bytes)
    if together:
        for part in divide(entry.shape, box, span_bytes(tile_bytes) // itemsize):
            first, end = flat_span(entry.shape, part)
            for offset, n in entry.located(first * itemsize, (end - first) * itemsize):
                yield rank, offset, n
    else:
        for start in starts:
            for offset, n in entry.located(start, length):
                yield rank, offset, n


def span_bytes(tile_bytes: int) -> int:
    """Return the maximum length of a read with gaps."""
    return int(tile_bytes * MOST_OVERREAD)


def _way(entry: TensorEntry, box: Box, itemsize: int, gap_bytes: int) -> tuple[int, Iterator[int], bool]:
    """Return the length of a box's runs in bytes, the start of each in the content, and whether to read the gaps as well."""
    length, starts = contiguous_runs(entry.shape, box)
    length *= itemsize
    nbytes = box.size * itemsize
    runs = nbytes // length
    together = False
    if runs > 1:
        first, end = flat_span(entry.shape, box)
        span = (end - first) * itemsize
        dense = length < _SMALLEST_RUN and runs > _MANY_RUNS and span <= runs * _PAGE_BYTES
        near = span - nbytes <= gap_bytes * (runs - 1) and span <= _MOST_OVERREAD_OF_GAPS * nbytes
        together = dense or near or span <= MOST_OVERREAD * nbytes
    return length, (start * itemsize for start in starts), together
