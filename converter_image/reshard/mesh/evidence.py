"""The evidence of a strategy, or of a checkpoint whose metadata locates its slices, about the axes that divide parameters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from reshard.errors import RequestError
from reshard.layout import ALL_OF_GROUP
from reshard.mesh.patterns import owner_of
from reshard.mesh.readings import Observation, default_intervals, intervals
from reshard.model.tiling import Grid
from reshard.spec.layout import PIPELINE_AXIS, axes_and_sizes

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from reshard.layout import Layout
    from reshard.mesh.sharding import Whole
    from reshard.spec.layout import Mesh
    from reshard.strategy import Strategy


def checked_mesh(strategy: Strategy, mesh: Mesh, where: str) -> tuple[dict[str, int], int]:
    """Return the sizes of the axes of one stage of a strategy, outermost first, and the number of stages.

    Raises:
        RequestError: the mesh has other numbers of ranks or stages than the strategy.
    """
    sizes = axes_and_sizes(mesh)
    number = sizes.pop(PIPELINE_AXIS, 1)
    stages = len(strategy.stages) - len(strategy.repeated_stages)
    if number not in (stages, len(strategy.stages)) or prod(sizes.values()) != strategy.devices:
        raise RequestError(
            "MeshMismatch",
            f"the mesh {mesh} has {number} pipeline stages of {prod(sizes.values())} ranks, but the strategy has"
            f" {stages} of {strategy.devices}",
            where=where,
            fix="correct the mesh of this strategy; `pp` is the number of pipeline stages",
        )
    return sizes, number


@dataclass(frozen=True, slots=True)
class Meshed:
    """A strategy, with the axes of its ranks.

    Attributes:
        strategy: layouts of all stages.
        mesh: axes of its ranks.
        expert_mesh: other axes of the ranks of one stage. None means that there are none, or that they are unknown.
        where: name of the strategy, for messages.
    """

    strategy: Strategy
    mesh: Mesh
    expert_mesh: Mesh | None
    where: str

    def evidence(self, tensors: Mapping[str, Whole]) -> Evidence:
        """Return what the strategy shows about whole parameters, by its `mesh`. See `Evidence.of_strategy`."""
        return Evidence.of_strategy(self.strategy, self.mesh, tensors, self.where)

    def of_experts(self, tensors: Mapping[str, Whole]) -> list[Evidence]:
        """Return the same by `expert_mesh`, if there is one."""
        if self.expert_mesh is None:
            return []
        stages = axes_and_sizes(self.mesh).get(PIPELINE_AXIS, 1)
        return [Evidence.of_strategy(self.strategy, f"{PIPELINE_AXIS}={stages},{self.expert_mesh}", tensors, self.where)]


@dataclass(frozen=True, slots=True)
class Evidence:
    """The sharding of the parameters of a source, or of a witness: another strategy of the same model.

    Attributes:
        sizes: size of each axis of one stage, outermost first.
        observed: observations of each parameter, one for each pipeline stage that holds it.
        stages: pipeline stages that hold each parameter. Empty if the source has no ranks.
        number: number of pipeline stages.
        sharded: whether optimizer parallelism divides a parameter that is large enough, for parameters that show it.
    """

    sizes: Mapping[str, int]
    observed: Mapping[str, tuple[Observation, ...]]
    stages: Mapping[str, tuple[int, ...]]
    number: int
    sharded: Mapping[str, bool]

    @classmethod
    def of_strategy(cls, strategy: Strategy, mesh: Mesh, tensors: Mapping[str, Whole], where: str) -> Evidence:
        """Return what a strategy shows.

        Args:
            strategy: layouts of all stages.
            mesh: axes of the ranks of the strategy.
            tensors: whole parameters, by their names in the strategy. Others are ignored.
            where: name of the strategy, for messages.

        Raises:
            DataError: the strategy contradicts itself, or states another shape.
            RequestError: the mesh has other numbers of ranks or stages than the strategy.
        """
        sizes, number = checked_mesh(strategy, mesh, where)
        layouts: dict[str, dict[int, Layout]] = {}
        for stage, names in enumerate(strategy.stages[:number], strategy.first):
            for name in names:
                if name in tensors:
                    layouts.setdefault(name, {})[stage] = strategy.layout(stage, name, tensors[name].shape, sliced=False)
        axes = tuple((axis, size) for axis, size in sizes.items() if size > 1)
        return cls(
            sizes,
            {
                name: tuple({_observation(axes, each, tensors[name].shape): None for each in found.values()})
                for name, found in layouts.items()
            },
            {name: tuple(found) for name, found in layouts.items()},
            number,
            _sharded({name: next(iter(found.values())) for name, found in layouts.items()}, tensors),
        )

    @classmethod
    def of_grids(cls, grids: Mapping[str, Grid], mesh: Mesh) -> Evidence:
        """Return what a checkpoint shows that locates its slices, but not the ranks that held them.

        Args:
            grids: slices of each parameter.
            mesh: axes of the ranks that wrote the checkpoint.
        """
        sizes = {axis: size for axis, size in axes_and_sizes(mesh).items() if axis != PIPELINE_AXIS}
        axes = tuple((axis, size) for axis, size in sizes.items() if size > 1)
        observed = {name: (Observation(axes, Grid(tuple(map(tuple, grid.cuts)))),) for name, grid in grids.items()}
        return cls(sizes, observed, {}, 1, {})

    def of(self, names: Collection[str]) -> Evidence:
        """Return this evidence with the observations of some parameters only."""
        return replace(self, observed={name: found for name, found in self.observed.items() if name in names})


def _observation(axes: tuple[tuple[str, int], ...], layout: Layout, shape: tuple[int, ...]) -> Observation:
    cuts = intervals(layout)
    return Observation(axes, cuts, cuts == default_intervals(shape, layout.devices))


def _sharded(layouts: Mapping[str, Layout], tensors: Mapping[str, Whole]) -> dict[str, bool]:
    """Return whether optimizer parallelism divides each parameter, unless another reason can explain that it does not.

    The threshold of the source is unknown, but not greater than the smallest parameter that is divided.
    """
    equal = {name: (layout, tensors[name].shape) for name, layout in layouts.items()}
    owners = {name: owner_of(name, equal) for name in layouts}
    divided = {name: layout for name, layout in layouts.items() if layout.shard_size and layout.shard_step}
    if not divided:
        return {}
    smallest = min(tensors[owners[name]].nbytes for name in divided)
    sizes = {_number(layout) for layout in divided.values()}
    found = dict.fromkeys(divided, True)
    for name, layout in layouts.items():
        tensor = tensors[owners[name]]
        if name not in divided and tensor.nbytes >= smallest and _can_be_divided(layout, tensor, sizes):
            found[name] = False
    return found


def _number(layout: Layout) -> tuple[int, bool]:
    """Return among how many ranks each slice is divided, and whether more ranks hold it: then this is the number that was set."""
    if layout.shard_size == ALL_OF_GROUP:
        return ALL_OF_GROUP, True
    return layout.shard_size, _holders(layout) > layout.shard_size


def _can_be_divided(layout: Layout, tensor: Whole, numbers: set[tuple[int, bool]]) -> bool:
    """Return whether optimizer parallelism divides a layout, if that follows from the numbers of ranks of other parameters."""
    holders = _holders(layout)
    most = max(size for size, _ in numbers)
    if ALL_OF_GROUP in {size for size, _ in numbers}:
        if len(numbers) > 1:
            return False
        size = holders
    elif holders <= most:
        size = holders
    elif any(is_set for _, is_set in numbers):
        size = most
    else:
        return False
    return holders > 1 and bool(tensor.shape) and not holders % size and not tensor.shape[0] // layout.parts[0] % size


def _holders(layout: Layout) -> int:
    plain = replace(layout, shard_size=0, shard_step=0)
    return plain.devices // prod(plain.parts)
