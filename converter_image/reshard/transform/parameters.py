"""The parameters of a source, and the layouts that a layout file of the target gives them.

Transforms and the commands for layout files both use this module, so a check accepts what a transform accepts.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from reshard.checkpoint.dtypes import OBJECT
from reshard.errors import RequestError
from reshard.mesh.derive import derive
from reshard.mesh.evidence import Evidence, Meshed
from reshard.mesh.patterns import patterns_of
from reshard.mesh.problems import place
from reshard.mesh.resolve import Resolved, resolve
from reshard.mesh.sharding import Sharding, Whole
from reshard.model.tiling import Grid
from reshard.plan import Role

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reshard.mesh.file import LayoutFile
    from reshard.mesh.questions import Derivation
    from reshard.plan import Model
    from reshard.strategy import Strategy


@dataclass(frozen=True)
class Parameters:
    """The parameters of a source.

    Attributes:
        strategy: strategy of the source. None: its files locate the slices, or contain whole parameters.
        model: parameters of the source, as a target of one rank would hold them.
        selected: whether these are not all parameters of the checkpoint.
    """

    strategy: Strategy | None
    model: Model
    selected: bool = False

    @cached_property
    def tensors(self) -> Mapping[str, Whole]:
        """Whole tensors that a layout file must describe, by their names in the target: those that the source strategy names."""
        named = (p for p in self.model.parameters if p.dtype != OBJECT and (p.role is Role.CUT or self.strategy is None))
        return {p.name: Whole(p.target_dtype, p.target_shape) for p in named}

    def resolved(self, file: LayoutFile, witnesses: Sequence[Meshed] = (), *, incomplete: bool = False) -> Resolved:
        """Return the layouts of a layout file for these parameters.

        Args:
            file: layout file of the target.
            witnesses: other strategies of the same model, for `derive`.
            incomplete: whether parameters that no rule matches are returned instead of refused, if there is no other problem.

        Raises:
            DataError: a sharding does not divide a parameter evenly, or a strategy contradicts itself.
            RequestError: the layout file does not match a parameter, or the source does not determine its sharding.
            UsageError: the pipeline stages of the layout file contradict each other.
        """
        derivation = None if file.document.derive is None else self._derivation(file, witnesses)
        others = (p for p in self.model.parameters if p.name not in self.tensors and p.dtype != OBJECT)
        return resolve(
            file.document,
            self.tensors,
            file.name,
            derivation,
            unnamed={p.name: Whole(p.dtype, p.shape) for p in others},
            incomplete=incomplete,
            selected=self.selected,
        )

    def notes(self, file: LayoutFile, resolved: Resolved) -> tuple[str, ...]:
        """Return messages about a layout file, and about what was derived without certainty."""
        how = file.document.derive
        if how is None:
            return resolved.notes
        derived = {name: each.sharding for name, each in resolved.assigned.items() if each.rule is None}
        if self.strategy is not None:
            return (*_without_zero(file, self.strategy), *_orders(file, derived), *resolved.notes)
        numbers = Counter((axis, i) for each in derived.values() for i, cuts in enumerate(each.dims) for axis in cuts)
        found = [f"{axis} divides dimension {dimension} of {n} parameters" for (axis, dimension), n in sorted(numbers.items())]
        text = f"{file.name}: if the mesh of the source is {how.source_mesh}, {', '.join(found)}"
        return (*((text,) if found else ()), *resolved.notes)

    def _derivation(self, file: LayoutFile, witnesses: Sequence[Meshed]) -> Derivation:
        """Return the shardings that follow from the source's strategy, or from the slices that its metadata locates.

        Raises:
            RequestError: the source shows no slices, or has another mesh or another order of axes.
        """
        document, how = file.document, file.document.derive
        if how is None:
            raise ValueError("a layout file with `derive` is required")
        written = [p for p in self.model.parameters if p.name in self.tensors]
        renamed = {p.name: p.source_name for p in written if p.name != p.source_name}
        wholes = {p.source_name: Whole(p.dtype, p.shape) for p in written}
        source = (
            () if self.strategy is None else (Meshed(self.strategy, how.source_mesh, how.source_expert_mesh, "source strategy"),)
        )
        evidence = [each.evidence(wholes) for each in (*source, *witnesses)]
        experts = [found for each in (*source, *witnesses) for found in each.of_experts(wholes)]
        if self.strategy is None:
            shards = {p.source_name: p.shards.tiling for p in written if p.shards is not None}
            if not shards:
                raise RequestError(
                    "MeshUnknown",
                    "the source holds whole parameters, so it does not show which axes divide them",
                    where=file.name,
                    fix="replace `derive` by rules, or use the sharded checkpoint with its strategy as the source",
                )
            grids = {name: tiling for name, tiling in shards.items() if isinstance(tiling, Grid)}
            evidence.insert(0, Evidence.of_grids(grids, how.source_mesh))
            if how.source_expert_mesh:
                experts.insert(0, Evidence.of_grids(grids, how.source_expert_mesh))
        return derive(document, self.tensors, file.name, evidence, renamed, experts)


def _without_zero(file: LayoutFile, source: Strategy) -> list[str]:
    """Return a message if the source has optimizer parallelism and the target has none."""
    is_sharded = any(layout.shard_size and layout.shard_step for stage in source.stages for layout in stage.values())
    text = f"{file.name}: the source has optimizer parallelism, and the target has none; add `zero` if it should have it"
    return [text] if is_sharded and file.document.zero is None else []


def _orders(file: LayoutFile, derived: Mapping[str, Sharding]) -> list[str]:
    """Return messages about parameters that axes divide in another order than that of their mesh."""
    usual = {tuple(axis for axis, size in axes.items() if size > 1) for axes in (file.document.axes, file.document.expert_axes)}
    sizes = file.document.axes | file.document.expert_axes
    found: dict[tuple[str, ...], list[str]] = {}
    for name, each in derived.items():
        order = tuple(axis for axis in each.order if sizes[axis] > 1)
        if any(each.dims) and order not in usual:
            found.setdefault(order, []).append(name)
    return [
        f"{place(file.name, patterns_of(names, derived.keys() - {*names}))}: the source numbers the ranks in the order"
        f" {', '.join(order)}; if other axes divide these parameters, as in a mesh of experts, add `derive.sourceExpertMesh`"
        for order, names in found.items()
    ]
