"""Verify that a written file holds the content of the source.

The index calculation is independent of the plan: it uses divisions instead of boxes, so that an arithmetic error in the plan is
detected.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np

from reshard.engine.verify_entries import NONE, Known
from reshard.engine.verify_rows import FIX, TensorComparison, announced, differs
from reshard.engine.verify_small import Alike, Region, SmallComparison
from reshard.errors import BugError, DataError
from reshard.plan.runs import SMALL_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from reshard.checkpoint.inventory import TensorEntry
    from reshard.checkpoint.manifest import Verified
    from reshard.engine.gather import SourceFiles
    from reshard.engine.verify_entries import Entries
    from reshard.layout import Layout
    from reshard.plan.columns import Numbers
    from reshard.plan.model import Model, Parameter
    from reshard.plan.rank import RankPlan, TargetTensor, TensorGroup
    from reshard.plan.runs import Flags
    from reshard.storage.protocol import Reader

# The small tensors of a group are compared together if there are at least so many of them, and each has at most so many pieces.
# The pieces of all groups are in memory.
_MANY, _MOST_PIECES = 8, 256


def check_file(  # noqa: PLR0913 - the file, the source, and how to compare them
    written: Reader,
    plan: RankPlan,
    model: Model,
    files: SourceFiles,
    level: Verified,
    described: Sequence[TensorEntry],
    *,
    known: Known | None = None,
    at_once: int = 1,
) -> None:
    """Compare a finished file with the source.

    Args:
        written: reader of the file, opened again.
        plan: plan of the file. Only its tensor names and its choice of source ranks are used.
        model: parameters with their source and target layouts.
        files: files of the source.
        level: amount of data to compare. "Full" compares every byte. Other levels compare small tensors, and some rows of others.
        described: tensors that the file describes, see `OutputFormat.entries`.
        known: entries of files. Those of other ranks of the task are often equal.
        at_once: number of parameters compared at a time.

    Raises:
        BugError: the file differs from the source.
    """
    local = plan.rank % model.target_devices

    found = known or Known()
    entries = found.of_written(described)

    def held(rank: int) -> Entries:
        return found.of_rank(model.inventory, rank)

    def compared(number: int) -> TensorComparison:
        entry, regions = entries.tensors[positions[number]], _regions(written, plan.tensors[number], local, model, held)
        return TensorComparison(written, entry, plan.parameters[number], files, regions)

    positions = _positions(written, plan, entries)
    is_small = _together(plan) & (entries.offsets[positions] != NONE)
    small, alike = np.flatnonzero(is_small), dict[int, Alike]()
    for position, first in zip(*(each.tolist() for each in np.unique(plan.group_of[small], return_index=True)), strict=True):
        each = Alike.of(plan.groups[position], _regions(written, plan.tensors[int(small[first])], local, model, held))
        if len(each.pieces) <= _MOST_PIECES:
            alike[position] = each
    is_small &= np.isin(plan.group_of, [*alike])
    small = np.flatnonzero(is_small)
    comparisons = [compared(number) for number in np.flatnonzero((positions != NONE) & ~is_small).tolist()]
    for number in SmallComparison(written, plan, files, held, alike).differing(small, entries.offsets[positions[small]]):
        compared(number).run("Full")  # names the source file
        raise differs(written, plan.parameters[number], "differs from the source")
    if at_once == 1:
        for comparison in announced(comparisons, level):
            comparison.run(level)
        return
    with ThreadPoolExecutor(at_once, thread_name_prefix="reshard-verify") as pool:
        for _ in pool.map(lambda comparison: comparison.run(level), comparisons):
            pass


def _positions(written: Reader, plan: RankPlan, entries: Entries) -> Numbers:
    """Return the position of the entry of each planned tensor in the finished file, or `NONE` if the tensor has no elements.

    Raises:
        BugError: the file lacks a tensor, or contains one that was not planned.
    """
    expected = [(group.kind.target_dtype, group.geometry.box.shape) for group in plan.groups]
    has_elements = np.array([prod(shape) > 0 for _, shape in expected], np.bool_)[plan.group_of]
    positions: Numbers = np.where(has_elements, entries.positions(plan.parameters), NONE)
    counts = np.bincount(positions[positions != NONE], minlength=len(entries.tensors) + 1)  # none at `NONE`
    as_expected = entries.have_types(positions, expected, plan.group_of) & (counts[positions] == 1)
    if (wrong := np.flatnonzero(has_elements & ~as_expected)).size:
        parameter = plan.parameters[wrong[0]]
        raise differs(written, parameter, "is missing, or its type or shape differs from the source")
    for position in np.flatnonzero(counts[:-1] == 0).tolist():
        if entries.tensors[position].nbytes:
            raise BugError(
                "VerificationFailed",
                f"the file contains a parameter that was not planned: {entries.tensors[position].name}",
                where=written.name,
                fix=FIX,
            )
    return positions


def _together(plan: RankPlan) -> Flags:
    """Return which tensors of a plan are compared together: many that are alike."""
    kinds = np.fromiter(map(id, map(attrgetter("kind"), plan.parameters)), np.int64, len(plan.parameters))
    are_many = np.array([_are_many(plan, group) for group in plan.groups], np.bool_)
    of_groups = np.array([id(group.kind) for group in plan.groups], np.int64)
    found: Flags = are_many[plan.group_of] & (kinds == of_groups[plan.group_of])
    return found


def _are_many(plan: RankPlan, group: TensorGroup) -> bool:
    """Return whether the tensors of a group are compared together: if they are small, and there are at least `_MANY`."""
    is_small = max(group.nbytes, group.written_nbytes) <= SMALL_BYTES
    return is_small and len(group.numbers) >= _MANY and bool(plan.are_contiguous(group).all())


def _regions(
    written: Reader, tensor: TargetTensor, local: int, model: Model, held_by: Callable[[int], Entries]
) -> tuple[Region, ...]:
    """Return the regions of a target slice. Of the plan, only its choice of source ranks is used.

    Raises:
        BugError: a rank does not hold its source slice, or source slices are missing.
    """
    parameter, found = tensor.parameter, {}
    whole = parameter.target_shape
    low, high = _bounds(parameter.target, whole, local)
    planned = zip(tensor.geometry.overlaps, tensor.geometry.cells, tensor.ranks, tensor.entries, strict=True)
    for overlap, cell, rank, chosen in planned:
        entry = chosen if parameter.shards is not None else held_by(rank).find(parameter.source_name)
        position = tuple(a + i for a, i in zip(low, overlap.target.start, strict=True))
        held = _slice_at(parameter, position, cell)
        if held is None or entry is None or not _holds(parameter, held, rank, entry, model):
            raise differs(written, parameter, f"was planned to be read from rank {rank}, which holds another slice")
        first = tuple(map(max, low, held.start))
        end = map(min, high, (a + n for a, n in zip(held.start, held.shape, strict=True)))
        found[held.number] = Region(
            tuple(a - b for a, b in zip(first, low, strict=True)),
            tuple(b - a for a, b in zip(first, end, strict=True)),
            tuple(a - b for a, b in zip(first, held.start, strict=True)),
            rank,
            entry,
            held.number[0] if parameter.shards is not None else None,
        )
    regions = (*found.values(), *_padding(low, high, parameter.shape))
    if sum(prod(region.shape) for region in regions) != prod(b - a for a, b in zip(low, high, strict=True)):
        raise differs(written, parameter, "has elements that the plan does not read")
    return regions


def _bounds(layout: Layout, shape: tuple[int, ...], local: int) -> tuple[list[int], list[int]]:
    """Return the first element of a rank's slice along each dimension, and the end of the slice."""
    if not layout.uneven:
        lengths = [n // k for n, k in zip(shape, layout.parts, strict=True)]
        low = [c * m for c, m in zip(layout.cells[local], lengths, strict=True)]
        return low, [a + m for a, m in zip(low, lengths, strict=True)]
    coordinates = [int(i) for i in np.unravel_index(local, layout.device_matrix)]
    low, high = [0] * len(shape), list(shape)
    for dimension, axes in enumerate(layout.tensor_map):
        for axis in axes:
            chunk = -(-(high[dimension] - low[dimension]) // layout.device_matrix[-1 - axis])
            low[dimension] = min(low[dimension] + coordinates[-1 - axis] * chunk, high[dimension])
            high[dimension] = min(low[dimension] + chunk, high[dimension])
    return low, high


def _padding(low: Sequence[int], high: Sequence[int], shape: tuple[int, ...]) -> Iterator[Region]:
    """Yield the regions of a target slice that are beyond the source along a dimension, and not along an earlier one."""
    for axis, length in enumerate(shape):
        start = tuple(max(a, length) if i == axis else a for i, a in enumerate(low))
        end = tuple(min(b, n) if i < axis else b for i, (b, n) in enumerate(zip(high, shape, strict=True)))
        size = tuple(b - a for a, b in zip(start, end, strict=True))
        if all(n > 0 for n in size):
            yield Region(tuple(a - b for a, b in zip(start, low, strict=True)), size, (), -1, None)


@dataclass(frozen=True, slots=True)
class _Slice:
    """A source slice: its number along each dimension, or of its tile; its first element in the tensor; its lengths."""

    number: tuple[int, ...]
    start: tuple[int, ...]
    shape: tuple[int, ...]


def _slice_at(parameter: Parameter, position: tuple[int, ...], planned: tuple[int, ...]) -> _Slice | None:
    """Return the source slice that holds an element of the tensor, by division, or the planned tile if it holds the element.

    Tiles were proved not to overlap, so no other tile holds the element. None means that the planned tile does not hold it.
    """
    if parameter.shards is not None:
        box = parameter.shards.tiling.box(*planned)
        inside = all(a <= i < a + n for a, i, n in zip(box.start, position, box.shape, strict=True))
        return _Slice(planned, box.start, box.shape) if inside else None
    if parameter.source is None:
        return _Slice((0,) * len(position), (0,) * len(position), parameter.shape)
    lengths = tuple(n // k for n, k in zip(parameter.shape, parameter.source.parts, strict=True))
    number = tuple(i // m for i, m in zip(position, lengths, strict=True))
    return _Slice(number, tuple(c * m for c, m in zip(number, lengths, strict=True)), lengths)


def _holds(parameter: Parameter, held: _Slice, rank: int, entry: TensorEntry, model: Model) -> bool:
    """Return whether a source rank holds a slice in the entry that the plan has chosen."""
    if entry.shape != held.shape:
        return False
    if parameter.shards is not None:
        places = {(place.file, place.offset, place.length) for place in parameter.shards.places(held.number[0])}
        return any((rank, *extent) in places for extent in entry.extents)
    return parameter.source is None or parameter.source.cells[rank % model.source_devices] == held.number


def unreadable(written: Reader, error: DataError) -> BugError:
    """Return the error for a written file that cannot be read back."""
    return BugError("VerificationFailed", f"the written file cannot be read: {error.what}", where=written.name, fix=FIX)


def differing_copy(written: Reader) -> BugError:
    """Return the error for a written file that differs from an equal file."""
    return BugError("VerificationFailed", "the file differs from the equal file of another rank", where=written.name, fix=FIX)
