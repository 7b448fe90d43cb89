"""The plan of one target rank: for each of its tensors the copies that make it up. Pure."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from reshard.box import Box
from reshard.errors import BugError, MissingInputError, RequestError
from reshard.layout import Layout, cell_box
from reshard.plan.overlap import overlapping
from reshard.plan.replicas import choose

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reshard.checkpoint.inventory import TensorEntry
    from reshard.plan.parameters import Model, Parameter


@dataclass(frozen=True, slots=True)
class Copy:
    """Elements that come from one source file.

    Attributes:
        rank: the source rank that is read.
        entry: the parameter in that rank's file.
        source: the elements, counted from the start of the source's slice.
        target: the same elements, counted from the start of the target's slice.
    """

    rank: int
    entry: TensorEntry
    source: Box
    target: Box


@dataclass(frozen=True, slots=True)
class TargetTensor:
    """One tensor of the target file.

    Attributes:
        parameter: what it is a slice of.
        box: which elements of the whole tensor.
        copies: together exactly these elements, in order of their first element.
    """

    parameter: Parameter
    box: Box
    copies: tuple[Copy, ...]


@dataclass(frozen=True, slots=True)
class RankPlan:
    """All that one target rank's file is made of."""

    rank: int
    tensors: tuple[TargetTensor, ...]

    @property
    def sources(self) -> tuple[int, ...]:
        """The source ranks that are read, ascending."""
        return tuple(sorted({copy.rank for tensor in self.tensors for copy in tensor.copies}))


@dataclass(frozen=True)
class Planner:
    """Plans ranks of one model; what they have in common is worked out once."""

    model: Model
    _entries: dict[int, dict[str, TensorEntry]] = field(default_factory=dict, repr=False)

    def plan(self, rank: int) -> RankPlan:
        """The plan of a target rank.

        Raises:
            MissingInputError: no source file has a part that is needed.
            RequestError: there is no such rank.
        """
        picks = self.picks(rank)
        stage = rank // self.model.target_devices
        return RankPlan(rank, tuple(self._tensor(p, rank, picks) for p in self.parameters_of_stage[stage]))

    def sources(self, rank: int) -> tuple[int, ...]:
        """The source ranks that a target rank reads, ascending; without planning its copies."""
        return tuple(sorted(set(self.picks(rank).values())))

    def picks(self, rank: int) -> dict[tuple[int, ...], int]:
        """For each group of source ranks that hold something this rank needs, the one to read it from."""
        model = self.model
        if not 0 <= rank < model.target_ranks:
            raise RequestError("NoSuchRank", f"target rank {rank} does not exist, there are {model.target_ranks}", where="ranks")
        needed: set[tuple[int, ...]] = set()
        for parameter in self._kinds_of_stage[rank // model.target_devices]:
            needed.update(group for _, group in self.needs(parameter, rank))
        pivot = rank * model.source_ranks // model.target_ranks
        return self._choose_by_stage(needed, pivot)

    def needs(self, parameter: Parameter, rank: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """The source cells that a target rank needs of a parameter, each with the source ranks whose files hold it."""
        if parameter.source is None:
            return [((0,) * len(parameter.shape), self._replica_group(parameter, rank))]
        cells = overlapping(
            parameter.target.parts, parameter.target.cells[rank % self.model.target_devices], parameter.source.parts
        )
        return [(cell, self._holders(parameter, cell)) for cell in cells]

    @cached_property
    def parameters_of_stage(self) -> tuple[tuple[Parameter, ...], ...]:
        """For each target stage the parameters that its ranks get."""
        stages: list[list[Parameter]] = [[] for _ in range(self.model.target_stages)]
        for parameter in self.model.parameters:
            for stage in parameter.target_stages:
                stages[stage].append(parameter)
        return tuple(map(tuple, stages))

    @cached_property
    def _kinds_of_stage(self) -> tuple[tuple[Parameter, ...], ...]:
        """For each target stage one parameter of each kind: those of a kind are held and needed alike."""
        return tuple(tuple({self.kind(p): p for p in parameters}.values()) for parameters in self.parameters_of_stage)

    def kind(self, parameter: Parameter) -> tuple[object, ...]:
        """Equal for parameters of which every target rank needs the same cells from the same source ranks."""
        diverges = parameter.name in self.model.diverging
        return (parameter.source, parameter.source_stages, parameter.target, parameter.structures, diverges)

    @cached_property
    def _ranks_by_structure(self) -> dict[int, tuple[int, ...]]:
        ranks: dict[int, list[int]] = defaultdict(list)
        for file in self.model.inventory.files:
            ranks[file.structure].append(file.rank)
        return {structure: tuple(found) for structure, found in ranks.items()}

    @cached_property
    def _structure_by_rank(self) -> dict[int, int]:
        return {file.rank: file.structure for file in self.model.inventory.files}

    @cached_property
    def _groups(self) -> dict[object, tuple[int, ...]]:
        return {}

    def _holding(self, structures: tuple[int, ...]) -> tuple[int, ...]:
        """The source ranks whose files have one of these structures, ascending."""
        found = self._groups.get(structures)
        if found is None:
            found = tuple(sorted(rank for structure in structures for rank in self._ranks_by_structure[structure]))
            self._groups[structures] = found
        return found

    def _replica_group(self, parameter: Parameter, rank: int) -> tuple[int, ...]:
        """Copies that differ are of their rank: a target rank takes that of the same number, going round, where there is one."""
        holding = self._holding(parameter.structures)
        same = rank % self.model.source_ranks
        if parameter.name in self.model.diverging:
            return (same,) if same in set(holding) else holding[:1]
        return holding

    def _holders(self, parameter: Parameter, cell: tuple[int, ...]) -> tuple[int, ...]:
        key = (parameter.source, parameter.source_stages, parameter.structures, cell)
        group = self._groups.get(key)
        if group is None:
            group = self._find_holders(parameter, cell)
            self._groups[key] = group
        return group

    def _find_holders(self, parameter: Parameter, cell: tuple[int, ...]) -> tuple[int, ...]:
        layout = parameter.source
        assert layout is not None  # noqa: S101 - the caller asked
        holding = self._holding_set(parameter.structures)
        for stage in parameter.source_stages:
            first = stage * self.model.source_devices
            group = tuple(first + rank for rank in layout.holders[cell] if first + rank in holding)
            if group:
                return group
        ranks = [parameter.source_stages[0] * self.model.source_devices + rank for rank in layout.holders[cell]]
        raise MissingInputError(
            "ShardMissing",
            f"the part {list(cell)} of {list(layout.parts)} is in no file; rank {', '.join(map(str, ranks[:8]))} should have it",
            where=f"parameter {parameter.name}",
            fix="restore the missing files, or give the strategy that the source was trained with",
        )

    def _holding_set(self, structures: tuple[int, ...]) -> frozenset[int]:
        key = ("set", structures)
        found = self._sets.get(key)
        if found is None:
            found = self._sets[key] = frozenset(self._holding(structures))
        return found

    @cached_property
    def _sets(self) -> dict[object, frozenset[int]]:
        return {}

    def _choose_by_stage(self, groups: Iterable[tuple[int, ...]], pivot: int) -> dict[tuple[int, ...], int]:
        """Groups within one source stage are a question of their own, the same in each; the others follow what is chosen."""
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

    def _tensor(self, parameter: Parameter, rank: int, picks: dict[tuple[int, ...], int]) -> TargetTensor:
        rank_box = parameter.target.box(parameter.shape, rank % self.model.target_devices)
        layout = parameter.source or Layout.whole(len(parameter.shape))
        copies = []
        for cell, group in self.needs(parameter, rank):
            source_box = cell_box(parameter.shape, layout.parts, cell)
            common = rank_box.intersect(source_box)
            if common is None:  # only of a tensor without elements
                continue
            source_rank = picks[group]
            copies.append(
                Copy(
                    source_rank,
                    self._entry(source_rank, parameter.name),
                    common.relative_to(source_box.start),
                    common.relative_to(rank_box.start),
                )
            )
        return TargetTensor(parameter, rank_box, tuple(copies))

    def _entry(self, rank: int, name: str) -> TensorEntry:
        structure = self._structure_by_rank[rank]
        entries = self._entries.get(structure)
        if entries is None:
            entries = {entry.name: entry for entry in self.model.inventory.structures[structure].tensors}
            self._entries[structure] = entries
        return entries[name]


def prove(plan: RankPlan) -> None:
    """Check that the copies of each tensor lie within it, do not overlap, and leave no element out.

    Independent of how they were found: volumes must add up, and no two may intersect.

    Raises:
        BugError: they do not.
    """
    for tensor in plan.tensors:
        whole = Box.whole(tensor.box.shape)
        inside = all(whole.intersect(copy.target) == copy.target for copy in tensor.copies)
        fits = all(
            copy.source.shape == copy.target.shape and Box.whole(copy.entry.shape).intersect(copy.source) == copy.source
            for copy in tensor.copies
        )
        if not (inside and fits and sum(copy.target.size for copy in tensor.copies) == whole.size and _disjoint(tensor.copies)):
            raise BugError(
                "PlanNotExact",
                f"the copies planned for rank {plan.rank} do not cover it exactly once",
                where=f"parameter {tensor.parameter.name}",
                fix="please report this with both strategy files",
            )


def _disjoint(copies: tuple[Copy, ...]) -> bool:
    """Swept along the dimension that is cut most, so that only neighbours are compared."""
    boxes = [copy.target for copy in copies]
    if len(boxes) < 2:
        return True
    if not boxes[0].start:
        return False
    axis = max(range(len(boxes[0].start)), key=lambda i: len({box.start[i] for box in boxes}))
    open_boxes: list[Box] = []
    for box in sorted(boxes, key=lambda b: b.start[axis]):
        open_boxes = [other for other in open_boxes if other.start[axis] + other.shape[axis] > box.start[axis]]
        if any(box.intersect(other) for other in open_boxes):
            return False
        open_boxes.append(box)
    return True
