"""Divide a tensor into boxes that are contiguous in its file and fit into a buffer."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from reshard.layout.box import Box, strides

if TYPE_CHECKING:
    from collections.abc import Iterator


def next_tile(shape: tuple[int, ...], position: int, most: int) -> Box:
    """Return the largest contiguous box of at most `most` elements that starts at an element of a row-major tensor.

    Repeated calls with the position after the last tile cover the tensor in file order.

    Args:
        shape: lengths of the tensor. None of them is zero.
        position: flat index of the first element of the box.
        most: maximum number of elements, at least 1.

    >>> next_tile((4, 6), 0, 13)
    Box(start=(0, 0), shape=(2, 6))
    >>> next_tile((4, 6), 4, 13)
    Box(start=(0, 4), shape=(1, 2))
    """
    if not shape:
        return Box((), ())
    steps = strides(shape)
    start = []
    for step in steps:
        index, position = divmod(position, step)
        start.append(index)
    axis = len(shape) - 1  # the tile takes a part of this dimension, and all of the dimensions after it
    while axis > 0 and start[axis] == 0 and steps[axis - 1] <= most:
        axis -= 1
    count = min(shape[axis] - start[axis], most // steps[axis])
    return Box(tuple(start), (1,) * axis + (count,) + shape[axis + 1 :])


def flat_span(shape: tuple[int, ...], box: Box) -> tuple[int, int]:
    """Return the flat indexes of the first element of a box, and of the one after its last, in a tensor of `shape`."""
    steps = strides(shape)
    first = sum(a * s for a, s in zip(box.start, steps, strict=True))
    return first, first + sum((n - 1) * s for n, s in zip(box.shape, steps, strict=True)) + 1


def divide(shape: tuple[int, ...], box: Box, most: int) -> Iterator[Box]:
    """Divide a box, in the order of its elements, into boxes that each span at most `most` elements of a tensor of `shape`.

    >>> list(divide((4, 6), Box((0, 2), (4, 2)), 8))
    [Box(start=(0, 2), shape=(2, 2)), Box(start=(2, 2), shape=(2, 2))]
    """
    axis, span = len(shape), 1
    for i, step in reversed(tuple(enumerate(strides(shape)))):
        longer = span + (box.shape[i] - 1) * step
        if longer > most:
            axis, count = i, 1 + (most - span) // step
            break
        span = longer
    if axis == len(shape):
        yield box
        return
    length = box.shape[axis]
    count = -(-length // -(-length // count))  # about equal parts
    outer = [range(a, a + n) for a, n in zip(box.start[:axis], box.shape[:axis], strict=True)]
    for start in product(*outer):
        for at in range(0, length, count):
            yield Box(
                (*start, box.start[axis] + at, *box.start[axis + 1 :]),
                (*(1 for _ in start), min(count, length - at), *box.shape[axis + 1 :]),
            )
