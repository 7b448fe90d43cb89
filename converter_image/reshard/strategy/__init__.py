"""Strategies: the sharding of all parameters of a model, from strategy files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from reshard.errors import DataError, RequestError
from reshard.layout.regroup import joinable, regrouped
from reshard.strategy.file import StrategyFile, dump, layout_of, parse
from reshard.strategy.protobuf_form import layout_message

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from reshard.layout import Layout
    from reshard.strategy.records import Node

    _Shapes = Mapping[int, Mapping[str, tuple[int, ...]]]

__all__ = ["Strategy", "StrategyFile", "dump", "holders_of_the_same", "layout_message", "layout_of", "merge", "parse"]

_SHOWN = 8


@dataclass(frozen=True)
class Strategy:
    """The sharding of a model.

    Attributes:
        stages: layouts of the parameters of each pipeline stage, by name.
        devices: number of ranks per stage.
        first: number of the first of these stages. Not 0 if the strategy describes one stage of several.
        notes: messages for the user.
        shapes: whole shapes that a JSON file states for each stage. Layouts refer to the dimensions of these shapes.
    """

    stages: tuple[Mapping[str, Layout], ...]
    devices: int
    first: int = 0
    notes: tuple[str, ...] = field(default=(), compare=False)
    shapes: tuple[Mapping[str, tuple[int, ...]], ...] = ()

    def layout(self, stage: int, name: str, shape: tuple[int, ...], *, sliced: bool) -> Layout:
        """Return the layout of a parameter in a stage, for its real dimensions even if the file states more.

        Args:
            stage: number of the stage.
            name: name of the parameter.
            shape: real shape of the parameter.
            sliced: whether `shape` is that of one rank's slice instead of the whole tensor.

        Raises:
            DataError: the file states another whole shape.
        """
        position = stage - self.first
        layout = self.stages[position][name]
        stated = self.shapes[position].get(name) if self.shapes else None
        if not stated:
            return layout
        if len(stated) == len(shape) == layout.ndim:
            whole = tuple(n * k for n, k in zip(shape, layout.parts, strict=True)) if sliced else shape
            if whole != stated:
                raise DataError(
                    "StrategyShapeMismatch",
                    f"the strategy file states the shape {list(stated)}, but the checkpoint's slices add up to {list(whole)}",
                    where=f"parameter {name}",
                    fix="use the strategy file of this checkpoint; if every rank saved whole tensors (integrated_save),"
                    " use one rank's folder as the source, with --allow-single-rank and no source strategy",
                )
        return regrouped(layout, stated, shape, sliced=sliced) or layout

    @property
    def ranks(self) -> int:
        """Number of ranks in all these stages."""
        return self.devices * len(self.stages)

    @property
    def numbers(self) -> range:
        """Ranks of these stages, numbered across all stages."""
        return range(self.first * self.devices, self.first * self.devices + self.ranks)

    @property
    def uneven(self) -> str | None:
        """Name of a parameter whose slices differ in length, or None. No source strategy describes such a parameter."""
        return next((name for stage in self.stages for name, layout in stage.items() if layout.uneven), None)

    @property
    def repeated_stages(self) -> range:
        """Last stages that contain only parameters of earlier stages, as files of an earlier run with more stages do."""
        first = len(self.stages)
        while first > 1 and self.stages[first - 1].keys() <= {name for stage in self.stages[: first - 1] for name in stage}:
            first -= 1
        return range(first, len(self.stages))

    @classmethod
    def from_files(cls, files: Sequence[StrategyFile]) -> Strategy:
        """Merge the files of all pipeline stages, or a single file, into a strategy.

        Raises:
            DataError: a stage is missing, or the files contradict each other.
        """
        merged = merge(files)
        stages = tuple(merged.stages.values())
        return cls(stages, _devices(stages), shapes=_shapes(merged.stages, merged.shapes))

    @classmethod
    def of_one_stage(cls, files: Sequence[StrategyFile]) -> Strategy:
        """Return the strategy of the only pipeline stage that the files describe.

        Raises:
            DataError: the files do not state the stage, or contradict each other.
            RequestError: the files describe several stages.
        """
        described = sorted({stage for file in files for stage in file.stages})
        if len(described) != 1:
            raise RequestError(
                "SeveralStages",
                f"the file describes pipeline stages {', '.join(map(str, described[:_SHOWN]))}, but one stage is required",
                where=files[0].name,
                fix="use the strategy file of one stage, or omit --output stage (spec.target.output: Stage)",
            )
        if not files[0].nodes:
            raise DataError(
                "StageUnknown",
                "the strategy file does not state its pipeline stage",
                where=files[0].name,
                fix="use the strategy file that training wrote for this stage",
            )
        joined, _, shapes = _joined(files)
        stages = tuple(joined.values())
        return cls(stages, _devices(stages), described[0], shapes=_shapes(joined, shapes))

    @cached_property
    def digest(self) -> str:
        """Digest that is equal for equal layouts of equal parameters."""
        return hashlib.sha256(self.canonical()).hexdigest()

    def canonical(self) -> bytes:
        """Return equal bytes for equal layouts of equal parameters, regardless of the form and order of the files."""
        distinct = {id(layout): layout for stage in self.stages for layout in stage.values()}  # comparing them takes longer
        essences = {key: _essence(layout) for key, layout in distinct.items()}
        stages = []
        for position, layouts in enumerate(self.stages):
            names = sorted(layouts)
            found = list(map(essences.__getitem__, map(id, map(layouts.__getitem__, names))))
            if shapes := self.shapes[position] if self.shapes else {}:
                pairs = zip(names, found, strict=True)
                is_cut = {name for name, shape in shapes.items() if joinable(layouts[name], shape)}
                found = [(*essence, shapes[name]) if name in is_cut else essence for name, essence in pairs]
            stages.append((names, found))
        return msgspec.json.encode([self.first, stages])


def merge(files: Sequence[StrategyFile]) -> StrategyFile:
    """Merge the files of all pipeline stages into one. Files of the same stage must agree. The first of them is used.

    Raises:
        DataError: a stage is missing, files do not state their stage, files of one stage shard a parameter differently, or stages
            have different numbers of ranks.
    """
    if not files:
        raise DataError(
            "StageMissing",
            "no strategy file was given",
            where="strategy",
            fix="specify a strategy file, or a folder that contains strategy files",
        )
    stages, nodes, shapes = _joined(files)
    missing = list(islice((stage for stage in range(max(stages)) if stage not in stages), _SHOWN))
    if missing:
        raise DataError(
            "StageMissing",
            f"the highest pipeline stage is {max(stages)}, but no strategy file describes stage {', '.join(map(str, missing))}",
            where=files[0].name,
            fix="specify a folder that contains the strategy files of all stages",
        )
    return StrategyFile(files[0].name, {stage: stages[stage] for stage in sorted(stages)}, nodes, shapes)


def holders_of_the_same(files: Sequence[StrategyFile], rank: int) -> list[int]:
    """Return the ranks that hold the same slice of every parameter as a rank, including the rank itself, in ascending order.

    Gradients and the network's inputs are ignored, as in MindSpore (mindspore/train/serialization.py, _get_cur_rank_dp).

    Args:
        files: strategy file of the rank's stage, or those of all stages.
        rank: number of the rank, across all stages.

    Raises:
        DataError: the files contradict each other, or their stages do not contain the rank.
    """
    stages, _, _ = _joined(files)
    devices = _devices(tuple(stages.values()))
    stage, local = divmod(rank, devices)
    described = next(iter(stages)) if len(stages) == 1 else stage  # a file of a single stage need not state its stage
    if described not in stages:
        raise DataError(
            "NoSuchRank",
            f"rank {rank} belongs to pipeline stage {stage}, which no strategy file describes",
            where=files[0].name,
            fix="use the strategy file of that stage",
        )
    same = set(range(devices))
    for name, layout in stages[described].items():
        if not name.startswith(("accu_grads", "inputs")):
            same &= set(layout.holders[layout.cells[local]])
    return sorted(rank - local + other for other in same)


def _shapes(stages: Iterable[int], shapes: _Shapes) -> tuple[Mapping[str, tuple[int, ...]], ...]:
    return tuple(shapes.get(stage, {}) for stage in stages) if shapes else ()


def _joined(files: Sequence[StrategyFile]) -> tuple[dict[int, Mapping[str, Layout]], tuple[Node, ...], _Shapes]:
    """Return the layouts of each stage in the files, the operators, and the stated shapes."""
    stages: dict[int, Mapping[str, Layout]] = {}
    names: dict[int, str] = {}
    nodes: list[Node] = []
    shapes: dict[int, Mapping[str, tuple[int, ...]]] = {}
    for file in files:
        if len(files) > 1 and not file.nodes:
            raise DataError(
                "StageUnknown",
                f"{len(files)} strategy files were given, and this one does not state its pipeline stage",
                where=file.name,
                fix="specify the one file to use instead of its folder",
            )
        _check_agreement(file, stages, names)
        new = {stage: layouts for stage, layouts in file.stages.items() if stage not in stages}
        stages |= new
        shapes |= {stage: file.shapes[stage] for stage in new if stage in file.shapes}
        names |= dict.fromkeys(new, file.name)
        nodes += [node for node in file.nodes if node.stage in new]
    _check_devices(stages, names)
    return stages, tuple(nodes), shapes


def _devices(stages: Sequence[Mapping[str, Layout]]) -> int:
    return next(layout.devices for layouts in stages for layout in layouts.values())


def _check_agreement(file: StrategyFile, stages: Mapping[int, Mapping[str, Layout]], files: Mapping[int, str]) -> None:
    """Check that a file shards the parameters of each stage like the file that is used for the stage."""
    for stage, layouts in file.stages.items():
        known = stages.get(stage)
        if known is None:
            continue
        if only := sorted(known.keys() ^ layouts.keys()):
            raise DataError(
                "StrategiesDisagree",
                f"this file and {files[stage]} both describe stage {stage}, but only one of them contains parameter {only[0]}",
                where=file.name,
                fix="use a folder that contains the strategy files of one run only, or specify a single file",
            )
        for name, layout in layouts.items():
            if _essence(known[name]) != _essence(layout):
                raise DataError(
                    "StrategiesDisagree",
                    f"{files[stage]} describes the same stage {stage}, but shards the parameter differently",
                    where=f"{file.name}: parameter {name}",
                    fix="use a folder that contains the strategy files of one run only, or specify a single file",
                )


def _check_devices(stages: Mapping[int, Mapping[str, Layout]], files: Mapping[int, str]) -> None:
    """Check that all layouts of all stages have the same number of ranks."""
    first: tuple[str, int, int] | None = None
    for stage, layouts in stages.items():
        # Few layouts are distinct objects, and comparing these takes less time.
        for name in {id(layout): name for name, layout in layouts.items()}.values():
            layout = layouts[name]
            if first is None:
                first = (name, stage, layout.devices)
            elif layout.devices != first[2]:
                raise DataError(
                    "DevicesDisagree",
                    f"stage {stage} shards it over {layout.devices} ranks,"
                    f" but stage {first[1]} shards parameter {first[0]} over {first[2]} ranks ({files[first[1]]})",
                    where=f"{files[stage]}: parameter {name}",
                    fix="use a folder that contains the strategy files of one run only",
                )
    if first is None:
        raise DataError(
            "StrategyInvalid",
            "the strategy contains no parameters",
            where=next(iter(files.values())),
            fix="use the strategy file that training wrote",
        )


def _essence(layout: Layout) -> tuple[object, ...]:
    shard = layout.shard_size if layout.shard_step else 0
    return (layout.device_matrix, layout.tensor_map, shard, *([True] if layout.uneven else []))
