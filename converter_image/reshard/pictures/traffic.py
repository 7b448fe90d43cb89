"""Number of bytes from each source rank to each target rank, as a matrix of limited size."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import lcm, prod
from typing import TYPE_CHECKING

from reshard.plan.geometry import composition

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reshard.plan.geometry import Cell
    from reshard.plan.model import Kind
    from reshard.plan.planner import Planner


@dataclass(frozen=True, slots=True)
class Axis:
    """The ranks of one side, in groups of consecutive ranks.

    Attributes:
        groups: ranks of each group, in ascending order. All groups except the last have the same size.
        devices: number of ranks per pipeline stage.
    """

    groups: tuple[tuple[int, ...], ...]
    devices: int

    @classmethod
    def of(cls, ranks: Sequence[int], devices: int, most: int) -> Axis:
        """Return at most `most` groups. If possible, no group contains ranks of two pipeline stages."""
        least = -(-len(ranks) // most)
        size = next((n for n in range(least, 2 * least) if devices % n == 0), least) or 1
        return cls(tuple(tuple(ranks[at : at + size]) for at in range(0, len(ranks), size)), devices)

    @property
    def size(self) -> int:
        """Number of ranks in a group."""
        return max(map(len, self.groups), default=1)

    @property
    def stages(self) -> tuple[int, ...]:
        """Positions of groups that start a pipeline stage, except the first."""
        stage = [group[0] // self.devices for group in self.groups]
        return tuple(i for i in range(1, len(stage)) if stage[i] != stage[i - 1])


@dataclass(frozen=True, slots=True)
class Traffic:
    """Number of bytes of source tensors that target ranks require. Replicas are counted for each rank.

    Attributes:
        source: all source ranks.
        target: planned target ranks.
        nbytes: number of bytes for each pair (position of the source group, position of the target group). Pairs without traffic
            are omitted.
    """

    source: Axis
    target: Axis
    nbytes: Mapping[tuple[int, int], int]

    @property
    def by_source(self) -> tuple[int, ...]:
        """Number of bytes that are read from each source group."""
        return self._sums(0, len(self.source.groups))

    @property
    def by_target(self) -> tuple[int, ...]:
        """Number of bytes that each target group receives."""
        return self._sums(1, len(self.target.groups))

    def _sums(self, side: int, length: int) -> tuple[int, ...]:
        found = Counter[int]()
        for pair, nbytes in self.nbytes.items():
            found[pair[side]] += nbytes
        return tuple(found[i] for i in range(length))


def count_traffic(planner: Planner, ranks: Sequence[int], most: int) -> Traffic:
    """Count the bytes between every pair of ranks without planning copies.

    Args:
        planner: planner of the model.
        ranks: target ranks, in ascending order.
        most: maximum number of groups on each side.

    Raises:
        MissingInputError: no source file contains a required slice.
    """
    model = planner.model
    source = Axis.of(range(model.first_rank, model.first_rank + model.source_ranks), model.source_devices, most)
    target = Axis.of(ranks, model.target_devices, most)

    @lru_cache
    def bytes_by_kind(rank: int) -> Counter[Kind]:
        found: Counter[Kind] = Counter()
        for kind, numbers in planner.members(rank).items():
            found[planner.like(kind)] += kind.nbytes_at(rank % model.target_devices) * len(numbers)
        return found

    nbytes = Counter[tuple[int, int]]()
    for column, group in enumerate(target.groups):
        for rank in group:
            picks = planner.picks(rank)
            for kind, size in bytes_by_kind(planner.alike(rank)).items():
                needed = planner.needs(kind, rank)
                shares = _shares_of(kind, rank % model.target_devices)
                whole = sum(shares)
                for (_, holders), share in zip(needed, shares, strict=True):
                    nbytes[(picks[holders] - model.first_rank) // source.size, column] += size * share // whole
    return Traffic(source, target, {pair: found for pair, found in nbytes.items() if found})


def _shares_of(kind: Kind, local: int) -> tuple[int, ...]:
    """Return the shares of a target slice's elements in each source slice of `Planner.needs`."""
    if kind.placement is None and not kind.target.uneven and kind.new_shape is None:
        cell = kind.target.cells[local]
        return _shares(kind.target.parts, cell, kind.source.parts if kind.source else (1,) * len(cell))
    return tuple(overlap.target.size for overlap in composition(kind, kind.box(local)).overlaps)


@lru_cache(maxsize=1 << 16)
def _shares(target_parts: tuple[int, ...], cell: Cell, source_parts: tuple[int, ...]) -> tuple[int, ...]:
    """Return the proportions of a target cell's elements in the source cells of `overlapping`, as the smallest integers.

    Both layouts divide the dimensions evenly, so these proportions are exact for slices of any size.
    """
    lengths = []
    for parts, at, before in zip(target_parts, cell, source_parts, strict=True):
        steps = lcm(parts, before)
        first, end, each = at * steps // parts, (at + 1) * steps // parts, steps // before
        met = range(first // each, -(-end // each))
        lengths.append([min(end, (i + 1) * each) - max(first, i * each) for i in met])
    return tuple(map(prod, product(*lengths)))
