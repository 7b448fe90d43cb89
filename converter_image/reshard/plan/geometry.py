"""Composition of a target slice from source slices. Pure; calculated once for all tensors with the same sharding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from reshard.errors import BugError
from reshard.layout import cell_box
from reshard.layout.box import Box
from reshard.layout.tiles import flat_span
from reshard.plan.overlap import Cell, overlapping


@dataclass(frozen=True, slots=True)
class Overlap:
    """The intersection of a target slice and a source slice.

    Attributes:
        source: the elements, counted from the start of the source's slice.
        target: place of the same elements, counted from the start of the target's slice.
        first: flat index in the target's slice of the first of them.
        end: number of the one after the last of them.
    """

    source: Box
    target: Box
    first: int
    end: int


@dataclass(frozen=True, slots=True, eq=False)
class Geometry:
    """One target slice. Equal slices are one object, so that derived values can be cached by identity.

    Attributes:
        box: the slice's elements in the whole tensor.
        source_shape: lengths of each source slice.
        cells: the source slices that have elements of it, in row-major order of the source's grid.
        overlaps: for each of them what it has in common with the slice.
    """

    box: Box
    source_shape: tuple[int, ...]
    cells: tuple[Cell, ...]
    overlaps: tuple[Overlap, ...]


@lru_cache(maxsize=512)
def geometry(shape: tuple[int, ...], source_parts: tuple[int, ...], target_parts: tuple[int, ...], target_cell: Cell) -> Geometry:
    """Return the composition of a target slice of a tensor of the whole `shape`.

    Raises:
        DataError: a layout does not divide the shape.
    """
    box = cell_box(shape, target_parts, target_cell)
    cells, overlaps = [], []
    for cell in overlapping(target_parts, target_cell, source_parts):
        held = cell_box(shape, source_parts, cell)
        common = box.intersect(held)
        if common is not None:  # otherwise the tensor has no elements
            target = common.relative_to(box.start)
            cells.append(cell)
            overlaps.append(Overlap(common.relative_to(held.start), target, *flat_span(box.shape, target)))
    return Geometry(box, tuple(n // k for n, k in zip(shape, source_parts, strict=True)), tuple(cells), tuple(overlaps))


def prove(found: Geometry) -> None:
    """Check that the overlaps lie within both slices, do not overlap, and leave no element out.

    Independent of how they were found: volumes must add up, and no two may intersect.

    Raises:
        BugError: the check fails.
    """
    whole, held = Box.whole(found.box.shape), Box.whole(found.source_shape)
    inside = all(
        whole.intersect(overlap.target) == overlap.target
        and held.intersect(overlap.source) == overlap.source
        and overlap.source.shape == overlap.target.shape
        for overlap in found.overlaps
    )
    boxes = [overlap.target for overlap in found.overlaps]
    if not (inside and sum(box.size for box in boxes) == whole.size and _disjoint(boxes)):
        raise BugError(
            "PlanNotExact",
            "the planned copies do not cover the slice exactly once",
            where=f"a slice of {list(found.box.shape)}",
            fix="this is a bug in reshard: please report it with both strategy files",
        )


def _disjoint(boxes: list[Box]) -> bool:
    """Compare overlaps along the dimension with the most slices, so that only neighbours are compared."""
    if len(boxes) < 2:
        return True
    if not boxes[0].start:
        return False
    axis = max(range(len(boxes[0].start)), key=lambda i: len({box.start[i] for box in boxes}))
    open_boxes: list[Box] = []
    for box in sorted(boxes, key=lambda b: b.start[axis]):
        open_boxes = [other for other in open_boxes if other.start[axis] + other.shape[axis] > box.start[axis]]
        if any(box.intersect(other) for other in open_boxes):
            return False
        open_boxes.append(box)
    return True
