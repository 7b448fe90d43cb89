"""Bytes of the source that target ranks require: by each of them, and each byte once."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from reshard.checkpoint.dtypes import DTYPES
from reshard.layout.box import Box
from reshard.plan.pad import within

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

    from reshard.plan.columns import Numbers
    from reshard.plan.model import Kind
    from reshard.plan.planner import Planner


class Needed(NamedTuple):
    """Number of elements or bytes of the source that target ranks require.

    Attributes:
        total: sum over the ranks. What several of them require counts for each.
        distinct: each counted once, even if several source ranks hold copies of it.
    """

    total: int
    distinct: int

    def plus(self, other: Needed, times: int = 1) -> Needed:
        """Return the sums of both numbers, with the other ones multiplied."""
        return Needed(self.total + other.total * times, self.distinct + other.distinct * times)


class _Reading(NamedTuple):
    """A source tensor of a kind that ranks of a target stage read, given by their numbers in the stage."""

    kind: Kind
    stage: int
    members: tuple[int, ...]


def bytes_needed(planner: Planner, ranks: Iterable[int]) -> Needed:
    """Return the bytes of source tensors that these target ranks require. Padding is not a part of the source.

    The time depends on the number of kinds rather than on the number of tensors, except for tensors that are read for several
    layouts.
    """
    if planner.model.same:  # each rank reads its own file
        nbytes = sum(kind.nbytes * len(numbers) for rank in ranks for kind, numbers in planner.members(rank).items())
        return Needed(nbytes, nbytes)
    stages: dict[int, list[int]] = defaultdict(list)
    for rank in ranks:
        stage, member = divmod(rank, planner.model.target_devices)
        stages[stage].append(member)
    found = Needed(0, 0)
    alike: dict[Kind, list[_Reading]] = defaultdict(list)
    counts: dict[Kind, int] = {}
    apart: dict[str, list[_Reading]] = defaultdict(list)
    for stage, chosen in stages.items():
        members = tuple(chosen)
        for kind, numbers in planner.members_of_group[stage].items():
            left, others = _split(planner, stage, kind, numbers)
            for number in others.tolist():
                name = planner.parameters_of_group[stage][number].source_name
                apart[name].append(_Reading(kind, stage, planner.writers(stage, number, members)))
            if planner.divides:
                written = planner.shares[stage][:, left]
                once = ~written.all(axis=0)
                nbytes = sum(kind.nbytes_at(member) * int(written[member, once].sum()) for member in members)
                found = found.plus(Needed(nbytes, nbytes))
                left = left[~once]
            if len(left):
                alike[kind].append(_Reading(kind, stage, members))
                counts[kind] = len(left)
    known: dict[Hashable, Needed] = {}
    for kind, readings in alike.items():
        found = found.plus(_elements(planner, readings, known), counts[kind] * DTYPES[kind.dtype].itemsize)
    for readings in apart.values():
        found = found.plus(_elements(planner, readings, known), DTYPES[readings[0].kind.dtype].itemsize)
    return found


def _split(planner: Planner, stage: int, kind: Kind, numbers: Numbers) -> tuple[Numbers, Numbers]:
    """Divide the positions of a kind's parameters: those that are read alike, and those that are calculated one by one.

    Another parameter may be made of the same source tensor. If each slice is written once, ranks of a stage may also read other
    parts of a tensor than those of another stage.
    """
    if planner.divides and len(kind.target_stages) > 1:
        return numbers[:0], numbers
    if not planner.read_again:
        return numbers, numbers[:0]
    parameters = planner.parameters_of_group[stage]
    again = np.array([parameters[number].source_name in planner.read_again for number in numbers])
    return numbers[~again], numbers[again]


def _elements(planner: Planner, readings: Sequence[_Reading], known: dict[Hashable, Needed]) -> Needed:
    """Return the elements of one source tensor that these readings require. Results are kept in `known`."""
    shape = readings[0].kind.shape
    key = (shape, *((r.kind if r.kind.per_rank else (r.kind.target, r.kind.new_shape), r.stage, r.members) for r in readings))
    if key in known:
        return known[key]
    total = 0
    boxes: dict[Hashable, dict[Box, None]] = defaultdict(dict)  # by the source ranks, if their copies may differ
    for kind, stage, members in readings:
        cells, held = kind.target.cells, dict[tuple[int, ...], Box]()
        for member in members:
            box = held.get(cells[member])
            if box is None:
                box = held[cells[member]] = within(kind.box(member), shape)
            total += box.size
            copy = None
            if kind.per_rank:
                copy = tuple(ranks for _, ranks in planner.needs(kind, stage * planner.model.target_devices + member))
            boxes[copy][box] = None
    known[key] = Needed(total, sum(_union([box for box in found if box.size]) for found in boxes.values()))
    return known[key]


def _union(boxes: Sequence[Box]) -> int:
    """Return the number of elements that are in at least one of these boxes.

    >>> _union([Box((0, 0), (2, 4)), Box((0, 0), (4, 2))])
    12
    """
    if len(boxes) < 2:
        return sum(box.size for box in boxes)
    if not boxes[0].shape:
        return 1
    ends = sorted({end for box in boxes for end in (box.start[0], box.start[0] + box.shape[0])})
    known: dict[tuple[Box, ...], int] = {}
    total = 0
    for start, end in pairwise(ends):
        meeting = (box for box in boxes if box.start[0] <= start and end <= box.start[0] + box.shape[0])
        across = tuple(dict.fromkeys(Box(box.start[1:], box.shape[1:]) for box in meeting))
        if across not in known:
            known[across] = _union(across)
        total += (end - start) * known[across]
    return total
