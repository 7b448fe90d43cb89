"""Divide tensors that are not in row-major order, such as transposed tensors, into pieces that are."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from reshard.errors import DataError

if TYPE_CHECKING:
    from reshard.model.tiling import Numbers

# A plan has an entry for each piece. A matrix of 65,536 columns that is stored by columns has as many.
_MOST_PIECES = 1 << 16
_MOST_PIECES_IN_ALL = 1 << 20


class Content(NamedTuple):
    """The location of a tensor's elements in a file.

    Attributes:
        offset: first byte of the first element.
        length: number of bytes of all elements.
        strides: bytes between neighbours along each dimension. None: the elements are in row-major order without gaps.
    """

    offset: int
    length: int
    strides: tuple[int, ...] | None = None


class Pieces(NamedTuple):
    """Boxes of equal shape, whose elements are in row-major order without gaps.

    Attributes:
        starts: first element of each box, of shape (boxes, dimensions).
        shape: lengths of each box.
        offsets: first byte of each box in the file.
        nbytes: number of bytes of each box.
    """

    starts: Numbers
    shape: tuple[int, ...]
    offsets: Numbers
    nbytes: int


class Budget:
    """Number of pieces into which the tensors of one checkpoint may be divided."""

    def __init__(self) -> None:
        self._left = _MOST_PIECES_IN_ALL

    def take(self, pieces: Pieces, where: str) -> None:
        """Count the pieces of a tensor.

        Raises:
            DataError: there are too many.
        """
        if len(pieces.starts) > 1:
            self._left -= len(pieces.starts)
        if self._left < 0:
            raise DataError(
                "UnsupportedStrides",
                f"tensors that are not in row-major order form more than {_MOST_PIECES_IN_ALL} pieces in total",
                where=where,
                fix="save `tensor.contiguous()`, or exclude such tensors with --exclude (spec.parameters.exclude)",
            )


def split(content: Content, shape: tuple[int, ...], itemsize: int, where: str) -> Pieces:
    """Divide a tensor with elements into the largest boxes that are ranges of bytes.

    Args:
        content: location of the elements.
        shape: lengths of the tensor.
        itemsize: bytes per element.
        where: tensor, for messages.

    Raises:
        DataError: there are too many boxes.
    """
    strides = content.strides
    if strides is None:
        return Pieces(np.zeros((1, len(shape)), np.int64), shape, np.array([content.offset]), content.length)
    # Starting from the elements that are next to each other, a dimension joins the box if it continues where the box ends.
    kept, nbytes = [], itemsize
    for i in reversed(range(len(shape))):
        if shape[i] > 1 and strides[i] == nbytes:
            kept.append(i)
            nbytes *= shape[i]
    piece = tuple(n if i in kept else 1 for i, n in enumerate(shape))
    counts = tuple(1 if i in kept else n for i, n in enumerate(shape))
    if prod(counts) > _MOST_PIECES:
        raise DataError(
            "UnsupportedStrides",
            f"the elements are not in row-major order; they form {prod(counts)} pieces, and at most {_MOST_PIECES} are supported",
            where=where,
            fix="save `tensor.contiguous()`, or exclude the tensor with --exclude (spec.parameters.exclude)",
        )
    starts = np.indices(counts, np.int64).reshape(len(shape), -1).T
    return Pieces(starts, piece, content.offset + starts @ np.array(strides, np.int64), nbytes)
