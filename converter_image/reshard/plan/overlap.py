"""Intersections of the cells of two layouts. The cost does not depend on the size of tensors."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reshard.layout.box import Box

Cell = tuple[int, ...]


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
