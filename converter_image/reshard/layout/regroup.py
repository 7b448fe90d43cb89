"""Layouts of tensors with dimensions that a strategy file has split, so that at most one device axis splits each.

MindSpore's compiler writes a dimension that several axes split as several dimensions in the JSON form: a length of 16 that is
split by axes of 2 and 2 becomes lengths of 2 and 8.
"""

from __future__ import annotations

from itertools import combinations
from math import comb, prod
from typing import TYPE_CHECKING

from reshard.errors import DataError
from reshard.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Iterator

# Enough for 8 dimensions, the maximum of MindSpore's tensors, of which 7 are split.
_MOST_CANDIDATES = 1 << 13


def regrouped(layout: Layout, stated: tuple[int, ...], shape: tuple[int, ...], *, sliced: bool) -> Layout | None:
    """Return the layout for the real dimensions, given the layout for the dimensions in a strategy file.

    Args:
        layout: layout in the file.
        stated: whole shape in the file, with a length for each entry of the layout's tensor map.
        shape: real shape.
        sliced: whether `shape` is that of one rank's slice instead of the whole tensor.

    Returns:
        The only layout that matches the real shape, or None if there is none, if there are several, or if there are too many to
        try.
    """
    if layout.ndim != len(stated) or not 0 < len(shape) < len(stated):
        return None
    if comb(len(stated) - 1, len(shape) - 1) > _MOST_CANDIDATES:  # from a malicious file
        return None
    candidates = _candidates(layout, stated, len(shape))
    found = {fitting for fitting, whole in candidates if _fits(fitting, whole, shape, sliced=sliced)}
    return found.pop() if len(found) == 1 else None


def joinable(layout: Layout, stated: tuple[int, ...]) -> bool:
    """Return whether dimensions may be parts of one: all except the last must be split into single elements."""
    cuts = Layout(layout.device_matrix, layout.tensor_map).parts
    return any(1 < n == k for n, k in zip(stated[:-1], cuts[:-1], strict=True))


def _candidates(layout: Layout, stated: tuple[int, ...], ndim: int) -> Iterator[tuple[Layout, tuple[int, ...]]]:
    """Yield each way to join neighbouring dimensions into `ndim` dimensions with equal slices, together with the whole shape."""
    cuts = Layout(layout.device_matrix, layout.tensor_map).parts
    for ends in combinations(range(1, len(stated)), ndim - 1):
        groups = [range(first, end) for first, end in zip((0, *ends), (*ends, len(stated)), strict=True)]
        if all(_even(stated, cuts, group) for group in groups):
            joined = tuple(tuple(axis for i in group for axis in layout.tensor_map[i]) for group in groups)
            fitting = Layout(layout.device_matrix, joined, layout.shard_step, layout.shard_size)
            yield fitting, tuple(prod(stated[i] for i in group) for group in groups)


def _even(stated: tuple[int, ...], cuts: tuple[int, ...], group: range) -> bool:
    """Return whether slices are runs of the joined dimension: after one not split into single elements, none is split."""
    whole = False
    for i in group:
        if whole and cuts[i] > 1:
            return False
        whole = whole or cuts[i] < stated[i]
    return True


def _fits(layout: Layout, whole: tuple[int, ...], shape: tuple[int, ...], *, sliced: bool) -> bool:
    try:
        parts = layout.parts
    except DataError:
        return False
    if any(n % k for n, k in zip(whole, parts, strict=True)):
        return False
    return shape == (tuple(n // k for n, k in zip(whole, parts, strict=True)) if sliced else whole)
