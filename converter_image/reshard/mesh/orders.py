"""The order of the axes of a source, which numbers its ranks."""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING

from reshard.errors import RequestError
from reshard.mesh.readings import MOST_AXES
from reshard.model.tiling import Grid

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from reshard.mesh.evidence import Evidence
    from reshard.mesh.readings import Observation

_SHOWN = 3


def check_order(source: Evidence, sizes: Mapping[str, int], names: Iterable[str], where: str) -> None:
    """Refuse a target if its ranks would not be numbered in the order of its mesh.

    A source that locates its slices, but not its ranks, has no order.

    Args:
        source: what the source shows.
        sizes: size of each axis of the target, outermost first.
        names: parameters whose sharding is derived, by their names in the source.
        where: name of the layout file, for messages.

    Raises:
        RequestError: the axes have another order in the mesh of the target, or the order of the source explains the layout of no
            parameter, although another one does. A single parameter can have an order of its own.
    """
    if any(isinstance(each.cuts, Grid) for found in source.observed.values() for each in found):
        return
    before = [axis for axis, size in source.sizes.items() if size > 1 and sizes.get(axis, 1) > 1]
    after = [axis for axis in sizes if axis in before]
    if before != after:
        raise RequestError(
            "MeshMismatch",
            f"the mesh of the target has the axes in the order {', '.join(after)}, that of the source in the order"
            f" {', '.join(before)}",
            where=where,
            fix="write them in the order of the source in both meshes; or replace `derive` by rules, which use that of `mesh`",
        )
    axes = [axis for axis, size in source.sizes.items() if size > 1]
    cut = {each for found in source.observed.values() for each in found if _is_cut(each)}
    is_needed = any(_is_cut(each) for name in names for each in source.observed[name])
    if len(axes) > MOST_AXES or not is_needed or _explained(cut, axes):
        return
    numbers = {order: _explained(cut, order) for order in permutations(axes)}
    most = max(numbers.values())
    orders = [", ".join(order) for order, number in numbers.items() if number == most]
    if most:
        more = f" and {len(orders) - _SHOWN} others" if len(orders) > _SHOWN else ""
        raise RequestError(
            "MeshMismatch",
            f"the order of the axes of the source, {', '.join(axes)}, explains the layout of no parameter, but"
            f" {' and '.join(orders[:_SHOWN])}{more} would",
            where=where,
            fix="correct the order or the sizes of the axes of the source, and use the same order in both meshes; or add a rule"
            " with `order` for each parameter that is divided",
        )


def _is_cut(observation: Observation) -> bool:
    """Return whether axes divide a parameter for certain."""
    return not (observation.is_default or isinstance(observation.cuts, Grid)) and any(observation.cuts)


def _explained(observations: Iterable[Observation], order: Iterable[str]) -> int:
    order = tuple(order)
    return sum(1 for each in observations if any(each.readings(order)))
