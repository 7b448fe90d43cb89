"""Intersections of the slices of two layouts, calculated once for all tensors with the same sharding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING

from reshard.errors import BugError, DataError
from reshard.layout import cell_box
from reshard.layout.box import Box
from reshard.layout.tiles import flat_span
from reshard.plan.pad import beyond, within

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reshard.model import Tiling
    from reshard.plan.model import Kind

Cell = tuple[int, ...]

# Above this number of overlaps, comparing neighbours takes longer than the proof by corners of `reshard.model.divide`.
_MOST_COMPARED = 256


@dataclass(frozen=True, slots=True)
class Overlap:
    """The intersection of a target slice and a source slice.

    Attributes:
        source: box of the elements, relative to the start of the source slice.
        target: box of the same elements, relative to the start of the target slice.
        first: flat index of the first of these elements in the target slice.
        end: flat index after the last of these elements in the target slice.
        source_shape: shape of the source slice, in elements.
    """

    source: Box
    target: Box
    first: int
    end: int
    source_shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Geometry:
    """The composition of one target slice. Equal slices share one object, so that derived values can be cached by identity.

    Attributes:
        box: elements of the slice in the whole tensor.
        cells: source slices that contain elements of the target slice, in row-major order of the source's grid. For shards that
            metadata locates, the numbers of their tiles.
        overlaps: intersection of each of these source slices with the target slice.
        padding: boxes of zeros, which are in no source slice, relative to the start of the target slice.
    """

    box: Box
    cells: tuple[Cell, ...]
    overlaps: tuple[Overlap, ...]
    padding: tuple[Box, ...] = ()


def composition(kind: Kind, box: Box) -> Geometry:
    """Return the composition of a box of a parameter from source slices.

    Raises:
        DataError: the source's layout does not divide the parameter.
    """
    if kind.placement is not None:
        tiling = kind.placement.tiling
        return geometry_of_tiles(kind.shape, tiling, box, tiling.intersecting(within(box, kind.shape)))
    return geometry(kind.shape, kind.source.parts if kind.source else (1,) * len(kind.shape), box)


@lru_cache(maxsize=1 << 16)
def overlapping(target_parts: tuple[int, ...], target_cell: Cell, source_parts: tuple[int, ...]) -> tuple[Cell, ...]:
    """Return the source cells that contain elements of a target cell, in row-major order.

    Both sides divide a dimension into equal parts. Part i of k covers the fractions [i/k, (i+1)/k).

    >>> overlapping((4,), (1,), (6,))
    ((1,), (2,))
    """
    return tuple(
        product(
            *(range(c * s // t, -(-(c + 1) * s // t)) for t, c, s in zip(target_parts, target_cell, source_parts, strict=True))
        )
    )


def cells_of(shape: tuple[int, ...], parts: tuple[int, ...], box: Box) -> tuple[Cell, ...]:
    """Return the cells of a grid of equal parts that contain elements of a box, in row-major order.

    >>> from reshard.layout.box import Box
    >>> cells_of((12,), (6,), Box((3,), (3,)))
    ((1,), (2,))
    """
    if not box.size:
        return ()
    return tuple(
        product(*(range(a * k // n, -(-(a + m) * k // n)) for n, k, a, m in zip(shape, parts, box.start, box.shape, strict=True)))
    )


@lru_cache(maxsize=512)
def geometry(shape: tuple[int, ...], source_parts: tuple[int, ...], box: Box) -> Geometry:
    """Return the source slices that make up one target slice.

    Args:
        shape: lengths of the whole tensor.
        source_parts: number of equal parts of the source in each dimension.
        box: the target slice.

    Raises:
        DataError: the source's layout does not divide the shape.
    """
    cells = cells_of(shape, source_parts, within(box, shape))
    return _compose(shape, box, ((cell, cell_box(shape, source_parts, cell)) for cell in cells))


def geometry_of_tiles(shape: tuple[int, ...], tiling: Tiling, box: Box, tiles: Iterable[int]) -> Geometry:
    """Return the composition of a target slice of a tensor of the whole `shape` from those tiles that hold elements of it."""
    return _compose(shape, box, (((tile,), tiling.box(tile)) for tile in tiles))


def _compose(shape: tuple[int, ...], box: Box, sources: Iterable[tuple[Cell, Box]]) -> Geometry:
    cells, overlaps = [], []
    for cell, held in sources:
        common = box.intersect(held)
        if common is not None:  # otherwise the slice has no elements
            target = common.relative_to(box.start)
            cells.append(cell)
            overlaps.append(Overlap(common.relative_to(held.start), target, *flat_span(box.shape, target), held.shape))
    padding = tuple(each.relative_to(box.start) for each in beyond(box, shape))
    return Geometry(box, tuple(cells), tuple(overlaps), padding)


def prove(found: Geometry) -> None:
    """Check that the overlaps and the padding cover the target slice exactly once, and that overlaps are within source slices.

    The check does not depend on the algorithm that found the overlaps.

    Raises:
        BugError: the check fails.
    """
    whole = Box.whole(found.box.shape)
    inside = all(
        whole.intersect(overlap.target) == overlap.target
        and Box.whole(overlap.source_shape).intersect(overlap.source) == overlap.source
        and overlap.source.shape == overlap.target.shape
        for overlap in found.overlaps
    )
    inside = inside and all(whole.intersect(box) == box for box in found.padding)
    boxes = [*(overlap.target for overlap in found.overlaps), *found.padding]
    if not (inside and _exact(whole, boxes)):
        raise BugError(
            "PlanNotExact",
            "the planned copies do not cover the slice exactly once",
            where=f"a slice of {list(found.box.shape)}",
            fix="this is a bug in reshard: please report it with both strategy files",
        )


def _exact(whole: Box, boxes: list[Box]) -> bool:
    """Return whether boxes within a slice cover it exactly once."""
    if len(boxes) > _MOST_COMPARED and whole.shape and _tiles(whole, boxes):
        return True
    return sum(box.size for box in boxes) == whole.size and _disjoint(boxes)


def _tiles(whole: Box, boxes: list[Box]) -> bool:
    """Return whether many boxes are proved to cover a slice exactly once."""
    import numpy as np  # noqa: PLC0415 - few slices have so many overlaps, and other commands start faster without these modules

    from reshard.model import divide  # noqa: PLC0415 - like numpy

    corners = np.array([(box.start, box.shape) for box in boxes], np.int64)
    try:
        tiling, _ = divide(whole.shape, corners[:, 0], corners[:, 1], "")
    except DataError:
        return False
    return len(tiling) == len(boxes)  # equal boxes would be one tile


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
