"""Select blocks to compare, in order to detect source ranks with equal content that should hold different slices."""

from __future__ import annotations

from collections import defaultdict
from heapq import nsmallest
from itertools import groupby
from math import prod
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from reshard.checkpoint.dtypes import DTYPES
from reshard.plan.replicas import Holders

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable

    from reshard.checkpoint.inventory import TensorEntry
    from reshard.layout import Layout
    from reshard.plan.geometry import Cell
    from reshard.plan.model import Kind, Model, Parameter

_BLOCK_BYTES = 4 << 10
_BLOCKS_PER_RANK = 8


class SliceBlock(NamedTuple):
    """A range of bytes in the middle of a rank's slice of a parameter.

    Attributes:
        name: name of the parameter in the files.
        cell: position of the slice in the grid of the parameter's layout.
        entry: entry of the parameter in the rank's file.
        start: offset of the first byte in the slice.
        length: number of bytes.
    """

    name: str
    cell: Cell
    entry: TensorEntry
    start: int
    length: int


class Slices:
    """The slices in the source's files, for parameters that the source strategy names."""

    def __init__(self, model: Model) -> None:
        self._devices, self._inventory, self._holders = model.source_devices, model.inventory, Holders(model)
        self._parameters: dict[Kind, list[Parameter]] = defaultdict(list)
        for parameter in model.of_kinds(lambda kind: kind.source is not None and 0 not in kind.shape):
            self._parameters[parameter.kind].append(parameter)
        self._cut: dict[tuple[int, int], list[tuple[Parameter, Layout]]] = {}

    def ranks(self, most: int, suspects: Collection[int] = ()) -> tuple[int, ...]:
        """Return the ranks to compare. One of several replicas is sufficient.

        Args:
            most: maximum number of ranks, approximately. They are spread over the stages and the axes of their meshes.
            suspects: ranks that are compared even if they are replicas, see `reshard.plan.copies.equal_files`.
        """
        first: dict[Hashable, int] = {}
        for rank, structure in sorted(self._holders.structure_of.items()):
            stage, local = divmod(rank, self._devices)
            layouts = dict.fromkeys(layout for _, layout in self._largest(structure, stage))
            first.setdefault((structure, stage, *(layout.cells[local] for layout in layouts)), rank)
        ranks = sorted({*first.values(), *suspects})
        if len(ranks) <= most:
            return tuple(ranks)
        # A plain step of a power of two would only reach ranks with the same coordinate on the inner axes.
        return tuple(sorted({*ranks[:2], *(ranks[(i * len(ranks) // most + i) % len(ranks)] for i in range(most))}))

    def stage(self, rank: int) -> int:
        """Return the pipeline stage of a rank."""
        return rank // self._devices

    def blocks(self, rank: int) -> tuple[SliceBlock, ...]:
        """Return a block of each of the largest parameters in the rank's file, in descending order of size."""
        found = []
        for parameter, layout in self._largest(self._holders.structure_of[rank], self.stage(rank)):
            entry, itemsize = self._holders.entry(rank, parameter.source_name), DTYPES[parameter.dtype].itemsize
            length = min(entry.nbytes, _BLOCK_BYTES)
            start = (entry.nbytes - length) // 2 // itemsize * itemsize
            found.append(SliceBlock(entry.name, layout.cells[rank % self._devices], entry, start, length))
        return tuple(found)

    def _largest(self, structure: int, stage: int) -> list[tuple[Parameter, Layout]]:
        """Return the largest sharded parameters of a structure in a stage, each with its layout."""
        found = self._cut.get((structure, stage))
        if found is None:
            held = ((kind, _layout(kind, stage)) for kind in self._parameters if structure in kind.structures)
            layouts = {kind: layout for kind, layout in held if layout is not None and prod(layout.parts) > 1}
            largest: list[Parameter] = []
            for _, kinds in groupby(sorted(layouts, key=_size, reverse=True), _size):
                named = {p.source_name: p for kind in kinds for p in self._parameters[kind]}
                largest += [named[name] for name in nsmallest(_BLOCKS_PER_RANK - len(largest), named)]
                if len(largest) == _BLOCKS_PER_RANK:
                    break
            found = self._cut[structure, stage] = [(p, layouts[p.kind]) for p in largest]
        return found


_size = attrgetter("nbytes")


def _layout(kind: Kind, stage: int) -> Layout | None:
    """Return the layout by which a stage holds parameters, or None if the stage does not hold them."""
    layouts = ((kind.source, kind.source_stages), *kind.other_cuts)
    return next((layout for layout, stages in layouts if stage in stages), None)
