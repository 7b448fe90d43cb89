"""Balance what is written: replicated slices among ranks, and whole parameters among files of limited size."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from reshard.checkpoint.dtypes import OBJECT
from reshard.plan.model import Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reshard.layout import Layout
    from reshard.plan.model import Model, Parameter

    HoldingRanks = np.ndarray[tuple[int, int], np.dtype[np.intp]]
    Shares = np.ndarray[tuple[int, int], np.dtype[np.bool_]]

# Number of open parts that still accept items, not counting the one that is being filled.
_OPEN_PARTS = 8
# Number of attempts with a smaller bound, which evens out the parts.
_TRIES = 6


def shares(parameters: Sequence[Parameter], devices: int, *, every: bool = False) -> Shares:
    """Assign each slice of a target stage's parameters to exactly one of the ranks that hold it.

    Slices are assigned in descending order of size in the target, each to the rank with the fewest bytes so far. Ties go to the
    lowest rank. Only properties of the target decide, so the manifest determines the same assignment.

    MindSpore assigns the parameters of a replica group to its ranks in turn, by name
    (`mindspore.train._utils.remove_param_redundancy`, 2.10), so the ranks' files can have very different sizes. MindSpore's
    loader only requires that exactly one rank of the group has the parameter (`mindspore.parallel._cell_wrapper`).

    Args:
        parameters: parameters of the stage.
        devices: number of its ranks.
        every: whether this applies to each slice with elements, instead of to those that MindSpore's loader passes on.

    Returns:
        Whether each rank (within the stage) writes each parameter, as an array of shape (ranks, parameters).
    """
    written = np.ones((devices, len(parameters)), dtype=np.bool_)
    nbytes = np.zeros(devices, dtype=np.int64)
    holders: dict[Layout, HoldingRanks] = {}
    filled: dict[tuple[Layout, tuple[int, ...]], np.ndarray[tuple[int], np.dtype[np.bool_]]] = {}  # ranks with elements
    for number in sorted(range(len(parameters)), key=lambda i: -parameters[i].written_nbytes):
        parameter = parameters[number]
        if every or _is_passed_on(parameter):
            groups = holders.get(parameter.target)
            if groups is None:  # every slice of a layout has equally many holders
                groups = holders[parameter.target] = np.array(list(parameter.target.holders.values()), dtype=np.intp)
            chosen = groups[np.arange(len(groups)), nbytes[groups].argmin(axis=1)]
            written[:, number] = False
            written[chosen, number] = True
        if every and parameter.target.uneven and 0 not in parameter.target_shape:
            key = (parameter.target, parameter.target_shape)
            if key not in filled:
                filled[key] = np.array([parameter.box(rank).size > 0 for rank in range(devices)])
            written[:, number] &= filled[key]
        nbytes[written[:, number]] += parameter.written_nbytes
    return written


def _is_passed_on(parameter: Parameter) -> bool:
    """Return whether MindSpore's loader broadcasts the parameter from the rank that has it to its group.

    MindSpore knows no groups for parameters that the target strategy does not name, and it skips these two kinds of names.
    """
    return (
        parameter.role is Role.CUT and not parameter.name.startswith("accu_grads") and not parameter.name.endswith("expert_load")
    )


def pack_full_tensors(model: Model, most_bytes: int, *, apart: bool) -> Model:
    """Convert a model with one target rank to a model in which each target rank is a file with some of the parameters.

    Values that are not tensors take no room in a file, because these files cannot hold them.

    Args:
        model: the model.
        most_bytes: maximum size of a file, see `fill`.
        apart: whether the last file contains the parameters that no strategy names, as in MindSpore.
    """
    tensors = [p for p in model.parameters if p.dtype != OBJECT]
    others = [p for p in tensors if apart and p.role is Role.REPLICATED]
    named = [p for p in tensors if not (apart and p.role is Role.REPLICATED)]
    parts = [[named[i] for i in part] for part in fill([p.written_nbytes for p in named], most_bytes)]
    parts += [others] if others else []
    kind_of_file = cache(lambda kind, number: replace(kind, target_stages=(number,)))
    spread = [p.of_kind(kind_of_file(p.kind, number)) for number, part in enumerate(parts) for p in part]
    spread += [p.of_kind(kind_of_file(p.kind, 0)) for p in model.parameters if p.dtype == OBJECT]
    return replace(model, target_stages=max(len(parts), 1), parameters=tuple(spread), unified=True)


def fill(sizes: Sequence[int], most: int) -> list[list[int]]:
    """Distribute items among few parts of similar size, and keep consecutive items together.

    Among the bounds up to `most` that do not require more parts, approximately the smallest one is used. The parts therefore have
    similar sizes, and all pods take about the same time.

    Args:
        sizes: size of each item in bytes. An item that is larger than `most` gets a separate part.
        most: maximum size of a part in bytes.

    Returns:
        The positions of each part's items, in ascending order. The parts are in the order of their first items.

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
    """Pack items by best fit with a limited number of open parts (Csirik and Johnson 1991), preferably next to the previous item.

    With only one open part, small items between large ones would each get a separate part.
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
