"""Readings of a layout: the named axes that can have divided a parameter, given the sizes of the axes.

Only the interval of rank strides that a device axis covers has a meaning that all layouts share: MindSpore omits axes of length 1
and merges neighbours, so the same axes appear in different device matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from itertools import pairwise, permutations, product
from math import gcd, prod
from typing import TYPE_CHECKING

from reshard.mesh.sharding import Sharding
from reshard.model.tiling import Grid

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from reshard.layout import Layout

# All orders are tried. No framework has more axes.
MOST_AXES = 7
MOST_READINGS = 64  # of one grid
_MOST_TRIALS = 1 << 15
_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53)  # different sizes, which make different shardings differ

Dims = tuple[tuple[str, ...], ...]
Intervals = tuple[tuple[tuple[int, int], ...], ...]


def default_intervals(shape: tuple[int, ...], devices: int) -> Intervals:
    """Return how MindSpore divides a parameter whose operator has no strategy.

    Dimension 0 is divided by the greatest common divisor of its length and the number of ranks. Consecutive ranks hold the same
    slice (measured with MindSpore 2.10).
    """
    count = gcd(shape[0], devices) if shape else 1
    return tuple(((devices // count, count),) if i == 0 and count > 1 else () for i in range(len(shape)))


def intervals(layout: Layout) -> Intervals:
    """Return the stride and the length of the device axes that divide each dimension, major first.

    Axes of length 1 are omitted, and an axis is merged with the next one if they number the slices as a single axis would.
    Optimizer shards are ignored. Even layouts with equal intervals have equal cells.
    """
    matrix = layout.device_matrix
    strides = [prod(matrix[i + 1 :]) for i in range(len(matrix))]
    dims = []
    for cuts in layout.tensor_map:
        found: list[tuple[int, int]] = []
        for stride, length in ((strides[-1 - axis], matrix[-1 - axis]) for axis in cuts if matrix[-1 - axis] > 1):
            if found and found[-1][0] == stride * length:
                found[-1] = (stride, found[-1][1] * length)
            else:
                found.append((stride, length))
        dims.append(tuple(found))
    return tuple(dims)


def slices_key(sharding: Sharding, sizes: Mapping[str, int] | None = None) -> object:
    """Return equal values for shardings that lead to equal slices.

    Args:
        sharding: axes that divide a parameter.
        sizes: sizes of the axes. None means that the slices are equal for all sizes.
    """
    layout = sharding.layout(dict(zip(sorted(sharding.order), _PRIMES, strict=False)) if sizes is None else sizes)
    if not layout.uneven:
        return intervals(layout)
    # The chunks of chunks depend on each axis.
    strides = [prod(layout.device_matrix[i + 1 :]) for i in range(len(layout.device_matrix))]
    return tuple(tuple((strides[-1 - axis], layout.device_matrix[-1 - axis]) for axis in cuts) for cuts in layout.tensor_map)


class TooManyReadings(Exception):  # noqa: N818 - no error: the parameter is refused
    """A grid has more than `MOST_READINGS` readings, or finding them takes too long."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What one checkpoint or strategy shows about the sharding of a parameter.

    Attributes:
        axes: axes of its mesh with more than one rank, and their sizes.
        cuts: intervals of ranks, see `intervals`; or the grid of the slices, if it is unknown which ranks hold them.
        is_default: whether the operator of the parameter can have no strategy, see `default_intervals`.
    """

    axes: tuple[tuple[str, int], ...]
    cuts: Intervals | Grid
    is_default: bool = False

    @property
    def names(self) -> frozenset[str]:
        """Names of the axes."""
        return frozenset(name for name, _ in self.axes)

    def readings(self, order: Sequence[str]) -> Iterator[Dims]:
        """Yield the axes that can have divided each dimension, if ranks are numbered in an order of axes, outermost first.

        Raises:
            TooManyReadings: there are too many.
        """
        if isinstance(self.cuts, Grid):
            yield from _grid_readings(self.cuts.cuts, dict(self.axes))
        elif (found := _interval_reading(self.cuts, order, dict(self.axes))) is not None:
            yield found


def candidates(
    observations: Sequence[Observation], axes: Sequence[str], placed: frozenset[str], excluded: frozenset[str]
) -> Iterator[Sharding]:
    """Yield all shardings that explain observations, over every order of the axes.

    If no observation shows ranks, only the given order is tried: it is then a choice of the target.

    Args:
        observations: observations of one parameter. Axes that none of them has do not divide it.
        axes: axes of the source or the target with several ranks, in the order of the target's mesh. At most `MOST_AXES`.
        placed: axes whose position relative to all others is that in `axes`, if any sharding has it.
        excluded: axes that do not divide the parameter.

    Raises:
        TooManyReadings: there are too many.
    """
    if all(isinstance(each.cuts, Grid) for each in observations):
        yield from _explained(observations, tuple(axes), excluded)
        return
    orders = [tuple(order) for order in permutations(axes)]
    position = {axis: i for i, axis in enumerate(axes)}

    def is_placed(order: tuple[str, ...]) -> bool:
        return all(
            (i < j) == (position[axis] < position[other])
            for i, axis in enumerate(order)
            if axis in placed
            for j, other in enumerate(order)
            if other != axis
        )

    found = False
    for order in filter(is_placed, orders):
        for sharding in _explained(observations, order, excluded):
            found = True
            yield sharding
    if placed and not found:
        for order in orders:
            yield from _explained(observations, order, excluded)


def _explained(observations: Sequence[Observation], order: tuple[str, ...], excluded: frozenset[str]) -> Iterator[Sharding]:
    for dims in product(*(tuple(each.readings(order)) for each in observations)):
        each_with_names: Iterator[_Readings] = (
            ((each,), observation.names) for each, observation in zip(dims, observations, strict=True)
        )
        joined, _ = reduce(_joined, each_with_names)
        for reading in joined:
            if excluded.isdisjoint(axis for cuts in reading for axis in cuts):
                yield Sharding(reading, order)


_Readings = tuple[tuple[Dims, ...], frozenset[str]]


def _joined(first: _Readings, second: _Readings) -> _Readings:
    """Return the readings of all axes of two observations whose axes in each observation are those that it shows."""
    (dims, names), (others, other_names) = first, second
    found = {
        combined
        for one in dims
        for other in others
        if len(one) == len(other)
        for combined in product(*(tuple(_merged(a, b, names, other_names)) for a, b in zip(one, other, strict=True)))
    }
    return tuple(sorted(found)), names | other_names


def _merged(
    one: tuple[str, ...], other: tuple[str, ...], names: frozenset[str], other_names: frozenset[str]
) -> Iterator[tuple[str, ...]]:
    """Yield the sequences of axes that are `one` among `names` and `other` among `other_names`."""
    if not (one or other):
        yield ()
    elif one and other and one[0] == other[0]:
        yield from ((one[0], *rest) for rest in _merged(one[1:], other[1:], names, other_names))
    else:
        if one and one[0] not in other_names:
            yield from ((one[0], *rest) for rest in _merged(one[1:], other, names, other_names))
        if other and other[0] not in names:
            yield from ((other[0], *rest) for rest in _merged(one, other[1:], names, other_names))


def _interval_reading(cuts: Intervals, order: Sequence[str], sizes: Mapping[str, int]) -> Dims | None:
    """Return the axes that divide each dimension, or None if an interval is not exactly a block of consecutive axes."""
    spans = []
    stride = 1
    for axis in reversed(order):
        if axis in sizes:
            spans.append((axis, stride, stride * sizes[axis]))
            stride *= sizes[axis]
    spans.reverse()
    dims = []
    for dimension in cuts:
        found: list[str] = []
        for first, length in dimension:
            block = [span for span in spans if first <= span[1] < first * length]
            if not block or (block[-1][1], block[0][2]) != (first, first * length):
                return None
            found += [axis for axis, _, _ in block]
        dims.append(tuple(found))
    return tuple(dims)


def _grid_readings(grid: Sequence[Sequence[int]], sizes: Mapping[str, int]) -> Iterator[Dims]:
    """Yield the axes, major first, that divide each dimension at the points of a grid as `torch.chunk` does."""
    # Any axes can divide a dimension with one chunk if its length is 1, so these are last.
    dims = sorted(range(len(grid)), key=lambda i: -len(grid[i]))
    number = 0
    for trial, found in enumerate(_trials([grid[i] for i in dims], sizes)):
        if found is not None:
            number += 1
            yield tuple(axes for _, axes in sorted(zip(dims, found, strict=True)))
        if number > MOST_READINGS or trial > _MOST_TRIALS:
            raise TooManyReadings


def _trials(grid: Sequence[Sequence[int]], sizes: Mapping[str, int]) -> Iterator[Dims | None]:
    """Yield the readings of a grid, and None for other trials."""
    if not grid:
        yield ()
        return
    points, *rest = grid
    for count in range(len(sizes) + 1):
        for axes in permutations(sizes, count):
            if chunked(points[-1], tuple(sizes[axis] for axis in axes), len(points) - 1) != tuple(points):
                yield None
                continue
            left = {axis: size for axis, size in sizes.items() if axis not in axes}
            for others in _trials(rest, left):
                yield None if others is None else (axes, *others)


def chunked(length: int, counts: tuple[int, ...], most: int) -> tuple[int, ...]:
    """Return the points at which axes divide a length into chunks of chunks, or nothing if there are more than `most` chunks."""
    points = [0, length] if length else [0]
    for count in counts:
        pieces = []
        for start, end in pairwise(points):
            chunk = -(-(end - start) // count)
            pieces += [*range(start, end, chunk)]
            if len(pieces) > most:
                return ()
        points = [*pieces, length]
    return tuple(points)
