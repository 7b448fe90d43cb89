"""Lists of ranks, as users write them."""

from __future__ import annotations

import re
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Self

import msgspec

from reshard.errors import RequestError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

# As in a layout. The list of them takes 36 MB, and can be the result of a few bytes in a manifest.
MOST_RANKS = 1 << 20
# More than any cluster has, so that no product of two numbers of a forged message is large.
_Number = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]


def parse_ranks(text: str, total: int | None = None) -> tuple[int, ...]:
    """Parse ranks such as "0,2-5". Return them in ascending order without duplicates.

    Raises:
        UsageError: the text is not a list of ranks, or is a list of more than `MOST_RANKS`.
        RequestError: a rank is not less than `total`.
    """
    ranges: list[tuple[int, int]] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,9})(?:-([0-9]{1,9}))?\s*", part)
        if match is None:
            raise UsageError("InvalidRanks", f"{text!r} is not a list of ranks", where="ranks", fix="use a list like 0,2-5")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UsageError(
                "InvalidRanks", f"the range {part.strip()!r} is reversed", where="ranks", fix="use a list like 0,2-5"
            )
        if total is not None and last >= total:
            raise RequestError(
                "NoSuchRank",
                f"rank {last} does not exist; the number of target ranks is {total}",
                where="ranks",
                fix=f"use ranks below {total}",
            )
        ranges.append((first, last + 1))
    found: list[range] = []
    for begin, end in sorted(ranges):
        found.append(range(max(begin, found[-1].stop) if found else begin, max(end, found[-1].stop) if found else end))
    if sum(map(len, found)) > MOST_RANKS:
        raise UsageError("InvalidRanks", f"the list has more than {MOST_RANKS} ranks", where="ranks", fix="use fewer ranks")
    return tuple(chain.from_iterable(found))


def ranks_to_write(text: str | None, total: int) -> tuple[int, ...]:
    """Return the ranks in a list, or all `total` ranks if there is no list.

    Raises:
        UsageError: the text is not a list of ranks.
        RequestError: a rank is not less than `total`.
    """
    return tuple(range(total)) if text is None else parse_ranks(text, total)


def format_ranks(ranks: tuple[int, ...]) -> str:
    """Format ranks: the inverse of `parse_ranks`.

    >>> format_ranks((0, 2, 3, 4, 7))
    '0,2-4,7'
    """
    parts: list[list[int]] = []
    for rank in sorted(ranks):
        if parts and parts[-1][1] == rank - 1:
            parts[-1][1] = rank
        else:
            parts.append([rank, rank])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


class Grouping(msgspec.Struct, frozen=True):
    """A division of target ranks among pods, which depends only on three numbers, so that every process finds the same groups.

    In each block of `count * stride` consecutive ranks, a group has `run` neighbours, and those `stride`, 2 `stride`, ... ranks
    after them. A group at the end of a block has fewer neighbours if `run` does not divide `stride`, and the last block may be
    shorter.

    Attributes:
        run: number of neighbours.
        count: number of times that they are repeated.
        stride: distance between the repetitions, at least `run`.
    """

    run: _Number = 1
    count: _Number = 1
    stride: _Number = 1

    @classmethod
    def consecutive(cls, ranks: int) -> Self:
        """Return the grouping into groups of this many consecutive ranks."""
        return cls(ranks, 1, ranks)

    @property
    def size(self) -> int:
        """Number of ranks in a group. Some groups may have fewer."""
        return self.run * self.count

    def groups(self, ranks: int) -> int:
        """Return the number of groups of this many ranks. No group is empty.

        >>> Grouping(2, 2, 4).groups(11)
        4
        """
        blocks, rest = divmod(ranks, self.count * self.stride)
        return blocks * -(-self.stride // self.run) + -(-min(rest, self.stride) // self.run)

    def group(self, ranks: Sequence[int], index: int) -> tuple[int, ...]:
        """Return the ranks of a group. Positions among `ranks` count, rather than the numbers of the ranks.

        >>> [Grouping(2, 2, 4).group(range(11), index) for index in range(4)]
        [(0, 1, 4, 5), (2, 3, 6, 7), (8, 9), (10,)]
        """
        block, place = divmod(index, -(-self.stride // self.run))
        begin = block * self.count * self.stride
        first, end = place * self.run, min((place + 1) * self.run, self.stride)
        starts = range(begin, min(begin + self.count * self.stride, len(ranks)), self.stride)
        return tuple(rank for start in starts for rank in ranks[start + first : start + end])
