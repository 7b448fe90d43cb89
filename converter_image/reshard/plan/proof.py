"""Check a plan against the source's files, before it is carried out."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np

from reshard.errors import BugError
from reshard.plan.geometry import prove as prove_geometry

if TYPE_CHECKING:
    from reshard.plan.columns import Numbers
    from reshard.plan.rank import RankPlan, TensorGroup
    from reshard.plan.runs import Flags


def prove(plan: RankPlan) -> None:
    """Check that every element of each tensor is copied exactly once, from a file that contains it.

    Raises:
        BugError: the check fails.
    """
    names = plan.tables.names(plan.parameters)
    kinds = np.fromiter(map(id, map(attrgetter("kind"), plan.parameters)), np.int64, len(plan.parameters))
    for group in plan.groups:
        prove_geometry(group.geometry)
        for number in group.numbers[_misread(plan, group, names, kinds)].tolist():
            raise _not_exact(plan, number)
    numbers = np.concatenate([group.numbers for group in plan.groups]) if plan.groups else np.zeros(0, np.int64)
    for number in np.flatnonzero(np.bincount(numbers, minlength=len(plan.parameters)) != 1).tolist():
        raise _not_exact(plan, number)


def _misread(plan: RankPlan, group: TensorGroup, names: Numbers, kinds: Numbers) -> Flags:
    """Return which tensors of a group are of another kind, or are read from an entry of another name, type or shape."""
    kind, overlaps, numbers = group.kind, group.geometry.overlaps, group.numbers
    wrong: Flags = kinds[numbers] != id(kind)
    if len(group.ranks) != len(overlaps) or len(group.positions) != (0 if kind.placement is not None else len(overlaps)):
        return np.ones_like(wrong)
    if kind.placement is not None:
        placed = (plan.parameters[number].shards for number in numbers.tolist())
        wrong |= np.fromiter((each is None or each.placement is not kind.placement for each in placed), np.bool_, len(numbers))
    for number, (rank, overlap) in enumerate(zip(group.ranks, overlaps, strict=True)):
        if kind.placement is not None:
            entry = plan.entry(group, number, 0)  # those of the other tensors differ only in their offsets
            wrong |= (entry.dtype, entry.shape) != (kind.dtype, overlap.source_shape)
            continue
        columns, positions = plan.tables.of_rank(rank), group.positions[number]
        wrong |= columns.names[positions] != names[numbers]
        wrong |= columns.types[positions] != plan.tables.type_of(kind.dtype, overlap.source_shape)
    return wrong


def _not_exact(plan: RankPlan, number: int) -> BugError:
    return BugError(
        "PlanNotExact",
        f"the planned copies for rank {plan.rank} do not match the files",
        where=f"parameter {plan.parameters[number].name}",
        fix="this is a bug in reshard: please report it with both strategy files",
    )
