"""Verify that a written file holds the content of the source.

The index calculation is independent of the plan: it uses divisions instead of boxes, so that an arithmetic error in the plan is
detected.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from reshard.checkpoint import read_header
from reshard.checkpoint.dtypes import DTYPES
from reshard.errors import BugError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reshard.checkpoint.inventory import RangeReader, TensorEntry
    from reshard.checkpoint.manifest import Verified
    from reshard.engine.gather import SourceFiles
    from reshard.plan.model import Model, Parameter
    from reshard.plan.rank import RankPlan, TargetTensor
    from reshard.storage.protocol import Reader

_BLOCK_BYTES = 1 << 20
_SAMPLES = 4  # rows of each parameter in a sample
_SAMPLED_SEGMENTS = 8  # segments of each such row, from its first to its last
_SAMPLE_BYTES = 16 << 10  # bytes of each such segment

_FIX = "check the storage for errors and retry; if the error persists, please report it with both strategy files"

_Indexes = np.ndarray[tuple[int], np.dtype[np.int64]]


def check_file(
    written: Reader,
    plan: RankPlan,
    model: Model,
    files: SourceFiles,
    level: Verified,
    *,
    headers: RangeReader | None = None,
    at_once: int = 1,
) -> None:
    """Compare a finished file with the source.

    Args:
        written: reader of the file, opened again.
        plan: plan of the file. Only its tensor names and its choice of source ranks are used.
        model: parameters with their source and target layouts.
        files: files of the source.
        level: amount of data to compare. "Full": every byte. Otherwise: some rows of each parameter.
        headers: reader that is optimized for the headers of the file. None means `written`.
        at_once: number of parameters compared at a time.

    Raises:
        BugError: the file differs from the source.
    """
    try:
        entries = {entry.name: entry for entry in read_header(headers or written).structure.tensors}
    except DataError as error:
        raise unreadable(written, error) from error
    comparisons, local = [], plan.rank % model.target_devices
    for tensor in plan.tensors:
        parameter = tensor.parameter
        if not prod(tensor.shape):
            continue
        entry = entries.pop(parameter.name, None)
        if entry is None or (entry.dtype, entry.shape) != (parameter.dtype, tensor.shape):
            raise _differs(written, parameter, "is missing or has another type or shape")
        comparisons.append(_Comparison(written, entry, parameter, local, files, _sources(written, tensor, local, model)))
    leftover = [name for name, entry in entries.items() if entry.nbytes]
    if leftover:
        raise BugError(
            "VerificationFailed",
            f"the file contains a parameter that was not planned: {leftover[0]}",
            where=written.name,
            fix=_FIX,
        )
    if at_once == 1:
        for comparison in comparisons:
            comparison.run(level)
        return
    with ThreadPoolExecutor(at_once, thread_name_prefix="reshard-verify") as pool:
        for _ in pool.map(lambda comparison: comparison.run(level), comparisons):
            pass


def _sources(written: Reader, tensor: TargetTensor, local: int, model: Model) -> dict[tuple[int, ...], tuple[int, TensorEntry]]:
    """Return the source rank and tensor that the plan has chosen for each source slice. Nothing else of the plan is used.

    Raises:
        BugError: a rank does not hold that slice.
    """
    parameter, found = tensor.parameter, {}
    for overlap, rank, entry in zip(tensor.geometry.overlaps, tensor.ranks, tensor.entries, strict=True):
        cell = _part_of(parameter, local, overlap.target.start)
        if parameter.source is not None and parameter.source.cells[rank % model.source_devices] != cell:
            raise _differs(written, parameter, f"was planned to be read from rank {rank}, which holds another slice,")
        found[cell] = (rank, entry)
    return found


def _part_of(parameter: Parameter, rank: int, position: tuple[int, ...]) -> tuple[int, ...]:
    """Return the source slice that holds an element of the target's slice, by division."""
    if parameter.source is None:
        return (0,) * len(parameter.shape)
    lengths = [n // k for n, k in zip(parameter.shape, parameter.target.parts, strict=True)]
    wanted = [c * n + i for c, n, i in zip(parameter.target.cells[rank], lengths, position, strict=True)]
    return tuple(w // (n // k) for w, n, k in zip(wanted, parameter.shape, parameter.source.parts, strict=True))


def unreadable(written: Reader, error: DataError) -> BugError:
    """Return the error for a written file that cannot be read back."""
    return BugError("VerificationFailed", f"the written file cannot be read: {error.what}", where=written.name, fix=_FIX)


def _differs(written: Reader, parameter: Parameter, how: str) -> BugError:
    return BugError(
        "VerificationFailed",
        f"parameter {parameter.name} {how}, compared with the source",
        where=written.name,
        fix=_FIX,
    )


@dataclass(frozen=True)
class _Comparison:
    """Comparison of one tensor of the written file with the source's files, row by row along the last dimension."""

    written: Reader
    entry: TensorEntry
    parameter: Parameter
    rank: int
    files: SourceFiles
    sources: dict[tuple[int, ...], tuple[int, TensorEntry]]

    def run(self, level: Verified) -> None:
        shape = self.entry.shape or (1,)
        rows = prod(shape[:-1])
        itemsize = DTYPES[self.entry.dtype].itemsize
        if level == "Full":
            step = max(1, _BLOCK_BYTES // (shape[-1] * itemsize))
            chosen: Iterator[_Indexes] = (np.arange(at, min(at + step, rows)) for at in range(0, rows, step))
            window = _BLOCK_BYTES // itemsize
        else:
            seed = xxhash.xxh32_intdigest(self.parameter.name.encode("utf-8", "surrogatepass"))
            picked = {0, rows - 1} | {(seed * (i + 1) * 2654435761) % rows for i in range(_SAMPLES - 2)}
            chosen = iter([np.array([row]) for row in sorted(picked)])
            window = _SAMPLE_BYTES // itemsize
        for block in chosen:
            self._compare_rows(block, shape, window, whole=level == "Full")

    def _compare_rows(self, rows: _Indexes, shape: tuple[int, ...], window: int, *, whole: bool) -> None:
        """Compare some rows. Long rows are compared in windows: all, or a sample."""
        outer = np.unravel_index(rows, shape[:-1]) if len(shape) > 1 else ()
        segments = list(pairwise(self._cuts(shape[-1], window)))
        if not whole and len(segments) > _SAMPLED_SEGMENTS:
            segments = [segments[i * (len(segments) - 1) // (_SAMPLED_SEGMENTS - 1)] for i in range(_SAMPLED_SEGMENTS)]
        for first, end in segments:
            self._compare_segment(rows, outer, shape, first, end)

    def _cuts(self, length: int, window: int) -> list[int]:
        """Return the boundaries of source slices and of windows along the last dimension of the target's slice."""
        cuts = set(range(0, length, window)) | {length}
        if self.parameter.source is not None and self.parameter.shape:
            part = self.parameter.shape[-1] // self.parameter.source.parts[-1]
            start = self._start(len(self.parameter.shape) - 1)
            cuts |= {at - start for at in range(-(-start // part) * part, start + length, part)}
        return sorted(cuts)

    def _start(self, axis: int) -> int:
        return self.parameter.target.cells[self.rank][axis] * (self.parameter.shape[axis] // self.parameter.target.parts[axis])

    def _compare_segment(self, rows: _Indexes, outer: tuple[_Indexes, ...], shape: tuple[int, ...], first: int, end: int) -> None:
        """Compare elements [first, end) of some rows, which are in one source slice along the last dimension."""
        scalar = not self.entry.shape
        position = [*outer, np.full(len(rows), first)] if not scalar else []
        parts, offsets = self._locate(position, len(rows))
        itemsize = DTYPES[self.entry.dtype].itemsize
        for part in {tuple(p) for p in parts.tolist()}:
            mine = np.flatnonzero((parts == part).all(axis=1)) if parts.size else np.arange(len(rows))
            source_rank, source = self.sources[part]
            reader = self.files.reader(source_rank)
            count = end - first
            found = _read_rows(self.written, self.entry, rows[mine] * shape[-1] + first, count, itemsize)
            expected = _read_rows(reader, source, offsets[mine], count, itemsize)
            if found != expected:
                raise _differs(self.written, self.parameter, f"differs from {reader.name}")

    def _locate(self, position: list[_Indexes], n: int) -> tuple[np.ndarray[tuple[int, int], np.dtype[np.int64]], _Indexes]:
        """Return the source slice of each element of the target's slice, and its flat index in it."""
        layout = self.parameter.source
        parts = np.zeros((n, len(position)), dtype=np.int64)
        flat = np.zeros(n, dtype=np.int64)
        for axis, index_in_slice in enumerate(position):
            length = self.parameter.shape[axis] // (layout.parts[axis] if layout else 1)
            parts[:, axis], inside = np.divmod(index_in_slice + self._start(axis), length)
            flat = flat * length + inside
        return parts, flat


def _read_rows(reader: Reader, entry: TensorEntry, starts: _Indexes, count: int, itemsize: int) -> bytearray:
    """Read runs of `count` elements at these flat indexes. Adjacent runs are read together."""
    length = count * itemsize
    content = bytearray(len(starts) * length)
    view = memoryview(content)
    breaks = [0, *(np.flatnonzero(np.diff(starts) != count) + 1).tolist(), len(starts)]
    if len(entry.extents) == 1 and len(breaks) > 2:
        reader.read_runs(view, length, (starts * itemsize + entry.extents[0][0]).tolist())
        return content
    for a, b in pairwise(breaks):
        at, done = int(starts[a]) * itemsize, a * length
        for offset, held in entry.extents:
            if done < b * length and at < held:
                n = min(b * length - done, held - at)
                reader.read_into(view[done : done + n], offset + at)
                at, done = 0, done + n
            else:
                at -= min(at, held)
        if done < b * length:
            raise DataError(
                "Truncated",
                "the content is shorter than its shape requires",
                where=f"{reader.name}: parameter {entry.name}",
                fix="check the storage for errors and retry",
            )
    return content
