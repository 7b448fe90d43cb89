"""The parameters that each rule of a layout file divides, and the bytes that each rank then holds."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from reshard.checkpoint.dtypes import DTYPES
from reshard.mesh.patterns import pattern_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from reshard.layout import Layout
    from reshard.mesh.resolve import Resolved
    from reshard.mesh.sharding import Sharding, Whole


@dataclass(frozen=True, slots=True)
class Division:
    """Parameters of one type and shape that one rule divides in the same way, and whose names differ only in numbers.

    Attributes:
        rule: position of the rule. None means that the sharding is derived from the source.
        pattern: names of the parameters, with `*` for the numbers. Optimizer states have those of their parameters.
        names: names of the parameters and their states.
        tensor: type and shape of each whole parameter.
        sharding: axes that divide each of them.
        layout: layout of each of them, including optimizer shards.
        nbytes: bytes of all of them on the rank that holds the most.
    """

    rule: int | None
    pattern: str
    names: tuple[str, ...]
    tensor: Whole
    sharding: Sharding
    layout: Layout
    nbytes: int

    @property
    def optimizer_shards(self) -> int:
        """Number of parts into which optimizer parallelism divides each slice. 1 means that it does not."""
        tensor_cuts = prod(self.layout.device_matrix[-1 - axis] for cuts in self.layout.tensor_map for axis in cuts)
        return prod(self.layout.parts) // tensor_cuts


def divisions(resolved: Resolved, tensors: Mapping[str, Whole]) -> list[Division]:
    """Return the parameters of a strategy by rule, in the order of the rules, and by name, type, shape and layout.

    Args:
        resolved: strategy of a layout file.
        tensors: whole parameters, by name.
    """
    names: dict[tuple[int | None, str, Whole, Sharding, Layout], list[str]] = defaultdict(list)
    stages: dict[tuple[int | None, str, Whole, Sharding, Layout], Counter[int]] = defaultdict(Counter)
    for name, assigned in resolved.assigned.items():
        layout = resolved.strategy.stages[assigned.stages[0]][name]
        key = assigned.rule, pattern_of(assigned.owner), tensors[name], assigned.sharding, layout
        names[key].append(name)
        stages[key].update(assigned.stages)
    found = []
    for key, alike in names.items():
        rule, pattern, tensor, sharding, layout = key
        nbytes = max(stages[key].values()) * max(_rank_bytes(layout, tensor))
        found.append(Division(rule, pattern, tuple(alike), tensor, sharding, layout, nbytes))
    return sorted(found, key=lambda each: float("inf") if each.rule is None else each.rule)


def rank_bytes(resolved: Resolved, tensors: Mapping[str, Whole], others: Iterable[Whole] = ()) -> list[list[int]]:
    """Return the bytes of each rank, by pipeline stage.

    Args:
        resolved: strategy of a layout file.
        tensors: whole parameters, by name.
        others: tensors that every rank holds whole.
    """
    everywhere = sum(tensor.nbytes for tensor in others)
    found = []
    for stage in resolved.strategy.stages:
        counts = Counter((layout, tensors[name]) for name, layout in stage.items())
        total = [everywhere] * resolved.strategy.devices
        for (layout, tensor), count in counts.items():
            each = _rank_bytes(layout, tensor)
            for rank in range(len(total)):
                total[rank] += count * each[rank % len(each)]
        found.append(total)
    return found


def _rank_bytes(layout: Layout, tensor: Whole) -> list[int]:
    """Return the bytes of each rank's slice, or one number if all slices have the same size."""
    if not layout.uneven:
        return [tensor.nbytes // prod(layout.parts)]
    found = [0] * layout.devices
    for ranks in layout.holders.values():
        nbytes = DTYPES[tensor.dtype].itemsize * layout.box(tensor.shape, ranks[0]).size
        for rank in ranks:
            found[rank] = nbytes
    return found
