"""Intersections of the cells of two layouts. The cost does not depend on the size of tensors."""

from __future__ import annotations

from functools import lru_cache
from itertools import product

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
