"""The division of a tensor into tiles that do not overlap: a grid by its cut points, or any set of boxes with an index."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from reshard.errors import DataError
from reshard.layout.box import Box, strides

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]

# A proof visits 2 ** n corners of a box. No framework splits a tensor irregularly along more than three dimensions.
MAX_IRREGULAR_DIMENSIONS = 6
_LARGEST_KEY = 1 << 62
_CHILDREN = 4  # children of a node in the index
_QUERIES = 1 << 15  # queries answered at a time, which limits memory


@dataclass(frozen=True, slots=True)
class Grid:
    """Tiles between cut points along each dimension, numbered row-major.

    Attributes:
        cuts: cut points of each dimension, from 0 to the length. Equal distances are a `range`, so that the points of a large
            grid are computed. A dimension of length 0 has the single point 0, and the grid has no tiles.

    >>> Grid.equal((8, 6), (4, 1)).intersecting(Box((3, 0), (2, 6)))
    [1, 2]
    """

    cuts: tuple[Sequence[int], ...]

    @classmethod
    def equal(cls, shape: tuple[int, ...], parts: tuple[int, ...]) -> Grid:
        """Return the grid of `parts` equal parts along each dimension, which must divide the shape."""
        return cls(tuple(range(0, n + 1, n // k) if n else (0,) for n, k in zip(shape, parts, strict=True)))

    @property
    def parts(self) -> tuple[int, ...]:
        """Number of tiles along each dimension."""
        return tuple(len(points) - 1 for points in self.cuts)

    def __len__(self) -> int:
        return prod(self.parts)

    def box(self, tile: int) -> Box:
        """Return the elements of a tile."""
        cell = []
        for step, count in zip(strides(self.parts), self.parts, strict=True):
            cell.append(tile // step % count)
        starts = tuple(points[i] for points, i in zip(self.cuts, cell, strict=True))
        return Box(starts, tuple(points[i + 1] - a for points, i, a in zip(self.cuts, cell, starts, strict=True)))

    def all_boxes(self) -> tuple[Numbers, Numbers]:
        """Return the first elements and the lengths of all tiles, of shape (tiles, dimensions)."""
        cells = np.indices(self.parts).reshape(len(self.cuts), len(self))
        starts, lengths = np.empty((2, len(self), len(self.cuts)), np.int64)
        for i, points in enumerate(self.cuts):
            at = np.asarray(points, np.int64)
            starts[:, i], lengths[:, i] = at[cells[i]], np.diff(at)[cells[i]]
        return starts, lengths

    def intersecting(self, box: Box) -> list[int]:
        """Return the tiles that hold elements of a box within the tensor, ascending. Cost: their number, and log of the cuts."""
        if not box.size or not len(self):
            return []
        runs = [
            range((bisect_right(points, a) - 1) * step, bisect_left(points, a + n) * step, step)
            for points, a, n, step in zip(self.cuts, box.start, box.shape, strides(self.parts), strict=True)
        ]
        return [sum(cell) for cell in product(*runs)]

    def join(self, starts: Numbers, ends: Numbers) -> tuple[Numbers, Numbers]:
        """Return each pair of a box and a tile with common elements, see `Boxes.join`."""
        low, counts = np.zeros_like(starts), np.ones_like(starts)
        for i, points in enumerate(self.cuts):
            at = np.asarray(points, np.int64)
            low[:, i] = np.searchsorted(at, starts[:, i], "right") - 1
            counts[:, i] = np.searchsorted(at, ends[:, i]) - low[:, i]
        counts *= (starts < ends).all(axis=1, keepdims=True)
        totals = counts.prod(axis=1)
        boxes = np.repeat(np.arange(len(starts)), totals)
        rest = np.arange(len(boxes)) - np.repeat(np.cumsum(totals) - totals, totals)
        tiles = np.zeros_like(rest)
        for i, step in reversed(list(enumerate(strides(self.parts)))):
            rest, cell = np.divmod(rest, counts[boxes, i])
            tiles += (low[boxes, i] + cell) * step
        return boxes, tiles


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """Tiles of any size and place, in an order that keeps neighbours together, with a tree of bounding boxes.

    Attributes:
        starts: first element of each tile along each dimension, of shape (dimensions, tiles).
        ends: the end along each dimension, exclusive.
        levels: bounding boxes of every four boxes of the level below, from the tiles up, as (starts, ends).
    """

    starts: Numbers
    ends: Numbers
    levels: tuple[tuple[Numbers, Numbers], ...]

    @classmethod
    def sorted(cls, starts: Numbers, ends: Numbers) -> tuple[Boxes, Numbers]:
        """Return the tiles of boxes of shape (boxes, dimensions), and for each tile the number of its box."""
        order = _near(starts)
        low, high = starts[order].T.copy(), ends[order].T.copy()
        levels = []
        lows, highs = low, high
        while lows.shape[1] > _CHILDREN:
            groups = np.arange(0, lows.shape[1], _CHILDREN)
            lows, highs = np.minimum.reduceat(lows, groups, axis=1), np.maximum.reduceat(highs, groups, axis=1)
            levels.append((lows, highs))
        return cls(low, high, tuple(levels)), order

    def __len__(self) -> int:
        return int(self.starts.shape[1])

    def box(self, tile: int) -> Box:
        """Return the elements of a tile."""
        starts = tuple(self.starts[:, tile].tolist())
        return Box(starts, tuple(b - a for a, b in zip(starts, self.ends[:, tile].tolist(), strict=True)))

    def all_boxes(self) -> tuple[Numbers, Numbers]:
        """Return the first elements and the lengths of all tiles, of shape (tiles, dimensions)."""
        return self.starts.T, (self.ends - self.starts).T

    def intersecting(self, box: Box) -> list[int]:
        """Return the tiles that hold elements of a box, ascending. Cost: their number, and log of all for compact tiles."""
        starts = np.array([box.start], np.int64)
        found: list[int] = self.join(starts, starts + box.shape)[1].tolist()
        return sorted(found)

    def join(self, starts: Numbers, ends: Numbers) -> tuple[Numbers, Numbers]:
        """Return each pair of a box and a tile with common elements.

        Args:
            starts: first elements of the boxes, of shape (boxes, dimensions), within the tensor.
            ends: ends of the boxes, exclusive.

        Returns:
            The numbers of the boxes, ascending, and of the tiles.
        """
        boxes, tiles = [], []
        for at in range(0, len(starts), _QUERIES):
            found, met = self._descend(starts[at : at + _QUERIES], ends[at : at + _QUERIES])
            order = np.argsort(found, kind="stable")
            boxes.append(found[order] + at)
            tiles.append(met[order])
        empty = np.zeros(0, np.int64)
        return np.concatenate(boxes or [empty]), np.concatenate(tiles or [empty])

    def _descend(self, starts: Numbers, ends: Numbers) -> tuple[Numbers, Numbers]:
        """Return the pairs for some boxes. Each level of the tree is processed at once with numpy, instead of box by box."""
        levels = ((self.starts, self.ends), *self.levels)
        roots = levels[-1][0].shape[1]
        asked = np.flatnonzero((starts < ends).all(axis=1))
        boxes, nodes = np.repeat(asked, roots), np.tile(np.arange(roots), len(asked))
        for depth in range(len(levels) - 1, -1, -1):
            lows, highs = levels[depth]
            for i in range(len(lows)):
                kept = np.flatnonzero((lows[i][nodes] < ends[boxes, i]) & (starts[boxes, i] < highs[i][nodes]))
                boxes, nodes = boxes[kept], nodes[kept]
            if depth:
                boxes = np.repeat(boxes, _CHILDREN)
                nodes = (nodes[:, None] * _CHILDREN + np.arange(_CHILDREN)).ravel()
                there = np.flatnonzero(nodes < levels[depth - 1][0].shape[1])
                boxes, nodes = boxes[there], nodes[there]
        return boxes, nodes


Tiling = Grid | Boxes


def divide(shape: tuple[int, ...], starts: Numbers, lengths: Numbers, name: str) -> tuple[Tiling, Numbers]:
    """Return the tiles of a tensor that is divided into boxes, after a proof that each element is in exactly one.

    Boxes without elements hold nothing; equal boxes are copies of one tile.

    Args:
        shape: lengths of the whole tensor.
        starts: first element of each box along each dimension, of shape (boxes, dimensions).
        lengths: lengths of each box.
        name: the tensor's name, for messages.

    Returns:
        The tiles, and the number of each box's tile. -1: the box has no elements.

    Raises:
        DataError: a box is not within the tensor; an element is in no box, or in several that differ.
    """
    whole = np.array(shape, np.int64)
    outside = ((starts < 0) | (lengths < 0) | (starts > whole) | (lengths > whole - np.minimum(starts, whole))).any(axis=1)
    if outside.any():
        at = int(outside.argmax())
        raise DataError(
            "ShardOutside",
            f"a shard {_text(starts[at])}+{_text(lengths[at])} is not within the shape {list(shape)}",
            where=f"tensor {name}",
            fix="the metadata is damaged; restore the checkpoint",
        )
    tiles = np.full(len(starts), -1, np.int64)
    filled = np.flatnonzero((lengths > 0).all(axis=1))
    if not prod(shape):
        return Grid(tuple((0,) if not n else range(0, n + 1, n) for n in shape)), tiles
    if not len(filled):
        _refuse(name, [0] * len(shape), 0)
    boxes, of_box = number_rows(np.hstack([starts[filled], starts[filled] + lengths[filled]]))
    lows, ends = boxes[:, : len(shape)], boxes[:, len(shape) :]
    tiling, numbers = _grid(shape, lows, ends) or _irregular(shape, lows, ends, name)
    tiles[filled] = numbers[of_box]
    return tiling, tiles


class Divisions:
    """Divisions of tensors, of which many are usually divided alike: each is proved once, and its tiles are shared."""

    def __init__(self) -> None:
        self._found: dict[tuple[tuple[int, ...], bytes], tuple[Tiling, Numbers]] = {}

    def divide(self, shape: tuple[int, ...], boxes: Numbers, name: str) -> tuple[Tiling, Numbers]:
        """Return the result of the function `divide` for boxes of which each row has the starts, then the lengths."""
        key = (shape, len(boxes).to_bytes(8) + boxes.tobytes())
        if key not in self._found:
            starts, lengths = np.hsplit(np.ascontiguousarray(boxes), 2)
            self._found[key] = divide(shape, starts, lengths, name)
        return self._found[key]


def number_rows(rows: Numbers) -> tuple[Numbers, Numbers]:
    """Return the distinct rows of a table in order, and for each row its index among the distinct rows.

    `numpy.unique` is slower.
    """
    if not rows.shape[1]:
        return rows[:1], np.zeros(len(rows), np.int64)
    order = np.lexsort(rows.T[::-1])
    ordered = rows[order]
    new = np.ones(len(rows), np.bool_)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    numbers = np.empty(len(rows), np.int64)
    numbers[order] = np.cumsum(new) - 1
    return ordered[new], numbers


def _grid(shape: tuple[int, ...], starts: Numbers, ends: Numbers) -> tuple[Grid, Numbers] | None:
    """Return the grid that distinct boxes form, and the number of each box's tile. None: the boxes do not form a grid."""
    cuts: list[Sequence[int]] = []
    numbers = np.zeros(len(starts), np.int64)
    tiles = 1
    for i, n in enumerate(shape):
        points = _distinct(np.concatenate([starts[:, i], ends[:, i]]))
        at = np.searchsorted(points, starts[:, i])
        tiles *= len(points) - 1
        if tiles > len(starts) or points[0] or points[-1] != n or (points[at + 1] != ends[:, i]).any():
            return None
        numbers = numbers * (len(points) - 1) + at
        step = int(points[1])
        cuts.append(range(0, n + 1, step) if (np.diff(points) == step).all() else tuple(points.tolist()))
    # The boxes are distinct tiles of the grid, and as many as it has tiles, so each tile occurs once.
    return (Grid(tuple(cuts)), numbers) if tiles == len(starts) else None


def _irregular(shape: tuple[int, ...], starts: Numbers, ends: Numbers, name: str) -> tuple[Boxes, Numbers]:
    _prove(shape, starts, ends, name)
    tiling, order = Boxes.sorted(starts, ends)
    numbers = np.empty(len(order), np.int64)
    numbers[order] = np.arange(len(order))
    return tiling, numbers


def _prove(shape: tuple[int, ...], starts: Numbers, ends: Numbers, name: str) -> None:
    """Prove that boxes within a tensor hold each element exactly once.

    Count for each point how many boxes hold it. The differences of that count along all dimensions are 0 but at corners of boxes:
    +1 where an even number of coordinates are ends, else -1. They determine the count. So the boxes hold each element once if and
    only if their corners, by sign, are those of the whole tensor. The first point in row-major order at which they differ is an
    element that is not held once: no difference before it adds to its count.

    Raises:
        DataError: there is a hole or an overlap, or the boxes split too many dimensions.
    """
    cut = [i for i, n in enumerate(shape) if (starts[:, i] > 0).any() or (ends[:, i] < n).any()]
    if len(cut) > MAX_IRREGULAR_DIMENSIONS:
        raise DataError(
            "ShardsTooIrregular",
            f"the shards do not form a grid, and split {len(cut)} dimensions; at most {MAX_IRREGULAR_DIMENSIONS} are supported",
            where=f"tensor {name}",
            fix="save the checkpoint with fewer sharded dimensions",
        )
    # The whole tensor is added as the last box, with reversed signs, so that all corners have to cancel.
    sides = [(np.append(starts[:, i], 0), np.append(ends[:, i], shape[i])) for i in cut]
    masks = sorted(range(1 << len(cut)), key=lambda mask: mask.bit_count() % 2)  # the first half has the sign +1
    half = len(masks) // 2
    keys = _keys(sides, masks)
    keys[:, -1] = np.roll(keys[:, -1], half)
    plus, minus = keys[:half].reshape(-1), keys[half:].reshape(-1)  # views, which are sorted in place to save memory
    plus.sort()
    minus.sort()
    if np.array_equal(plus, minus):
        return
    at = int((plus != minus).argmax())
    key = min(plus[at], minus[at])
    row, box = (int(found[0]) for found in np.nonzero(_keys(sides, masks) == key))
    mask = masks[row]
    point = [0] * len(shape)
    for bit, i in enumerate(cut):
        point[i] = int(sides[bit][mask >> bit & 1][box])
    element = np.array(point)
    _refuse(name, point, int(((starts <= element) & (element < ends)).all(axis=1).sum()))


def _keys(sides: list[tuple[Numbers, Numbers]], masks: list[int]) -> Numbers:
    """Return a number for each corner of each box: equal for equal points, ascending row-major.

    Each row has the corners of one mask, of which bit i is the side along dimension i.
    """
    keys = np.zeros((len(masks), len(sides[0][0])), np.int64)
    largest = 1
    for bit, pair in enumerate(sides):
        points = _distinct(np.concatenate(pair))
        if largest > _LARGEST_KEY // len(points):
            distinct, inverse = np.unique(keys, return_inverse=True)
            keys, largest = inverse.reshape(keys.shape), len(distinct)
        keys *= len(points)
        largest *= len(points)
        numbers = [np.searchsorted(points, each) for each in pair]
        for row, mask in enumerate(masks):
            keys[row] += numbers[mask >> bit & 1]
    return keys


def _distinct(numbers: Numbers) -> Numbers:
    """Return the distinct numbers in ascending order, like `np.unique`, which imports numpy's masked arrays on first use."""
    ordered: Numbers = np.sort(numbers)
    first: NDArray[np.bool_] = np.append(True, ordered[1:] != ordered[:-1])
    return ordered[first]


def _refuse(name: str, point: list[int], count: int) -> NoReturn:
    if count:
        reason, what = "ShardsOverlap", f"element {point} is in {count} shards that differ"
    else:
        reason, what = "ShardsDoNotCover", f"element {point} is in no shard"
    fix = "the checkpoint is incomplete or damaged; restore it, or exclude the tensor with --exclude (spec.parameters.exclude)"
    raise DataError(reason, what, where=f"tensor {name}", fix=fix)


def _near(starts: Numbers) -> Numbers:
    """Return an order that keeps neighbouring boxes together: that of the interleaved bits of their starts."""
    ranks = [np.unique(column, return_inverse=True)[1].reshape(-1) for column in starts.T]
    ranks = [rank for rank in ranks if rank.any()]
    bits = min(62 // max(len(ranks), 1), len(starts).bit_length())
    keys = np.zeros(len(starts), np.int64)
    for rank in ranks:
        rank >>= max(int(rank.max()).bit_length() - bits, 0)  # noqa: PLW2901 - in place
    for bit in range(bits - 1, -1, -1):
        for rank in ranks:
            keys = keys << 1 | (rank >> bit & 1)
    return np.argsort(keys, kind="stable")


def _text(numbers: Numbers) -> str:
    return str([int(n) for n in numbers])
