"""Bytes of a box of a tensor from the file of a source rank: the only place that decides how a source is read."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from reshard.checkpoint.dtypes import DTYPES
from reshard.errors import DataError, MissingInputError
from reshard.layout.box import Box, contiguous_runs, strides
from reshard.layout.tiles import flat_span
from reshard.source.changed import source_changed
from reshard.storage.ahead import Ahead
from reshard.storage.digest import sample_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from reshard.checkpoint.inventory import Inventory, TensorEntry
    from reshard.plan import TargetTensor
    from reshard.plan.geometry import Geometry
    from reshard.storage.ahead import Read
    from reshard.storage.protocol import Reader, ReadStore

# Gaps between runs are read along with them while that makes at most this much of what is needed.
_MOST_OVERREAD = 1.25
# Many runs below this many bytes are not worth a system call each, if there is one in every page: a storage reads whole pages.
_SMALLEST_RUN = 64
_MANY_RUNS = 4096
_PAGE_BYTES = 4096
# A tensor of at most so many bytes, in at most so many runs, is read run by run without any other calculation.
SMALL_BYTES = 32 << 10
_FEW_RUNS = 64

# Each as (overlap, offset in the source's slice, offset in the target's, length) in bytes.
Runs = tuple[tuple[int, int, int, int], ...]
Elements = np.ndarray[Any, np.dtype[Any]]
_ELEMENT = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}


def element_type(dtype: str) -> np.dtype[Any]:
    """A numpy type of the same size: elements are moved, never interpreted."""
    return np.dtype(_ELEMENT[DTYPES[dtype].itemsize])


@dataclass
class ReadCount:
    """How many bytes were read of a source's tensors."""

    nbytes: int = 0


class SourceFiles:
    """The files of a source, opened when first read and checked to be those that the inventory describes. Threads may share it.

    Readers stay until `close`; how many files of the system that takes is the store's affair.

    Args:
        store: the storage that holds the files.
        inventory: the files.
        count: is told how many bytes are read.
        indexed: whether an index describes the source.
        planned: whether an earlier process has read the inventory: a file that was replaced since, with its time restored, is
            known by `Reader.changed` only.
    """

    def __init__(
        self,
        store: ReadStore,
        inventory: Inventory,
        count: ReadCount | None = None,
        *,
        indexed: bool = False,
        planned: bool = False,
    ) -> None:
        self.remote = store.remote
        self._store = store
        self._indexed, self._planned = indexed, planned
        self._files = {file.rank: file for file in inventory.files}
        self._open: dict[int, Reader] = {}
        self._ahead: Ahead | None = None
        self._lock = threading.Lock()
        self.count = count or ReadCount()

    def expect(self, reads: Iterable[Read], memory: int) -> None:
        """Fetch ahead of the reads that will be made, in this order, within so many bytes.

        Where a read costs no round trip nothing is fetched, and `reads` not looked at.
        """
        if not self.remote:
            return
        if self._ahead is not None:
            self._ahead.close()
        self._ahead = Ahead(reads, self._opened, memory)

    def reader(self, rank: int) -> Reader:
        """The open file of a source rank.

        Raises:
            DataError: it is no longer the file that was planned with.
        """
        return self._opened(rank) if self._ahead is None else self._ahead.reader(rank)

    def _opened(self, rank: int) -> Reader:
        reader = self._open.get(rank)
        if reader is None:
            with self._lock:  # of several threads that fetch, one opens
                reader = self._open.get(rank)
                if reader is None:
                    reader = self._open[rank] = self._newly_opened(rank)
        return reader

    def _newly_opened(self, rank: int) -> Reader:
        file = self._files[rank]
        try:
            reader = self._store.open(file.path)
        except MissingInputError as error:
            raise self._changed(rank, "was deleted") from error
        except DataError as error:
            if error.reason == "SourceChanged":  # of encrypted files the store knows the versions too
                raise self._changed(rank) from error
            raise
        try:
            same = reader.version == file.version and (not file.sample or sample_of(reader) == file.sample)
            same = same and (not self._planned or reader.changed == file.changed)
        except BaseException:
            reader.close()
            raise
        if not same:
            reader.close()
            raise self._changed(rank)
        return reader

    def check_unchanged(self) -> None:
        """Make sure that none of the files that were read has changed meanwhile; an object store gives one version or none.

        Raises:
            DataError: one has.
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


class Gatherer:
    """Reads boxes of source tensors into memory, with buffers that it keeps."""

    def __init__(self, files: SourceFiles, tile_bytes: int) -> None:
        self._files = files
        self._compact = bytearray(tile_bytes)
        self._span = bytearray(_span_bytes(tile_bytes))

    def read(self, rank: int, entry: TensorEntry, box: Box, into: Elements) -> None:
        """Fill `into` (of the box' shape, of the element type, any strides) with a box of a source rank's slice."""
        nbytes = box.size * into.itemsize
        if into.flags.c_contiguous:
            self._read_compact(rank, entry, box, memoryview(into.reshape(-1)).cast("B"))  # type: ignore[arg-type]  # an array is a buffer
            return
        view = memoryview(self._compact)[:nbytes]
        self._read_compact(rank, entry, box, view)
        np.copyto(into, np.frombuffer(view, into.dtype).reshape(box.shape))

    def read_small(self, tensor: TargetTensor, runs: Runs, into: memoryview) -> None:
        """Fill `into` with the whole content of a small tensor, whose `small_runs` these are."""
        ranks, entries, reader = tensor.ranks, tensor.entries, self._files.reader
        for overlap, source, target, nbytes in runs:
            reader(ranks[overlap]).read_into(into[target : target + nbytes], entries[overlap].extents[0][0] + source)
        self._files.count.nbytes += len(into)

    def _read_compact(self, rank: int, entry: TensorEntry, box: Box, view: memoryview) -> None:
        itemsize = DTYPES[entry.dtype].itemsize
        reader = self._files.reader(rank)
        length, starts, together = _way(entry, box, itemsize)
        if length == len(view):
            self._read_range(reader, entry, next(starts), view)
        elif together:
            done = 0
            for part in _spanning(entry, box, itemsize, len(self._span)):
                n = part.size * itemsize
                self._read_span(reader, entry, part, view[done : done + n], itemsize)
                done += n
        elif len(entry.extents) == 1:
            base = entry.extents[0][0]
            reader.read_runs(view, length, [base + start for start in starts])
            self._files.count.nbytes += len(view)
        else:
            for i, start in enumerate(starts):
                self._read_range(reader, entry, start, view[i * length : (i + 1) * length])

    def _read_span(self, reader: Reader, entry: TensorEntry, box: Box, view: memoryview, itemsize: int) -> None:
        """Read gaps along with the runs."""
        first, end = flat_span(entry.shape, box)
        span = memoryview(self._span)[: (end - first) * itemsize]
        self._read_range(reader, entry, first * itemsize, span)
        element = element_type(entry.dtype)
        steps = tuple(step * itemsize for step in strides(entry.shape))
        source = np.lib.stride_tricks.as_strided(np.frombuffer(span, element), box.shape, steps, writeable=False)
        np.copyto(np.frombuffer(view, element).reshape(box.shape), source)

    def _read_range(self, reader: Reader, entry: TensorEntry, start: int, view: memoryview) -> None:
        """Read bytes of a tensor's content, which a `.ckpt` file may hold in several pieces."""
        self._files.count.nbytes += len(view)
        done = 0
        for offset, n in entry.located(start, len(view)):
            reader.read_into(view[done : done + n], offset)
            done += n


def small_runs(tensor: TargetTensor) -> Runs | None:
    """The few runs that make up a tensor of at most `SMALL_BYTES`; None when they are many, and better read otherwise."""
    if any(len(entry.extents) != 1 for entry in tensor.entries):
        return None
    return _runs(tensor.geometry, DTYPES[tensor.parameter.dtype].itemsize)


def reads_of_small(tensor: TargetTensor, runs: Runs) -> Iterator[Read]:
    """What `Gatherer.read_small` reads, in its order."""
    for overlap, source, _, nbytes in runs:
        yield tensor.ranks[overlap], tensor.entries[overlap].extents[0][0] + source, nbytes


def reads_of_box(rank: int, entry: TensorEntry, box: Box, tile_bytes: int) -> Iterator[Read]:
    """What `Gatherer.read` reads, in its order."""
    itemsize = DTYPES[entry.dtype].itemsize
    length, starts, together = _way(entry, box, itemsize)
    if together:
        for part in _spanning(entry, box, itemsize, _span_bytes(tile_bytes)):
            first, end = flat_span(entry.shape, part)
            for offset, n in entry.located(first * itemsize, (end - first) * itemsize):
                yield rank, offset, n
    else:
        for start in starts:
            for offset, n in entry.located(start, length):
                yield rank, offset, n


def _span_bytes(tile_bytes: int) -> int:
    return int(tile_bytes * _MOST_OVERREAD)


def _way(entry: TensorEntry, box: Box, itemsize: int) -> tuple[int, Iterator[int], bool]:
    """The length of a box' runs in bytes, where each begins in the content, and whether to read the gaps between them along."""
    length, starts = contiguous_runs(entry.shape, box)
    length *= itemsize
    nbytes = box.size * itemsize
    runs = nbytes // length
    together = False
    if runs > 1:
        first, end = flat_span(entry.shape, box)
        span = (end - first) * itemsize
        dense = length < _SMALLEST_RUN and runs > _MANY_RUNS and span <= runs * _PAGE_BYTES
        together = dense or span <= _MOST_OVERREAD * nbytes
    return length, (start * itemsize for start in starts), together


def _spanning(entry: TensorEntry, box: Box, itemsize: int, most: int) -> Iterator[Box]:
    """Cut a box, in the order of its elements, until each part spans at most so many bytes of the content."""
    first, end = flat_span(entry.shape, box)
    if (end - first) * itemsize <= most:
        yield box
        return
    axis = next(i for i, n in enumerate(box.shape) if n > 1)
    half = box.shape[axis] // 2
    for start, count in ((box.start[axis], half), (box.start[axis] + half, box.shape[axis] - half)):
        part = Box((*box.start[:axis], start, *box.start[axis + 1 :]), (*box.shape[:axis], count, *box.shape[axis + 1 :]))
        yield from _spanning(entry, part, itemsize, most)


@lru_cache(maxsize=512)
def _runs(geometry: Geometry, itemsize: int) -> Runs | None:
    """The runs of bytes that make up a slice, if they are few."""
    runs: list[tuple[int, int, int, int]] = []
    for number, overlap in enumerate(geometry.overlaps):
        source_length, sources = contiguous_runs(geometry.source_shape, overlap.source)
        target_length, targets = contiguous_runs(geometry.box.shape, overlap.target)
        length = min(source_length, target_length)  # one divides the other: both are products of the innermost dimensions
        if len(runs) + overlap.target.size // length > _FEW_RUNS:
            return None
        starts = zip(_pieces(sources, source_length, length), _pieces(targets, target_length, length), strict=True)
        runs += [(number, source * itemsize, target * itemsize, length * itemsize) for source, target in starts]
    return tuple(runs)


def _pieces(starts: Iterator[int], length: int, piece: int) -> Iterator[int]:
    return (start + at for start in starts for at in range(0, length, piece))
