"""Choose the target rank that writes each replicated slice if each slice is written once. Pure.

MindSpore deals the parameters of a replica group out by name, one rank after the other
(`mindspore.train._utils.remove_param_redundancy`, 2.10), so that ranks differ in bytes by as much as parameters do. Its
loader asks only that exactly one rank of the group has the parameter, and takes it from whichever that is
(`mindspore.parallel._cell_wrapper`): the choice is free, and made here for equal bytes.
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


def shares(parameters: Sequence[Parameter], devices: int) -> Shares:
    """Assign each slice of a target stage's parameters to exactly one of the ranks that hold it.

    The largest slices are given away first, each to the rank that has least so far, the lowest among equals.

    Returns:
        For each rank (within the stage) and each parameter whether it writes it.
    """
    written = np.ones((devices, len(parameters)), dtype=np.bool_)
    nbytes = np.zeros(devices, dtype=np.int64)
    holders: dict[Layout, Holders] = {}
    for number in sorted(range(len(parameters)), key=lambda i: -parameters[i].slice_nbytes):
        parameter = parameters[number]
        if _is_passed_on(parameter):
            groups = holders.get(parameter.target)
            if groups is None:  # every slice of a layout has equally many holders
                groups = holders[parameter.target] = np.array(list(parameter.target.holders.values()), dtype=np.intp)
            chosen = groups[np.arange(len(groups)), nbytes[groups].argmin(axis=1)]
            written[:, number] = False
            written[chosen, number] = True
        nbytes[written[:, number]] += parameter.slice_nbytes
    return written


def _is_passed_on(parameter: Parameter) -> bool:
    """Return whether MindSpore's loader broadcasts the parameter from the rank that has it to its group.

    What the target's strategy does not name it knows no group of; these two kinds of names it leaves out.
    """
    return (
        parameter.role is Role.CUT and not parameter.name.startswith("accu_grads") and not parameter.name.endswith("expert_load")
    )
