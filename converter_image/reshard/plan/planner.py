"""Plan target ranks: which copy of each source slice a rank reads."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, compress, product
from typing import TYPE_CHECKING

import numpy as np

from reshard.errors import RequestError
from reshard.plan.balance import shares
from reshard.plan.columns import Tables, members_of
from reshard.plan.geometry import cells_of, composition, geometry_of_tiles, overlapping
from reshard.plan.model import Role
from reshard.plan.pad import within
from reshard.plan.rank import RankPlan, TensorGroup
from reshard.plan.replicas import Holders, choose

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from reshard.checkpoint.inventory import TensorEntry
    from reshard.layout.box import Box
    from reshard.plan.balance import Shares
    from reshard.plan.columns import Columns, Numbers
    from reshard.plan.geometry import Cell, Geometry
    from reshard.plan.model import Kind, Model, Parameter

    Needs = list[tuple[Cell, tuple[int, ...]]]  # source cells, and the ranks whose files contain each


@dataclass(frozen=True)
class Planner:
    """Plans the ranks of one model, and caches the data that ranks share.

    Attributes:
        model: parameters and decisions for all ranks.
        remove_redundancy: whether each replicated slice is written by one rank, instead of by all ranks that hold it, so that
            MindSpore's loader passes it on to the others.
        once: whether each slice is written by one rank in any case.
    """

    model: Model
    remove_redundancy: bool = False
    once: bool = False

    def plan(self, rank: int) -> RankPlan:
        """Return the plan of a target rank.

        Raises:
            MissingInputError: no source file contains a required slice.
            RequestError: the rank does not exist.
        """
        return self.plans((rank,))[0]

    def plans(self, ranks: Sequence[int]) -> tuple[RankPlan, ...]:
        """Return the plans of target ranks that read the same copy of each slice that several of them need.

        Raises:
            MissingInputError: no source file contains a required slice.
            RequestError: a rank does not exist.
        """
        needed = [self._needs(rank) for rank in ranks]
        picks = self._picks(ranks[0], chain.from_iterable(each.values() for each in needed))
        return tuple(self._plan(rank, each, picks) for rank, each in zip(ranks, needed, strict=True))

    def _plan(self, rank: int, needed: dict[Kind, Needs], picks: dict[tuple[int, ...], int]) -> RankPlan:
        names, groups = self._of_rank(self._names_of_group, rank), []
        for kind, numbers in self.members(rank).items():
            found, ranks = _slice(kind, kind.box(rank % self.model.target_devices), needed[self.like(kind)], picks)
            positions = () if kind.placement is not None else self._positions(ranks, names[numbers])
            groups.append(TensorGroup(kind, numbers, found, ranks, positions))
        return RankPlan(rank, self.parameters(rank), self._of_rank(self._positions_of_group, rank), tuple(groups), self._tables)

    def _positions(self, ranks: tuple[int, ...], names: Numbers) -> tuple[Numbers, ...]:
        """Return the positions of entries with these names in the structures of the files of source ranks."""
        found: dict[Columns, Numbers] = {}
        for columns in map(self._tables.of_rank, ranks):
            if columns not in found:
                found[columns] = columns.find(names)
        return tuple(found[self._tables.of_rank(rank)] for rank in ranks)

    def sources(self, rank: int) -> tuple[int, ...]:
        """Return the source ranks that a target rank reads, in ascending order, without planning its copies."""
        return tuple(sorted(set(self.picks(rank).values())))

    def check_slices(self) -> None:
        """Check that the source's files contain every slice that any target rank needs, without planning the ranks.

        Raises:
            MissingInputError: no source file contains a slice.
        """
        for kind in dict.fromkeys(map(self.like, self.model.kinds)):
            if kind.source is not None:  # shards that metadata locates are proved to be complete
                for cell in product(*map(range, kind.source.parts)):
                    self._holders.of_cell(kind, cell)

    def locate(self, parameter: Parameter, box: Box) -> Iterator[tuple[int, TensorEntry, Box]]:
        """Yield the source slices that contain elements of a box of a source parameter.

        Yields:
            A source rank, its entry of the parameter, and the elements, relative to the start of the rank's slice.

        Raises:
            MissingInputError: no source file contains a slice.
        """
        found = composition(parameter.kind, box)
        for cell, overlap in zip(found.cells, found.overlaps, strict=True):
            rank = self._group_of_cell(parameter.kind, cell)[0]
            yield rank, self._holders.entry_of(rank, parameter, cell), overlap.source

    def _group_of_cell(self, kind: Kind, cell: Cell) -> tuple[int, ...]:
        """Return the ranks whose files contain a source slice."""
        if kind.placement is not None:
            return kind.placement.files_of(cell[0])
        if kind.source is None:
            return self._holders.of_structures(kind.structures)[0]
        return self._holders.of_cell(kind, cell)

    def picks(self, rank: int) -> dict[tuple[int, ...], int]:
        """Return the rank to read from, for each group of source ranks that hold the same required slice."""
        return self._picks(rank, self._needs(rank).values())

    def _needs(self, rank: int) -> dict[Kind, Needs]:
        """Return what a target rank requires of the parameters of each kind, see `like` and `needs`."""
        model = self.model
        if not 0 <= rank < model.target_ranks:
            raise RequestError(
                "NoSuchRank",
                f"target rank {rank} does not exist; the number of target ranks is {model.target_ranks}",
                where="ranks",
                fix=f"use ranks below {model.target_ranks}",
            )
        return {kind: self.needs(kind, rank) for kind in {self.like(kind) for kind in self.members(rank)}}

    def _picks(self, rank: int, needed: Iterable[Needs]) -> dict[tuple[int, ...], int]:
        model = self.model
        groups = {group for each in needed for _, group in each}
        if model.lowest_replica:
            return {group: group[0] for group in groups}
        pivot = rank * model.source_ranks // model.target_ranks
        return self._choose_by_stage(groups, pivot)

    def needs(self, kind: Kind, rank: int) -> Needs:
        """Return the source cells that a target rank requires of a parameter, with the ranks whose files contain each."""
        local = rank % self.model.target_devices
        if kind.placement is not None:
            tiles = kind.placement.tiling.intersecting(within(kind.box(local), kind.shape))
            return [((tile,), kind.placement.files_of(tile)) for tile in tiles]
        if kind.source is None:
            if not within(kind.box(local), kind.shape).size and kind.new_shape is not None:
                return []
            group = (rank,) if kind.role is Role.OWN else self._replica_group(kind, rank)
            return [((0,) * len(kind.shape), group)]
        if kind.target.uneven or kind.new_shape is not None:
            cells = cells_of(kind.shape, kind.source.parts, within(kind.box(local), kind.shape))
        else:
            cells = overlapping(kind.target.parts, kind.target.cells[local], kind.source.parts)
        return [(cell, self._holders.of_cell(kind, cell)) for cell in cells]

    def parameters(self, rank: int) -> tuple[Parameter, ...]:
        """Return the parameters of a target rank's file, in the order of the model."""
        found = self.parameters_of_group[self._group(rank)]
        return tuple(compress(found, self._share(rank))) if self.divides else found

    def members(self, rank: int) -> Mapping[Kind, Numbers]:
        """Return the positions of the parameters of each kind among those of a target rank's file, ascending."""
        found = self.members_of_group[self._group(rank)]
        if not self.divides:
            return found
        share = np.asarray(self._share(rank))
        at = np.cumsum(share) - 1
        divided = ((kind, at[numbers[share[numbers]]]) for kind, numbers in found.items())
        return {kind: numbers for kind, numbers in divided if len(numbers)}

    def like(self, kind: Kind) -> Kind:
        """Return the first kind of the model that is like a kind: every target rank needs the same cells from the same ranks."""
        return self._likes[kind]

    def alike(self, rank: int) -> int:
        """Return the first target rank with the same parameters in slices of the same shapes, which need equally many bytes."""
        if self.model.same:
            return self._holders.ranks_of[self._holders.structure_of[rank]][0]
        return rank if self.divides or self._uneven else rank - rank % self.model.target_devices

    def _group(self, rank: int) -> int:
        """Return a key that is equal for ranks that may have the same parameters."""
        return self._holders.structure_of[rank] if self.model.same else rank // self.model.target_devices

    def _share(self, rank: int) -> Sequence[bool]:
        """Return whether a rank writes each parameter of its stage."""
        stage, local = divmod(rank, self.model.target_devices)
        share: Sequence[bool] = self.shares[stage][local]
        return share

    @property
    def divides(self) -> bool:
        """Whether only one of the ranks that hold a slice writes it."""
        return self.remove_redundancy or self.once

    @property
    def each_once(self) -> bool:
        """Whether the target has each slice once, so that ranks cannot have copies of their own."""
        return self.model.unified or self.once

    @cached_property
    def _uneven(self) -> bool:
        """Whether ranks may hold different numbers of elements of a parameter, or need different numbers of the source's."""
        return any(kind.target.uneven or kind.new_shape is not None for kind in self.model.kinds)

    @cached_property
    def _holders(self) -> Holders:
        return Holders(self.model)

    @cached_property
    def shares(self) -> tuple[Shares, ...]:
        """Which ranks of each target stage write each parameter, if each slice is written once."""
        return tuple(shares(parameters, self.model.target_devices, every=self.once) for parameters in self.parameters_of_group)

    def writers(self, stage: int, number: int, members: tuple[int, ...]) -> tuple[int, ...]:
        """Return those of some ranks of a target stage that write a parameter."""
        if not self.divides:
            return members
        share = self.shares[stage][:, number]
        return tuple(member for member in members if share[member])

    @cached_property
    def read_again(self) -> frozenset[str]:
        """Names of source tensors that several parameters are made of, because target stages have different layouts."""
        names = [parameter.source_name for parameter in self.model.parameters]
        if len(set(names)) == len(names):
            return frozenset()
        return frozenset(name for name, count in Counter(names).items() if count > 1)

    @cached_property
    def parameters_of_group(self) -> tuple[tuple[Parameter, ...], ...]:
        """Parameters of each target stage. If ranks keep their own tensors: of each structure of the source."""
        parameters = self.model.parameters
        if len(self._positions_of_group) == 1 and not self.model.same:
            return (parameters,)
        return tuple(tuple([parameters[at] for at in positions.tolist()]) for positions in self._positions_of_group)

    @cached_property
    def _positions_of_group(self) -> tuple[Numbers, ...]:
        """Positions in the model of the parameters of each group, ascending."""
        model = self.model
        count = len(model.inventory.structures) if model.same else model.target_stages
        if count == 1 and not model.same:
            return (np.arange(len(model.parameters)),)
        groups: list[list[int]] = [[] for _ in range(count)]
        for number, parameter in enumerate(model.parameters):
            for group in parameter.kind.structures if model.same else parameter.kind.target_stages:
                groups[group].append(number)
        return tuple(np.array(group, np.int64) for group in groups)

    @cached_property
    def members_of_group(self) -> tuple[dict[Kind, Numbers], ...]:
        """Positions of the parameters of each kind among those of a group, ascending."""
        found = []
        for parameters in self.parameters_of_group:
            kinds: dict[Kind, int] = {}
            numbers = [kinds.setdefault(parameter.kind, len(kinds)) for parameter in parameters]
            found.append(dict(zip(kinds, members_of(numbers, len(kinds)), strict=True)))
        return tuple(found)

    def _of_rank(self, of_groups: Sequence[Numbers], rank: int) -> Numbers:
        """Return the numbers of the parameters of a target rank's file, given those of each group."""
        found = of_groups[self._group(rank)]
        return found[np.asarray(self._share(rank))] if self.divides else found

    @cached_property
    def _names_of_group(self) -> tuple[Numbers, ...]:
        """The number of the source name of each parameter of each group."""
        return tuple(map(self._tables.names, self.parameters_of_group))

    @cached_property
    def _tables(self) -> Tables:
        return Tables(self.model.inventory, self.model.parameters)

    def release(self) -> None:
        """Release the entries of the source's files. The next plan creates them again."""
        self.__dict__.pop("_tables", None)

    @cached_property
    def _likes(self) -> dict[Kind, Kind]:
        first: dict[tuple[object, ...], Kind] = {}
        return {kind: first.setdefault(_needed_alike(kind), kind) for kind in self.model.kinds}

    def _replica_group(self, kind: Kind, rank: int) -> tuple[int, ...]:
        """Return the source ranks with equal copies, any of which may be read.

        If copies may differ, target rank r gets the copy of source rank r modulo the number of source ranks. If that rank has no
        copy, or if the target has each slice once, the copy of the first rank that has one is used.
        """
        holding, as_set = self._holders.of_structures(kind.structures)
        if not kind.per_rank:
            return holding
        same = self.model.first_rank + rank % self.model.source_ranks
        return (same,) if not self.each_once and same in as_set else holding[:1]

    def _choose_by_stage(self, groups: Iterable[tuple[int, ...]], pivot: int) -> dict[tuple[int, ...], int]:
        """Choose ranks for groups within one source stage, in the same way for every stage, then for groups across stages."""
        devices = self.model.source_devices
        by_stage: dict[int, list[tuple[int, ...]]] = defaultdict(list)
        wide = []
        for group in groups:
            stage = group[0] // devices
            if group[-1] // devices == stage:
                by_stage[stage].append(group)
            else:
                wide.append(group)
        picks: dict[tuple[int, ...], int] = {}
        for stage, found in by_stage.items():
            picks |= choose(frozenset(found), stage * devices + pivot % devices, self.model.source_ranks)
        if wide:
            taken = set(picks.values())
            left = [group for group in wide if taken.isdisjoint(group)]
            picks |= choose(frozenset(left), pivot, self.model.source_ranks) if left else {}
            taken |= set(picks.values())
            for group in wide:
                if group not in picks:
                    picks[group] = min(taken.intersection(group), key=lambda r: (r - pivot) % self.model.source_ranks)
        return picks


def _needed_alike(kind: Kind) -> tuple[object, ...]:
    """Return a key that is equal for kinds of which every target rank needs the same cells from the same source ranks."""
    if kind.placement is not None:
        return (id(kind.placement), kind.target, kind.new_shape)  # the kind keeps the placement alive
    shapes = (kind.shape, kind.new_shape) if kind.target.uneven or kind.new_shape is not None else None
    return (kind.source, kind.source_stages, kind.target, kind.structures, kind.per_rank, shapes)


def _slice(kind: Kind, box: Box, needed: Needs, picks: dict[tuple[int, ...], int]) -> tuple[Geometry, tuple[int, ...]]:
    """Return the composition of a target rank's slice of a parameter, and the source rank of each overlap."""
    if kind.placement is not None:
        tiles = [tile for (tile,), _ in needed]
        return geometry_of_tiles(kind.shape, kind.placement.tiling, box, tiles), tuple(picks[group] for _, group in needed)
    found, chosen = composition(kind, box), {cell: picks[group] for cell, group in needed}
    return found, tuple(chosen[cell] for cell in found.cells)
