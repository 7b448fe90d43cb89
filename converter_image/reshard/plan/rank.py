"""The plan of one target rank: the source ranks and boxes of each tensor."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from itertools import compress, product
from typing import TYPE_CHECKING

from reshard.checkpoint.dtypes import DTYPES
from reshard.errors import BugError, RequestError
from reshard.plan.balance import shares
from reshard.plan.geometry import Geometry, cells_of, composition, geometry_of_tiles, overlapping
from reshard.plan.geometry import prove as prove_geometry
from reshard.plan.model import Role
from reshard.plan.pad import within
from reshard.plan.replicas import Holders, choose

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from reshard.checkpoint.inventory import TensorEntry
    from reshard.layout.box import Box
    from reshard.plan.balance import Shares
    from reshard.plan.geometry import Cell
    from reshard.plan.model import Model, Parameter

    Needs = list[tuple[Cell, tuple[int, ...]]]  # source cells, and the ranks whose files contain each


@dataclass(frozen=True, slots=True)
class TargetTensor:
    """One tensor of the target file.

    Attributes:
        parameter: parameter that the tensor is a slice of.
        geometry: composition of the slice from source slices.
        ranks: source rank to read from, for each overlap of the geometry.
        entries: entry of the parameter in that rank's file, for each overlap.
    """

    parameter: Parameter
    geometry: Geometry
    ranks: tuple[int, ...]
    entries: tuple[TensorEntry, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the slice, in elements."""
        return self.geometry.box.shape

    @property
    def nbytes(self) -> int:
        """Bytes of the slice in the source's type."""
        return self.geometry.box.size * DTYPES[self.parameter.dtype].itemsize

    @property
    def written_nbytes(self) -> int:
        """Bytes of the slice in the target's type."""
        return self.geometry.box.size * DTYPES[self.parameter.target_dtype].itemsize


@dataclass(frozen=True, slots=True)
class RankPlan:
    """The tensors of one target rank's file."""

    rank: int
    tensors: tuple[TargetTensor, ...]

    @property
    def sources(self) -> tuple[int, ...]:
        """Source ranks that are read, in ascending order."""
        return tuple(sorted({rank for tensor in self.tensors for rank in tensor.ranks}))


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
        needed = self._needs_of_kinds(rank)
        picks = self._picks(rank, needed)
        local = rank % self.model.target_devices
        made: dict[tuple[int, tuple[int, ...]], tuple[Geometry, tuple[int, ...]]] = {}
        tensors = []
        for parameter, kind in zip(self.parameters(rank), self.kinds(rank), strict=True):
            alike = made.get((kind, parameter.shape))
            if alike is None:
                alike = made[kind, parameter.shape] = _slice(parameter, parameter.box(local), needed[kind], picks)
            found, ranks = alike
            entries = tuple(self._holders.entry_of(r, parameter, cell) for r, cell in zip(ranks, found.cells, strict=True))
            tensors.append(TargetTensor(parameter, found, ranks, entries))
        return RankPlan(rank, tuple(tensors))

    def sources(self, rank: int) -> tuple[int, ...]:
        """Return the source ranks that a target rank reads, in ascending order, without planning its copies."""
        return tuple(sorted(set(self.picks(rank).values())))

    def check_slices(self) -> None:
        """Check that the source's files contain every slice that any target rank needs, without planning the ranks.

        Raises:
            MissingInputError: no source file contains a slice.
        """
        for parameter in self.examples:
            if parameter.source is not None:  # shards that metadata locates are proved to be complete
                for cell in product(*map(range, parameter.source.parts)):
                    self._holders.of_cell(parameter, cell)

    def locate(self, parameter: Parameter, box: Box) -> Iterator[tuple[int, TensorEntry, Box]]:
        """Yield the source slices that contain elements of a box of a source parameter.

        Yields:
            A source rank, its entry of the parameter, and the elements, relative to the start of the rank's slice.

        Raises:
            MissingInputError: no source file contains a slice.
        """
        found = composition(parameter, box)
        for cell, overlap in zip(found.cells, found.overlaps, strict=True):
            rank = self._group_of_cell(parameter, cell)[0]
            yield rank, self._holders.entry_of(rank, parameter, cell), overlap.source

    def _group_of_cell(self, parameter: Parameter, cell: Cell) -> tuple[int, ...]:
        """Return the ranks whose files contain a source slice."""
        if parameter.shards is not None:
            return parameter.shards.files_of(cell[0])
        if parameter.source is None:
            return self._holders.of_structures(parameter.structures)[0]
        return self._holders.of_cell(parameter, cell)

    def picks(self, rank: int) -> dict[tuple[int, ...], int]:
        """Return the rank to read from, for each group of source ranks that hold the same required slice."""
        return self._picks(rank, self._needs_of_kinds(rank))

    def _needs_of_kinds(self, rank: int) -> dict[int, Needs]:
        """Return what a target rank requires of the parameters of each kind, see `needs`."""
        model = self.model
        if not 0 <= rank < model.target_ranks:
            raise RequestError(
                "NoSuchRank",
                f"target rank {rank} does not exist; the number of target ranks is {model.target_ranks}",
                where="ranks",
                fix=f"use ranks below {model.target_ranks}",
            )
        return {kind: self.needs(self.examples[kind], rank) for kind in set(self.kinds(rank))}

    def _picks(self, rank: int, needed: dict[int, Needs]) -> dict[tuple[int, ...], int]:
        model = self.model
        groups = {group for each in needed.values() for _, group in each}
        if model.lowest_replica:
            return {group: group[0] for group in groups}
        pivot = rank * model.source_ranks // model.target_ranks
        return self._choose_by_stage(groups, pivot)

    def needs(self, parameter: Parameter, rank: int) -> Needs:
        """Return the source cells that a target rank requires of a parameter, with the ranks whose files contain each."""
        local = rank % self.model.target_devices
        if parameter.shards is not None:
            tiles = parameter.shards.tiling.intersecting(within(parameter.box(local), parameter.shape))
            return [((tile,), parameter.shards.files_of(tile)) for tile in tiles]
        if parameter.source is None:
            if not within(parameter.box(local), parameter.shape).size and parameter.new_shape is not None:
                return []
            group = (rank,) if parameter.role is Role.OWN else self._replica_group(parameter, rank)
            return [((0,) * len(parameter.shape), group)]
        if parameter.target.uneven or parameter.new_shape is not None:
            cells = cells_of(parameter.shape, parameter.source.parts, within(parameter.box(local), parameter.shape))
        else:
            cells = overlapping(parameter.target.parts, parameter.target.cells[local], parameter.source.parts)
        return [(cell, self._holders.of_cell(parameter, cell)) for cell in cells]

    def parameters(self, rank: int) -> tuple[Parameter, ...]:
        """Return the parameters of a target rank's file, in the order of the model."""
        found = self._parameters_of_group[self._group(rank)]
        return tuple(compress(found, self._share(rank))) if self._divides else found

    def kinds(self, rank: int) -> tuple[int, ...]:
        """Return the kind of each parameter, as a position in `examples`.

        For parameters of the same kind, every target rank needs the same cells from the same source ranks.
        """
        found = self._kinds_of_group[self._group(rank)]
        return tuple(compress(found, self._share(rank))) if self._divides else found

    def alike(self, rank: int) -> int:
        """Return the first target rank with the same parameters in slices of the same shapes."""
        if self.model.same:
            return self._holders.ranks_of[self._holders.structure_of[rank]][0]
        return rank if self._divides or self._uneven else rank - rank % self.model.target_devices

    def _group(self, rank: int) -> int:
        """Return a key that is equal for ranks that may have the same parameters."""
        return self._holders.structure_of[rank] if self.model.same else rank // self.model.target_devices

    def _share(self, rank: int) -> Sequence[bool]:
        """Return whether a rank writes each parameter of its stage."""
        stage, local = divmod(rank, self.model.target_devices)
        share: Sequence[bool] = self._shares[stage][local]
        return share

    @property
    def _divides(self) -> bool:
        """Whether only one of the ranks that hold a slice writes it."""
        return self.remove_redundancy or self.once

    @cached_property
    def _uneven(self) -> bool:
        """Whether slices of a parameter may have different shapes."""
        return any(parameter.target.uneven for parameter in self.model.parameters)

    @cached_property
    def _holders(self) -> Holders:
        return Holders(self.model)

    @cached_property
    def _shares(self) -> tuple[Shares, ...]:
        return tuple(shares(parameters, self.model.target_devices, every=self.once) for parameters in self._parameters_of_group)

    @cached_property
    def _parameters_of_group(self) -> tuple[tuple[Parameter, ...], ...]:
        model = self.model
        count = len(model.inventory.structures) if model.same else model.target_stages
        groups: list[list[Parameter]] = [[] for _ in range(count)]
        for parameter in model.parameters:
            for group in parameter.structures if model.same else parameter.target_stages:
                groups[group].append(parameter)
        return tuple(map(tuple, groups))

    @cached_property
    def _kinds_of_group(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(self._kinds[self._kind(p)] for p in parameters) for parameters in self._parameters_of_group)

    @cached_property
    def examples(self) -> tuple[Parameter, ...]:
        """Return one parameter of each kind."""
        first = {self._kind(p): p for p in reversed(self.model.parameters)}
        return tuple(first[kind] for kind in self._kinds)

    @cached_property
    def _kinds(self) -> dict[tuple[object, ...], int]:
        kinds: dict[tuple[object, ...], int] = {}
        for parameter in self.model.parameters:
            kinds.setdefault(self._kind(parameter), len(kinds))
        return kinds

    def _kind(self, parameter: Parameter) -> tuple[object, ...]:
        if parameter.shards is not None:
            return (id(parameter.shards), parameter.target, parameter.new_shape)  # the model keeps the shards alive
        per_rank = parameter.name in self.model.per_rank
        shapes = (parameter.shape, parameter.new_shape) if parameter.target.uneven or parameter.new_shape is not None else None
        return (parameter.source, parameter.source_stages, parameter.target, parameter.structures, per_rank, shapes)

    def _replica_group(self, parameter: Parameter, rank: int) -> tuple[int, ...]:
        """Return the source ranks with equal copies, any of which may be read.

        If copies may differ, target rank r gets the copy of source rank r modulo the number of source ranks. If that rank has no
        copy, or if the target is a unified checkpoint, the copy of the first rank that has one is used.
        """
        holding, as_set = self._holders.of_structures(parameter.structures)
        if parameter.name not in self.model.per_rank:
            return holding
        same = self.model.first_rank + rank % self.model.source_ranks
        return (same,) if not self.model.unified and same in as_set else holding[:1]

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


def _slice(parameter: Parameter, box: Box, needed: Needs, picks: dict[tuple[int, ...], int]) -> tuple[Geometry, tuple[int, ...]]:
    """Return the composition of a target rank's slice of a parameter, and the source rank of each overlap."""
    if parameter.shards is not None:
        tiles = [tile for (tile,), _ in needed]
        return geometry_of_tiles(parameter.shape, parameter.shards.tiling, box, tiles), tuple(picks[group] for _, group in needed)
    found, chosen = composition(parameter, box), {cell: picks[group] for cell, group in needed}
    return found, tuple(chosen[cell] for cell in found.cells)


def prove(plan: RankPlan) -> None:
    """Check that every element of each tensor is copied exactly once, from a file that contains it.

    Raises:
        BugError: the check fails.
    """
    for each in {id(tensor.geometry): tensor.geometry for tensor in plan.tensors}.values():
        prove_geometry(each)
    for tensor in plan.tensors:
        name, dtype, overlaps = tensor.parameter.source_name, tensor.parameter.dtype, tensor.geometry.overlaps
        exact = len(tensor.entries) == len(overlaps)
        if not exact or any(
            (e.name, e.dtype, e.shape) != (name, dtype, o.source_shape) for e, o in zip(tensor.entries, overlaps, strict=True)
        ):
            raise BugError(
                "PlanNotExact",
                f"the planned copies for rank {plan.rank} do not match the files",
                where=f"parameter {tensor.parameter.name}",
                fix="this is a bug in reshard: please report it with both strategy files",
            )
