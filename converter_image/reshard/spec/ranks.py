"""Lists of ranks, as users write them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from reshard.errors import RequestError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence


def parse_ranks(text: str, total: int | None = None) -> tuple[int, ...]:
    """Parse ranks such as "0,2-5". Return them in ascending order without duplicates.

    Raises:
        UsageError: the text is not a list of ranks.
        RequestError: a rank is not less than `total`.
    """
    ranks: set[int] = set()
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
        if last - first >= 1 << 24:
            raise UsageError("InvalidRanks", f"the range {part.strip()!r} is too long", where="ranks", fix="use fewer ranks")
        ranks.update(range(first, last + 1))
    return tuple(sorted(ranks))


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


def ranks_of_index(ranks: Sequence[int], ranks_per_pod: int, index: int) -> tuple[int, ...]:
    """Return the ranks that one pod of an Indexed Job writes."""
    return tuple(ranks[index * ranks_per_pod : (index + 1) * ranks_per_pod])
