"""The data of a picture. Its size is limited, whatever the size of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from reshard.pictures.sharding import Sharding, sharding_of
from reshard.pictures.traffic import Traffic, count_traffic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reshard.plan import Planner

_MOST_PARAMETERS = 16


class Limits(NamedTuple):
    """The maximum size of a picture.

    Attributes:
        groups: number of groups of ranks on each side.
        cells: number of cells of a parameter along each dimension.
    """

    groups: int
    cells: int


@dataclass(frozen=True, slots=True)
class Picture:
    """The data of a picture.

    Attributes:
        traffic: number of bytes between ranks.
        shardings: sharding of the selected parameters.
        notes: lines to print at the end.
    """

    traffic: Traffic
    shardings: tuple[Sharding, ...] = ()
    notes: tuple[str, ...] = ()


def picture_of(planner: Planner, ranks: Sequence[int], names: Sequence[str], limits: Limits) -> Picture:
    """Return the picture of a plan.

    Args:
        planner: planner of the model.
        ranks: target ranks, in ascending order.
        names: names of the parameters whose sharding is drawn, in the order of the picture. A parameter that pipeline stages
            shard differently is drawn once for each layout.
        limits: maximum size of the picture.

    Raises:
        MissingInputError: no source file contains a required slice.
    """
    order = {name: number for number, name in enumerate(names)}
    parameters = sorted((p for p in planner.model.parameters if p.name in order), key=lambda p: order[p.name])
    omitted = len(parameters) - _MOST_PARAMETERS
    return Picture(
        count_traffic(planner, ranks, limits.groups),
        tuple(sharding_of(planner.model, parameter, limits.cells) for parameter in parameters[:_MOST_PARAMETERS]),
        (f"{omitted} more matching parameters are not drawn",) if omitted > 0 else (),
    )
