"""Whole parameters, spread over files of bounded size. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from reshard.plan.model import Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reshard.plan.model import Model

# Number of open parts that still accept items, not counting the one that is being filled.
_OPEN_PARTS = 8
# Number of attempts with a smaller bound, which evens out the parts.
_TRIES = 6


def unify(model: Model, most_bytes: int) -> Model:
    """Turn a model whose target is one whole rank into a model whose target ranks are parts of it.

    Parameters in no strategy form the last part; the others are filled in the order of the source, see `fill`.
    """
    named = [p for p in model.parameters if p.role is not Role.REPLICATED]
    others = [p for p in model.parameters if p.role is Role.REPLICATED]
    parts = [[named[i] for i in part] for part in fill([p.slice_nbytes for p in named], most_bytes)]
    parts += [others] if others else []
    spread = [replace(p, target_stages=(number,)) for number, part in enumerate(parts) for p in part]
    return replace(model, target_stages=len(parts), parameters=tuple(spread), unified=True)


def fill(sizes: Sequence[int], most: int) -> list[list[int]]:
    """Distribute items over few parts of even length, with neighbours together.

    Of all bounds up to `most` that need no more parts than `most` does, about the smallest is kept to, so that no pod writes much
    longer than another.

    Args:
        sizes: bytes of each item. One that is longer than `most` has a part for itself.
        most: bytes of a part.

    Returns:
        The positions of each part's items, ascending; parts in the order of their first items.

    >>> fill([4, 1, 1, 1, 1], 5)
    [[0], [1, 2, 3, 4]]
    """
    within = [position for position, size in enumerate(sizes) if size <= most]
    best = _packed(sizes, within, most)
    if best:
        low = max(*(sizes[i] for i in within), -(-sum(sizes[i] for i in within) // len(best)) - 1, 0)
        high = most
        for _ in range(_TRIES):
            bound = (low + high) // 2
            found = _packed(sizes, within, bound)
            if len(found) <= len(best):
                best, high = found, bound
            else:
                low = bound + 1
    return sorted(best + [[position] for position, size in enumerate(sizes) if size > most])


def _packed(sizes: Sequence[int], positions: Sequence[int], most: int) -> list[list[int]]:
    """Best fit with a bounded number of open parts (Csirik and Johnson 1991): the part of the neighbour before comes first.

    Without the open parts, large items that come in turn with small ones would leave a part to each small one.
    """
    parts: list[list[int]] = []
    room: list[int] = []
    current = -1
    waiting: list[int] = []
    for position in positions:
        size = sizes[position]
        if current < 0 or size > room[current]:
            fitting = [part for part in waiting if room[part] >= size]
            if fitting:
                part = min(fitting, key=room.__getitem__)
                waiting.remove(part)
            else:
                part = len(parts)
                parts.append([])
                room.append(most)
            if current >= 0:
                waiting.append(current)
            if len(waiting) > _OPEN_PARTS:
                waiting.remove(min(waiting, key=room.__getitem__))
            current = part
        parts[current].append(position)
        room[current] -= size
    return parts
