"""Find the source ranks that hold each slice, and choose among them.

Target ranks read few files, and all source ranks have equal load.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from functools import lru_cache
from heapq import heapify, heappop, heappush
from operator import attrgetter
from typing import TYPE_CHECKING

from reshard.checkpoint.inventory import TensorEntry
from reshard.errors import MissingInputError

if TYPE_CHECKING:
    from reshard.layout import Layout
    from reshard.plan.geometry import Cell
    from reshard.plan.model import Kind, Model, Parameter

# The search for a smaller set than the greedy one gives up after this many steps; such sets are rare and only save an open file.
_SEARCH_STEPS = 2000
# This few steps cannot rearrange more groups; the search is also as deep as the number of groups.
_SEARCHED_GROUPS = 128

Group = tuple[int, ...]
Ranks = tuple[int, ...]
Structures = tuple[int, ...]


class Holders:
    """The slices that the source ranks of a model hold. Results are cached.

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

    def of_cell(self, kind: Kind, cell: Cell) -> Ranks:
        """Return the source ranks of one stage whose files contain a cell of a parameter that the source strategy names.

        Raises:
            MissingInputError: no file contains it.
        """
        key = (kind.source, kind.source_stages, kind.structures, cell)
        found = self._of_cell.get(key)
        if found is None:
            found = self._of_cell[key] = self._find(kind, cell)
        return found

    def _find(self, kind: Kind, cell: Cell) -> Ranks:
        layout, devices = kind.source, self._model.source_devices
        assert layout is not None  # noqa: S101 - the caller asked
        _, holding = self.of_structures(kind.structures)
        for stage in kind.source_stages:
            first = stage * devices
            group = tuple(first + rank for rank in layout.holders[cell] if first + rank in holding)
            if group:
                return group
        ranks = [kind.source_stages[0] * devices + rank for rank in layout.holders[cell]]
        example = next(p for p in self._model.parameters if p.kind is kind)
        raise MissingInputError(
            "ShardMissing",
            f"no file contains slice {list(cell)} of the grid {list(layout.parts)},"
            f" which rank {', '.join(map(str, ranks[:8]))} should hold",
            where=f"parameter {example.name}",
            fix="restore the missing files, or use the strategy that the source was trained with",
        )

    def entry_of(self, rank: int, parameter: Parameter, cell: Cell) -> TensorEntry:
        """Return the entry of one slice of a parameter in a file that contains it."""
        return self.entry(rank, parameter.source_name) if parameter.shards is None else shard_entry(parameter, rank, cell)

    def entry(self, rank: int, name: str) -> TensorEntry:
        """Return the entry of a parameter in the file of a source rank that contains it."""
        structure = self.structure_of[rank]
        entries = self._entries.get(structure)
        if entries is None:
            tensors = self._model.inventory.structures[structure].tensors
            entries = self._entries[structure] = dict(zip(map(attrgetter("name"), tensors), tensors, strict=True))
        return entries[name]


def shard_entry(parameter: Parameter, file: int, cell: Cell) -> TensorEntry:
    """Return an entry for a shard that metadata locates in a file. `cell` consists of the number of its tile."""
    assert parameter.shards is not None  # noqa: S101 - the caller asked
    (tile,) = cell
    shards = parameter.shards
    copy = shards.placement.copy_in(file, tile)
    extent = (int(shards.offsets[copy]), int(shards.lengths[copy]))
    return TensorEntry(parameter.source_name, parameter.dtype, shards.tiling.box(tile).shape, (extent,))


@lru_cache(maxsize=1 << 14)
def choose(groups: frozenset[Group], pivot: int, ranks: int) -> dict[Group, int]:
    """Choose one member of each group, with few distinct members in total.

    Args:
        groups: groups of ranks with equal content. No group is empty.
        pivot: rank at which the search starts. Among equally good ranks, the next one is chosen, to spread target ranks over
            the replicas.
        ranks: number of ranks. The search continues at rank 0 after the last rank.
    """
    chosen = _greedy(groups, pivot, ranks)
    smaller = _smaller(groups, len(chosen) - 1, pivot, ranks)
    if smaller is not None:
        chosen = smaller
    return {group: min((r for r in group if r in chosen), key=lambda r: (r - pivot) % ranks) for group in groups}


def _greedy(groups: frozenset[Group], pivot: int, ranks: int) -> set[int]:
    """Choose ranks without an alternative, then repeatedly the rank that serves most other groups, or the next after `pivot`."""
    chosen = {group[0] for group in groups if len(group) == 1}
    rest = {group for group in groups if chosen.isdisjoint(group)}
    served = Counter(rank for group in rest for rank in group)
    groups_of = defaultdict(list)
    for group in rest:
        for rank in group:
            groups_of[rank].append(group)
    heap = [(-count, (rank - pivot) % ranks, rank) for rank, count in served.items()]
    heapify(heap)
    while rest:
        count, distance, rank = heappop(heap)
        if -count > served[rank]:  # counts only shrink: an entry whose count is current is the first of all
            heappush(heap, (-served[rank], distance, rank))
            continue
        chosen.add(rank)
        done = rest.intersection(groups_of[rank])
        rest -= done
        served.subtract(other for group in done for other in group)
    return chosen


def _smaller(groups: frozenset[Group], most: int, pivot: int, ranks: int) -> set[int] | None:
    """Return at most `most` ranks that serve all groups, if a bounded search finds them."""
    forced = {group[0] for group in groups if len(group) == 1}
    rest = sorted((frozenset(group) for group in groups if forced.isdisjoint(group)), key=len)
    if not 2 <= len(rest) <= _SEARCHED_GROUPS or most < len(forced) + 1:
        return None
    steps = 0

    def search(chosen: set[int], left: list[frozenset[int]]) -> set[int] | None:
        nonlocal steps
        steps += 1
        if not left:
            return chosen
        if len(chosen) >= most or steps > _SEARCH_STEPS:
            return None
        for rank in sorted(left[0], key=lambda r: (r - pivot) % ranks):
            found = search(chosen | {rank}, [group for group in left if rank not in group])
            if found is not None:
                return found
        return None

    best = search(forced, rest)
    while best is not None and len(best) > len(forced) + 1 and steps <= _SEARCH_STEPS:
        most = len(best) - 1
        fewer = search(forced, rest)
        if fewer is None:
            break
        best = fewer
    return best
