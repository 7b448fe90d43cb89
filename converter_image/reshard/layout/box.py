"""Arithmetic of N-dimensional half-open boxes of tensor elements."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Box:
    """The elements `start[i] <= x[i] < start[i] + shape[i]` of a tensor, for each dimension i.

    A box without dimensions holds the single element of a scalar.

    >>> Box((0, 2), (4, 2)).intersect(Box((3, 0), (4, 3)))
    Box(start=(3, 2), shape=(1, 1))
    """

    start: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Box:
        """Return the box of all elements of a tensor of this shape."""
        return cls((0,) * len(shape), shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    def intersect(self, other: Box) -> Box | None:
        """Return the intersection of two boxes, or None if it is empty."""
        start = tuple(map(max, self.start, other.start))
        shape = tuple(
            min(a + n, b + m) - s for a, n, b, m, s in zip(self.start, self.shape, other.start, other.shape, start, strict=True)
        )
        return Box(start, shape) if all(n > 0 for n in shape) else None

    def relative_to(self, origin: tuple[int, ...]) -> Box:
        """Return the box relative to `origin`."""
        return Box(tuple(a - b for a, b in zip(self.start, origin, strict=True)), self.shape)

    def slices(self) -> tuple[slice, ...]:
        """Return the box as an index of a numpy array."""
        return tuple(slice(a, a + n) for a, n in zip(self.start, self.shape, strict=True))


def shifted(box: Box, by: tuple[int, ...]) -> Box:
    """Return the box with its start moved by this number of elements along each dimension: the inverse of `relative_to`."""
    return Box(tuple(a + b for a, b in zip(box.start, by, strict=True)), box.shape)


def strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the number of elements between neighbours along each dimension of a row-major tensor.

    >>> strides((2, 3, 4))
    (12, 4, 1)
    """
    steps = [1] * len(shape)
    for i in range(len(shape) - 2, -1, -1):
        steps[i] = steps[i + 1] * shape[i + 1]
    return tuple(steps)


def contiguous_runs(shape: tuple[int, ...], box: Box) -> tuple[int, Iterator[int]]:
    """Return the contiguous runs of a box in the memory of a row-major tensor of `shape`.

    Returns:
        The length of each run in elements (all have equal length), and the flat indexes of the first elements, in ascending
        order.

    >>> length, starts = contiguous_runs((4, 6), Box((1, 2), (2, 3)))
    >>> length, list(starts)
    (3, [8, 14])
    """
    if box.size == 0:
        return 0, iter(())
    steps = strides(shape)
    inner = len(shape)  # the box covers this dimension and all after it completely, so a run spans them
    while inner > 0 and box.shape[inner - 1] == shape[inner - 1]:
        inner -= 1
    inner = max(inner - 1, 0)
    length = prod(box.shape[inner:])
    first = sum(a * s for a, s in zip(box.start, steps, strict=True))
    return length, _flat_indexes(first, box.shape[:inner], steps)


def _flat_indexes(first: int, shape: tuple[int, ...], steps: tuple[int, ...]) -> Iterator[int]:
    """Yield the flat indexes of all elements of an outer shape, row-major."""
    if not shape:
        yield first
        return
    for i in range(shape[0]):
        yield from _flat_indexes(first + i * steps[0], shape[1:], steps[1:])
