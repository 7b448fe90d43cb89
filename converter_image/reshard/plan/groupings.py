"""Divide target ranks among pods, so that ranks that need the same bytes are written by the same pod."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from itertools import accumulate
from math import gcd
from operator import mul
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from reshard.plan.fetched import Fetching
from reshard.plan.passes import File, passes
from reshard.spec.ranks import Grouping

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reshard.layout import Layout
    from reshard.plan.columns import Numbers
    from reshard.plan.fetched import Reading
    from reshard.plan.model import Kind
    from reshard.plan.passes import Limits
    from reshard.plan.planner import Planner

    Table = np.ndarray[tuple[int, int], np.dtype[np.int64]]
    Passes = tuple[tuple[int, ...], ...]

# Pods may fetch this multiple of the distinct bytes.
MOST_FETCHED = 1.2
# If no grouping achieves this, larger groups must save this share of what smaller groups fetch.
_LEAST_SAVED = 0.05
# If the groups of a grouping are all different, groups with about this many ranks in total are examined, and represent the rest.
_EXAMINED = 1 << 9
# Positions that are never alike, however far they are moved.
_NO_PERIOD = 1 << 40


class Option(NamedTuple):
    """A grouping, and what its pods will fetch.

    Attributes:
        grouping: division of the ranks among pods.
        pods: number of pods.
        bytes_fetched: number of bytes of the source that all pods will fetch for the contents of files.
        groups: passes over the source of each group that is unlike the others.
    """

    grouping: Grouping
    pods: int
    bytes_fetched: int
    groups: tuple[Passes, ...]


class Groupings:
    """Examines groupings of target ranks.

    Args:
        planner: planner of all target ranks.
        ranks: ranks to write.
        limits: limits of a pass over the source. None: each rank is written alone.
        reading: properties of fetching the source.
    """

    def __init__(self, planner: Planner, ranks: Sequence[int], limits: Limits | None, reading: Reading) -> None:
        self._planner, self._ranks, self._limits = planner, np.array(ranks, np.int64), limits
        self._fetching, self._files = Fetching(planner, reading), dict[Hashable, File]()
        self._places, self._periods = _places(planner, self._ranks)

    def examine(self, grouping: Grouping) -> Option:
        """Return what pods with a grouping will fetch."""
        found = self._unlike(grouping)
        examined, total, groups = 0, 0, list["Passes"]()
        step = max(1, -(-sum(len(ranks) for ranks, _ in found) // _EXAMINED))
        for ranks, count in found[::step]:
            divided = (
                passes(self._planner, ranks, self._limits, self._files) if self._limits else tuple((rank,) for rank in ranks)
            )
            groups.append(divided)
            examined += count * len(ranks)
            total += count * sum(map(self._fetching.nbytes, divided))
        fetched = total * len(self._ranks) // examined if examined else 0
        return Option(grouping, grouping.groups(len(self._ranks)), fetched, tuple(groups))

    def compare(self, parallelism: int, distinct: int) -> tuple[Option, ...]:
        """Compare groupings with enough pods, from the smallest to the largest groups.

        Of groupings with equally large groups, the one that fetches the fewest bytes is returned. Larger groups are not examined
        if one of these fetches at most `MOST_FETCHED` times the distinct bytes.

        Args:
            parallelism: number of pods that write ranks at the same time.
            distinct: number of bytes of the source that any of the ranks requires.
        """
        least, found = min(parallelism, len(self._ranks)), list[Option]()
        candidates = [each for each in _candidates(self._planner) if each.groups(len(self._ranks)) >= least]
        for size in sorted({each.size for each in candidates}):
            of_size = (self.examine(each) for each in candidates if each.size == size)
            found.append(min(of_size, key=lambda option: option.bytes_fetched))
            if found[-1].bytes_fetched <= MOST_FETCHED * distinct:
                break
        return tuple(found)

    def _unlike(self, grouping: Grouping) -> list[tuple[tuple[int, ...], int]]:
        """Return the ranks of groups that are unlike each other, each with the number of groups that are like it."""
        at = np.arange(len(self._ranks))
        block, place = np.divmod(at, grouping.count * grouping.stride)
        group = block * -(-grouping.stride // grouping.run) + place % grouping.stride // grouping.run
        order = np.argsort(group, kind="stable")
        sizes = np.bincount(group)
        starts = np.cumsum(sizes) - sizes
        found: dict[bytes, tuple[tuple[int, ...], int]] = {}
        for size in np.unique(sizes).tolist():
            members = order[starts[sizes == size][:, None] + np.arange(size)]
            places = self._places[members]
            first = places.min(axis=1, keepdims=True)
            places -= first - first % self._periods
            for each, of_group in zip(places, members, strict=True):
                key = each.tobytes()  # its length depends on the size
                ranks, count = found.get(key) or (tuple(self._ranks[of_group].tolist()), 0)
                found[key] = ranks, count + 1
        return list(found.values())


def choose(options: Sequence[Option], distinct: int) -> Option:
    """Return the option with the most pods that fetches at most `MOST_FETCHED` times the distinct bytes.

    If there is none, the one with the most pods that fetches hardly more than any other.
    """
    least = min(option.bytes_fetched for option in options)
    most = max(MOST_FETCHED * distinct, least / (1 - _LEAST_SAVED))
    return next(option for option in options if option.bytes_fetched <= most)


def _places(planner: Planner, ranks: Numbers) -> tuple[Table, Numbers]:
    """Return positions of ranks among those that need the same bytes, and the period of each position.

    Groups are alike if all positions of one are those of the other, moved by multiples of the periods. The positions are the
    stage, and the cells in the layouts. Grids of source and target meet again after a number of cells that depends on both.

    Returns:
        An array of shape (ranks, positions), and one with the length of its rows.
    """
    if planner.model.same or planner.divides:  # the content of a file does not depend on such positions alone
        return ranks[:, None], np.array([_NO_PERIOD])
    stages, locals_ = np.divmod(ranks, planner.model.target_devices)
    classes: dict[Hashable, int] = {}
    class_of = [classes.setdefault(_content(members), len(classes)) for members in planner.members_of_group]
    columns: dict[tuple[Layout | None, int, int], Numbers] = {
        (None, 0, _NO_PERIOD): np.array(class_of)[stages],
        (None, 0, 1): stages,
    }
    for kind in planner.model.kinds:
        parts, moves = kind.target.parts, kind.placement is None and not kind.target.uneven and kind.new_shape is None
        meeting = kind.source.parts if kind.source is not None else (1,) * len(parts)
        for axis, (after, before) in enumerate(zip(parts, meeting, strict=True)):
            period = after // gcd(after, before) if moves else _NO_PERIOD
            key = (kind.target, axis, period)
            if after > 1 and key not in columns:
                columns[key] = np.array([cell[axis] for cell in kind.target.cells])[locals_]
    return np.stack([*columns.values()], axis=1), np.array([period for *_, period in columns])


def _content(members: Mapping[Kind, Numbers]) -> Hashable:
    """Return a key that is equal for stages with equal numbers of parameters that are read in the same way."""
    return frozenset(
        Counter(
            (
                kind.dtype,
                kind.shape,
                kind.new_shape,
                kind.source,
                kind.target,
                id(kind.placement),
                kind.per_rank,
                kind.role,
                kind.target_stages if len(kind.target_stages) > 1 else (),
                len(numbers),
            )
            for kind, numbers in members.items()
        ).items()
    )


def _candidates(planner: Planner) -> set[Grouping]:
    """Return groupings along the device axes of the target's layouts, and along two of them."""
    devices, layouts = planner.model.target_devices, {kind.target for kind in planner.model.kinds}
    strides = {stride for layout in layouts for stride in accumulate(reversed(layout.device_matrix), mul, initial=1)}
    copies = (layout.holders[layout.cells[0]] for layout in layouts)
    strides |= {second - first for first, second, *_ in (ranks for ranks in copies if len(ranks) > 1)}
    found = {Grouping.consecutive(size) for size in _factors(devices)}
    for stride in strides - {1, devices}:
        found |= {
            Grouping(run, count, stride)
            for run in _factors(stride)
            for count in _factors(devices // stride)
            if count > 1 and run < stride
        }
    return found


def _factors(n: int) -> set[int]:
    """Return some factors of a number: products of its smallest, and of its largest prime factors.

    >>> sorted(_factors(24))
    [1, 2, 3, 4, 6, 8, 12, 24]
    """
    primes, rest, divisor = list[int](), n, 2
    while rest > 1:
        if divisor * divisor > rest:
            divisor = rest
        if rest % divisor:
            divisor += 1
        else:
            primes.append(divisor)
            rest //= divisor
    smallest = {*accumulate(primes, mul, initial=1)}
    return smallest | {n // factor for factor in smallest}
