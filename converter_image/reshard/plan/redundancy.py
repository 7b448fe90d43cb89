"""Choose the target rank that writes each replicated slice, if each slice is written once.

MindSpore assigns the parameters of a replica group to its ranks in turn, by name
(`mindspore.train._utils.remove_param_redundancy`, 2.10). The ranks' files can therefore have very different sizes. MindSpore's
loader only requires that exactly one rank of the group has the parameter (`mindspore.parallel._cell_wrapper`). This module
balances the sizes instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from reshard.plan.model import Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reshard.layout import Layout
    from reshard.plan.model import Parameter

    Holders = np.ndarray[tuple[int, int], np.dtype[np.intp]]
    Shares = np.ndarray[tuple[int, int], np.dtype[np.bool_]]


def shares(parameters: Sequence[Parameter], devices: int, *, every: bool = False) -> Shares:
    """Assign each slice of a target stage's parameters to exactly one of the ranks that hold it.

    Slices are assigned in descending order of size, each to the rank with the fewest bytes so far. Ties go to the lowest rank.

    Args:
        parameters: parameters of the stage.
        devices: number of its ranks.
        every: whether this applies to each slice with elements, instead of to those that MindSpore's loader passes on.

    Returns:
        Whether each rank (within the stage) writes each parameter, as an array of shape (ranks, parameters).
    """
    written = np.ones((devices, len(parameters)), dtype=np.bool_)
    nbytes = np.zeros(devices, dtype=np.int64)
    holders: dict[Layout, Holders] = {}
    for number in sorted(range(len(parameters)), key=lambda i: -parameters[i].slice_nbytes):
        parameter = parameters[number]
        if every or _is_passed_on(parameter):
            groups = holders.get(parameter.target)
            if groups is None:  # every slice of a layout has equally many holders
                groups = holders[parameter.target] = np.array(list(parameter.target.holders.values()), dtype=np.intp)
            chosen = groups[np.arange(len(groups)), nbytes[groups].argmin(axis=1)]
            written[:, number] = False
            written[chosen, number] = True
        if every and parameter.target.uneven and 0 not in parameter.shape:
            written[:, number] &= np.array([parameter.nbytes_at(rank) > 0 for rank in range(devices)])
        nbytes[written[:, number]] += parameter.slice_nbytes
    return written


def _is_passed_on(parameter: Parameter) -> bool:
    """Return whether MindSpore's loader broadcasts the parameter from the rank that has it to its group.

    MindSpore knows no groups for parameters that the target strategy does not name, and it skips these two kinds of names.
    """
    return (
        parameter.role is Role.CUT and not parameter.name.startswith("accu_grads") and not parameter.name.endswith("expert_load")
    )
