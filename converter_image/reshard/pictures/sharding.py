"""The sharding of one parameter in the source and the target, as two grids of limited size."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reshard.layout import Layout
    from reshard.plan.model import Model, Parameter


@dataclass(frozen=True, slots=True)
class CellGrid:
    """The cells of one side, along the dimensions that are drawn.

    Attributes:
        parts: number of equal parts into which each drawn dimension is divided.
        edges: start of each drawn cell along each drawn dimension, and end of the last cell, in parts. If neighbouring parts are
            merged into one drawn cell, there are fewer cells than parts.
        ranks: ranks that hold elements of each drawn cell, in ascending order. The cells are in row-major order.
    """

    parts: tuple[int, ...]
    edges: tuple[tuple[int, ...], ...]
    ranks: tuple[tuple[int, ...], ...]

    @property
    def merged(self) -> int:
        """Largest number of parts that are merged into one drawn cell."""
        return prod(max(b - a for a, b in pairwise(at)) for at in self.edges)


@dataclass(frozen=True, slots=True)
class Sharding:
    """The sharding of a parameter on both sides.

    Attributes:
        parameter: parameter that is drawn.
        dimensions: dimensions that are drawn, in ascending order. There are at most two.
        hidden: dimensions that are also sharded, but not drawn. A drawn cell contains all parts along them.
        source: grid of the source.
        target: grid of the target.
    """

    parameter: Parameter
    dimensions: tuple[int, ...]
    hidden: tuple[int, ...]
    source: CellGrid
    target: CellGrid


def sharding_of(model: Model, parameter: Parameter, most: int) -> Sharding:
    """Return the sharding of a parameter, to be drawn.

    Args:
        model: model of the parameter.
        parameter: parameter to draw.
        most: maximum number of drawn cells along each dimension.
    """
    ndim = len(parameter.shape)
    before = parameter.source.parts if parameter.source else (1,) * ndim
    after = parameter.target.parts
    cut = [i for i in range(ndim) if before[i] * after[i] > 1]
    rest = [i for i in range(ndim) if i not in cut]
    shown = tuple(sorted([*sorted(cut, key=lambda i: -before[i] * after[i])[:2], *rest][:2]))
    hidden = tuple(i for i in cut if i not in shown)
    target = _grid(parameter.target, parameter.target_stages, model.target_devices, shown, most)
    return Sharding(parameter, shown, hidden, _source(model, parameter, shown, most), target)


def _source(model: Model, parameter: Parameter, shown: tuple[int, ...], most: int) -> CellGrid:
    if parameter.source is None:
        holding = tuple(file.rank for file in model.inventory.files if file.structure in parameter.structures)
        return CellGrid((1,) * len(shown), ((0, 1),) * len(shown), (holding,))
    return _grid(parameter.source, parameter.source_stages, model.source_devices, shown, most)


def _grid(layout: Layout, stages: tuple[int, ...], devices: int, shown: tuple[int, ...], most: int) -> CellGrid:
    parts = tuple(layout.parts[i] for i in shown)
    steps = [-(-k // most) for k in parts]
    edges = tuple((*range(0, k, step), k) for k, step in zip(parts, steps, strict=True))
    lengths = [len(at) - 1 for at in edges]
    ranks: list[list[int]] = [[] for _ in range(prod(lengths))]
    for stage in stages:
        for rank, cell in enumerate(layout.cells):
            at = 0
            for i, step, length in zip(shown, steps, lengths, strict=True):
                at = at * length + cell[i] // step
            ranks[at].append(stage * devices + rank)
    return CellGrid(parts, edges, tuple(tuple(sorted(found)) for found in ranks))
