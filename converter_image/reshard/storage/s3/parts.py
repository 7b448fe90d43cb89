"""Sizes of the parts of uploads and downloads."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from reshard.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator

# The protocol's own limits.
SMALLEST_PART = 5 << 20
LARGEST_PART = 5 << 30
MOST_PARTS = 10_000
LARGEST_OBJECT = MOST_PARTS * LARGEST_PART

# Large enough that transfer dominates latency, small enough that several fit into memory.
_USUAL_PART = 8 << 20
_ALIGNMENT = 1 << 20
# Several parts at a time finish sooner than one, and each finished part shows progress.
LONGEST_COPY = 1 << 30


def part_size(size: int | None) -> int:
    """Return the length of all parts but the last of an object of `size` bytes, or None if the length is unknown.

    Raises:
        OutputError: the length exceeds the maximum size of an object.

    >>> part_size(50 << 30) >> 20, part_size(5 << 40) >> 20
    (8, 525)
    """
    if size is None:
        return _USUAL_PART
    if size > LARGEST_OBJECT:
        raise OutputError(
            "TooLarge",
            f"a file of {size} bytes is larger than the maximum size of an object",
            where="target",
            fix="use a target strategy with more ranks, or a smaller maximum file size",
        )
    least = -(-size // MOST_PARTS)
    return max(_USUAL_PART, -(-least // _ALIGNMENT) * _ALIGNMENT)


def buffers(size: int | None, memory: int) -> int:
    """Return the number of parts that may be in memory. One part is being filled, and the others are being sent.

    >>> buffers(1 << 30, 40 << 20), buffers(5 << 40, 40 << 20)
    (5, 2)
    """
    return max(2, memory // part_size(size))


def copies(offset: int, length: int) -> Iterator[tuple[int, int]]:
    """Divide bytes that a server copies into parts of about equal length, as (offset, length).

    >>> list(copies(7, 3 << 30)) == [(7, 1 << 30), (7 + (1 << 30), 1 << 30), (7 + (2 << 30), 1 << 30)]
    True
    """
    count = -(-length // LONGEST_COPY)
    cuts = [length * i // count for i in range(count + 1)]
    return ((offset + a, b - a) for a, b in pairwise(cuts))
