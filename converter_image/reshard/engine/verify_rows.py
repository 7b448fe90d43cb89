"""Compare a tensor of a written file with the source, row by row along the last dimension.

The places of elements are calculated from their indexes, independently of the boxes of the plan.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import xxhash

from reshard.checkpoint.dtypes import DTYPES
from reshard.engine.cast import cast
from reshard.errors import BugError, DataError
from reshard.plan.runs import SMALL_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from reshard.checkpoint.inventory import TensorEntry
    from reshard.checkpoint.manifest import Verified
    from reshard.engine.gather import SourceFiles
    from reshard.engine.verify_small import Region
    from reshard.plan.model import Parameter
    from reshard.storage.protocol import Reader

_BLOCK_BYTES = 1 << 20
_SAMPLES = 4  # rows of each parameter in a sample
_SAMPLED_SEGMENTS = 8  # segments of each such row, from its first to its last
_SAMPLE_BYTES = 16 << 10  # bytes of each such segment
_ANNOUNCED = 8  # tensors whose samples a disk reads, while others are compared

FIX = "check the storage for errors and retry; if the error persists, please report it with both strategy files"

_Indexes = np.ndarray[tuple[int], np.dtype[np.int64]]
_Index = TypeVar("_Index", int, _Indexes)


def differs(written: Reader, parameter: Parameter, how: str) -> BugError:
    """Return the error for a parameter that differs from the source."""
    return BugError("VerificationFailed", f"parameter {parameter.name} {how}", where=written.name, fix=FIX)


class _Segment(NamedTuple):
    """Elements of a row: their region, the indexes of the row in it, the first element in the row, and their number."""

    region: Region
    inside: Sequence[int]
    first: int
    length: int


@dataclass(frozen=True)
class TensorComparison:
    """Comparison of one tensor of the written file with the source's files, row by row along the last dimension."""

    written: Reader
    entry: TensorEntry
    parameter: Parameter
    files: SourceFiles
    regions: tuple[Region, ...]

    def announce(self, level: Verified) -> None:
        """Announce the reads of a sample, which would wait for a disk one after the other."""
        if self._is_sampled(level):
            for region, inside, first, count in self._sample():
                _announce(self.written, self.entry, _flat(self.entry.shape, region.start, inside, first), count)
                if region.entry is not None:
                    flat = _flat(region.entry.shape, region.origin, inside, first)
                    _announce(self.files.reader(region.rank), region.entry, flat, count)

    def run(self, level: Verified) -> None:
        """Compare the tensor, or a sample of it.

        Raises:
            BugError: it differs from the source.
        """
        if self._is_sampled(level):
            for segment in self._sample():
                self._compare(*segment)
        else:
            for region in self.regions:
                self._compare_region(region)

    def _is_sampled(self, level: Verified) -> bool:
        return level != "Full" and self.entry.nbytes > SMALL_BYTES

    def _compare_region(self, region: Region) -> None:
        """Compare all elements of a region, some rows at a time. Long rows are compared in parts."""
        shape, itemsize = region.shape or (1,), self._largest_itemsize
        rows, width = prod(shape[:-1]), shape[-1]
        step = max(1, _BLOCK_BYTES // (width * itemsize))
        window = max(1, _BLOCK_BYTES // itemsize)
        for at in range(0, rows, step):
            inside = np.unravel_index(np.arange(at, min(at + step, rows)), shape[:-1]) if len(shape) > 1 else ()
            for first in range(0, width, window):
                self._compare(region, inside, first, min(window, width - first))

    @property
    def _largest_itemsize(self) -> int:
        """Bytes of an element before or after a cast, whichever are more."""
        return max(DTYPES[self.entry.dtype].itemsize, DTYPES[self.parameter.dtype].itemsize)

    def _sample(self) -> Iterator[_Segment]:
        """Yield segments of the first row, of the last row, and of some rows between them."""
        shape, itemsize = self.entry.shape or (1,), self._largest_itemsize
        rows, window = prod(shape[:-1]), max(1, _SAMPLE_BYTES // itemsize)
        seed = xxhash.xxh32_intdigest(self.parameter.name.encode("utf-8", "surrogatepass"))
        for row in sorted({0, rows - 1} | {(seed * (i + 1) * 2654435761) % rows for i in range(_SAMPLES - 2)}):
            outer = [int(i) for i in np.unravel_index(row, shape[:-1])] if len(shape) > 1 else []
            segments = list(self._segments(outer, window))
            if len(segments) > _SAMPLED_SEGMENTS:
                segments = [segments[i * (len(segments) - 1) // (_SAMPLED_SEGMENTS - 1)] for i in range(_SAMPLED_SEGMENTS)]
            for region, first, count in segments:
                inside = [i - a for i, a in zip(outer, region.start, strict=False)]
                yield _Segment(region, inside, first, count)

    def _segments(self, outer: list[int], window: int) -> Iterator[tuple[Region, int, int]]:
        """Yield the segments of a row in order: the region, the first element in it, and the number of elements."""
        met = [r for r in self.regions if all(a <= i < a + n for i, a, n in zip(outer, r.start, r.shape, strict=False))]
        for region in sorted(met, key=lambda r: r.start[-1:]):
            width = (region.shape or (1,))[-1]
            for first in range(0, width, window):
                yield region, first, min(window, width - first)

    def _compare(self, region: Region, inside: Sequence[_Index], first: int, count: int) -> None:
        """Compare `count` elements from position `first` of some rows of a region, given by their outer indexes in it."""
        found = _read_rows(self.written, self.entry, _flat(self.entry.shape, region.start, inside, first), count)
        if region.entry is None:
            if any(found):
                raise differs(self.written, self.parameter, "has padding that is not zero")
            return
        reader = self.files.reader(region.rank)
        expected = _read_rows(reader, region.entry, _flat(region.entry.shape, region.origin, inside, first), count)
        if self.parameter.cast is not None:
            uncast, expected = expected, bytearray(len(found))
            cast(memoryview(uncast), self.parameter.dtype, memoryview(expected), self.parameter.cast)
        if found != expected:
            raise differs(self.written, self.parameter, f"differs from {reader.name}")


def _flat(shape: tuple[int, ...], origin: tuple[int, ...], inside: Sequence[_Index], first: int) -> _Index:
    """Return the flat index of an element of a slice, or of several, whose places are counted from `origin`."""
    flat: _Index = 0  # type: ignore[assignment]  # arrays are added to it
    for length, start, index in zip(shape, origin, inside, strict=False):
        flat = flat * length + start + index
    return flat * shape[-1] + origin[-1] + first if shape else flat


def _announce(reader: Reader, entry: TensorEntry, start: int | _Indexes, count: int) -> None:
    """Announce that `count` elements at a flat index will be read."""
    itemsize = DTYPES[entry.dtype].itemsize
    for offset, length in entry.located(int(start) * itemsize, count * itemsize):
        reader.will_read(offset, length)


def _read_rows(reader: Reader, entry: TensorEntry, starts: int | _Indexes, count: int) -> bytearray:
    """Read a run of `count` elements at a flat index, or at each of several. Adjacent runs are read together."""
    itemsize = DTYPES[entry.dtype].itemsize
    length = count * itemsize
    if isinstance(starts, int):
        content = bytearray(length)
        _read_run(reader, entry, starts * itemsize, memoryview(content))
        return content
    content = bytearray(len(starts) * length)
    view = memoryview(content)
    breaks = [0, *(np.flatnonzero(np.diff(starts) != count) + 1).tolist(), len(starts)]
    if len(entry.extents) == 1 and len(breaks) > 2:
        reader.read_runs(view, length, (starts * itemsize + entry.extents[0][0]).tolist())
        return content
    for a, b in pairwise(breaks):
        _read_run(reader, entry, int(starts[a]) * itemsize, view[a * length : b * length])
    return content


def _read_run(reader: Reader, entry: TensorEntry, at: int, view: memoryview) -> None:
    """Fill `view` with the content of a tensor from byte `at`."""
    for offset, held in entry.extents:
        if view and at < held:
            n = min(len(view), held - at)
            reader.read_into(view[:n], offset + at)
            at, view = 0, view[n:]
        else:
            at -= min(at, held)
    if view:
        raise DataError(
            "Truncated",
            "the content is shorter than its shape requires",
            where=f"{reader.name}: parameter {entry.name}",
            fix="check the storage for errors and retry",
        )


def announced(comparisons: Iterable[TensorComparison], level: Verified) -> Iterator[TensorComparison]:
    """Yield comparisons after the reads of the next ones are announced."""
    waiting = deque[TensorComparison]()
    for comparison in comparisons:
        comparison.announce(level)
        waiting.append(comparison)
        if len(waiting) > _ANNOUNCED:
            yield waiting.popleft()
    yield from waiting
