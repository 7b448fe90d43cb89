"""Read the small tensors of a tile together: there may be many, and most of them are neighbours in the source's files."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from reshard.plan.runs import reads_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from reshard.plan import RankPlan
    from reshard.plan.columns import Numbers
    from reshard.plan.rank import TensorGroup
    from reshard.plan.runs import Runs
    from reshard.storage.ahead import Read


class Small(NamedTuple):
    """Consecutive small tensors of a file. They are read when the tile is passed on.

    Attributes:
        plan: plan of the rank.
        first: number of the first tensor.
        end: number after the last tensor.
        nbytes: length of their contents in the target's type, in bytes.
        summed: whether the next `Checksum` depends on these bytes.
    """

    plan: RankPlan
    first: int
    end: int
    nbytes: int
    summed: bool = False


class Placed(NamedTuple):
    """Small tensors, and the places of their contents in a buffer.

    Attributes:
        plan: plan of the rank.
        numbers: numbers of the tensors.
        places: first byte of each in the buffer, in the source's type.
        targets: first byte of each in the tile, if they are cast from the buffer to the tile. None: the buffer is the tile.
    """

    plan: RankPlan
    numbers: Numbers
    places: Numbers
    targets: Numbers | None = None


def placed(moves: Sequence[tuple[int, Small]], most: int) -> Iterator[Placed]:
    """Yield the small tensors of a tile. Those that are cast need a buffer of at most `most` bytes.

    Args:
        moves: tensors, each with their first byte in the tile.
        most: size of the buffer.
    """
    if not moves:
        return
    plan = moves[0][1].plan
    numbers = np.concatenate([np.arange(move.first, move.end) for _, move in moves])
    places = np.concatenate([at + plan.ends[move.first : move.end] - plan.ends[move.first] for at, move in moves])
    cast = _of_groups(plan, numbers, lambda group: group.kind.cast is not None).astype(np.bool_)
    if not cast.all():
        yield Placed(plan, numbers[~cast], places[~cast])
    numbers, targets = numbers[cast], places[cast]
    sizes = _of_groups(plan, numbers, lambda group: group.nbytes)
    ends, first = np.cumsum(sizes), 0
    while first < len(numbers):
        done = int(ends[first - 1]) if first else 0
        end = max(first + 1, int(np.searchsorted(ends, done + most, "right")))
        some = slice(first, end)
        yield Placed(plan, numbers[some], ends[some] - sizes[some] - done, targets[some])
        first = end


def padded(found: Placed) -> Iterator[tuple[int, int]]:
    """Yield the place and length of each tensor that is padded, in the source's type."""
    lengths = _of_groups(found.plan, found.numbers, lambda group: group.nbytes if group.geometry.padding else 0)
    for at in np.flatnonzero(lengths).tolist():
        yield int(found.places[at]), int(lengths[at])


def _of_groups(plan: RankPlan, numbers: Numbers, value: Callable[[TensorGroup], int]) -> Numbers:
    """Return the value of each tensor's group."""
    groups, inverse = np.unique(plan.group_of[numbers], return_inverse=True)
    found: Numbers = np.array([value(plan.groups[group]) for group in groups.tolist()], np.int64)[inverse]
    return found


def reads_of_small(moves: Sequence[tuple[int, Small]], tile_bytes: int, most: int) -> Iterator[Read]:
    """Yield the reads of the small tensors of a tile, in the order of `Gatherer.read_small`.

    Args:
        moves: tensors, each with their first byte in the tile.
        tile_bytes: see `placed`.
        most: maximum length of a read of several runs.
    """
    for found in placed(moves, tile_bytes):
        for alone, together in reads_of(found.plan, found.numbers, found.places, most):
            yield from ((rank, source, length) for rank, source, _, length in alone)
            yield from ((each.rank, each.start, each.end - each.start) for each in together)


def scatter(content: memoryview, start: int, runs: Runs, into: memoryview) -> None:
    """Copy runs from bytes of a file that begin at byte `start` of the file."""
    order = np.argsort(runs.lengths, kind="stable")
    for which in np.split(order, np.flatnonzero(np.diff(runs.lengths[order])) + 1):
        length = int(runs.lengths[which[0]])
        # Elements of this length at every byte. They overlap, but the runs in `into` do not.
        element = np.dtype((np.void, length))
        source = np.ndarray((len(content) - length + 1,), element, content, strides=(1,))
        target = np.ndarray((len(into) - length + 1,), element, into, strides=(1,))
        target[runs.targets[which]] = source[runs.sources[which] - start]
