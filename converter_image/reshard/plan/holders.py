"""Find the source ranks that hold each slice. Results are cached."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from reshard.checkpoint.inventory import TensorEntry
from reshard.errors import MissingInputError

if TYPE_CHECKING:
    from reshard.layout import Layout
    from reshard.plan.model import Model, Parameter
    from reshard.plan.overlap import Cell

Ranks = tuple[int, ...]
Structures = tuple[int, ...]


class Holders:
    """The slices that the source ranks of a model hold.

    Attributes:
        structure_of: position of each rank's structure in `Inventory.structures`, by rank.
        ranks_of: ranks whose files have each structure, in ascending order, by position of the structure.
    """

    def __init__(self, model: Model) -> None:
        self.structure_of = {file.rank: file.structure for file in model.inventory.files}
        ranks: dict[int, list[int]] = defaultdict(list)
        for rank, structure in self.structure_of.items():
            ranks[structure].append(rank)
        self.ranks_of: dict[int, Ranks] = {structure: tuple(found) for structure, found in ranks.items()}
        self._model = model
        self._of_structures: dict[Structures, tuple[Ranks, frozenset[int]]] = {}
        self._of_cell: dict[tuple[Layout | None, tuple[int, ...], Structures, Cell], Ranks] = {}
        self._entries: dict[int, dict[str, TensorEntry]] = {}

    def of_structures(self, structures: Structures) -> tuple[Ranks, frozenset[int]]:
        """Return the source ranks whose files have one of these structures, as an ascending tuple and as a set."""
        found = self._of_structures.get(structures)
        if found is None:
            ranks = tuple(sorted(rank for structure in structures for rank in self.ranks_of[structure]))
            found = self._of_structures[structures] = (ranks, frozenset(ranks))
        return found

    def of_cell(self, parameter: Parameter, cell: Cell) -> Ranks:
        """Return the source ranks of one stage whose files contain a cell of a parameter that the source strategy names.

        Raises:
            MissingInputError: no file contains it.
        """
        key = (parameter.source, parameter.source_stages, parameter.structures, cell)
        found = self._of_cell.get(key)
        if found is None:
            found = self._of_cell[key] = self._find(parameter, cell)
        return found

    def _find(self, parameter: Parameter, cell: Cell) -> Ranks:
        layout, devices = parameter.source, self._model.source_devices
        assert layout is not None  # noqa: S101 - the caller asked
        _, holding = self.of_structures(parameter.structures)
        for stage in parameter.source_stages:
            first = stage * devices
            group = tuple(first + rank for rank in layout.holders[cell] if first + rank in holding)
            if group:
                return group
        ranks = [parameter.source_stages[0] * devices + rank for rank in layout.holders[cell]]
        raise MissingInputError(
            "ShardMissing",
            f"no file contains slice {list(cell)} of the grid {list(layout.parts)},"
            f" which rank {', '.join(map(str, ranks[:8]))} should hold",
            where=f"parameter {parameter.name}",
            fix="restore the missing files, or use the strategy that the source was trained with",
        )

    def entry_of(self, rank: int, parameter: Parameter, cell: Cell) -> TensorEntry:
        """Return the entry of one slice of a parameter in a file that contains it."""
        if parameter.shards is None:
            return self.entry(rank, parameter.source_name)
        (tile,) = cell
        place = next(place for place in parameter.shards.places(tile) if place.file == rank)
        shape = parameter.shards.tiling.box(tile).shape
        return TensorEntry(parameter.source_name, parameter.dtype, shape, ((place.offset, place.length),))

    def entry(self, rank: int, name: str) -> TensorEntry:
        """Return the entry of a parameter in the file of a source rank that contains it."""
        structure = self.structure_of[rank]
        entries = self._entries.get(structure)
        if entries is None:
            entries = {entry.name: entry for entry in self._model.inventory.structures[structure].tensors}
            self._entries[structure] = entries
        return entries[name]
