"""Strategies: how all parameters of a model are cut over all ranks, from strategy files."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from reshard.errors import DataError
from reshard.strategy.file import StrategyFile, dump, parse

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reshard.layout import Layout

__all__ = ["Strategy", "StrategyFile", "dump", "merge", "parse"]

_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Strategy:
    """How a model is cut.

    Attributes:
        stages: for each pipeline stage its parameters' layouts, by name.
        devices: ranks of each stage.
    """

    stages: tuple[Mapping[str, Layout], ...]
    devices: int

    @property
    def ranks(self) -> int:
        """Ranks of all stages."""
        return self.devices * len(self.stages)

    @classmethod
    def from_files(cls, files: Sequence[StrategyFile]) -> Strategy:
        """The strategy of one file, or of the files of all pipeline stages.

        Raises:
            DataError: a stage is missing, or they do not belong together.
        """
        merged = merge(files)
        stages = tuple(merged.stages.values())
        return cls(stages, next(layout.devices for layouts in stages for layout in layouts.values()))

    def canonical(self) -> bytes:
        """The same for the same layouts of the same parameters, whatever the form and order of the files they came from."""
        return msgspec.json.encode([{name: _essence(stage[name]) for name in sorted(stage)} for stage in self.stages])


def merge(files: Sequence[StrategyFile]) -> StrategyFile:
    """One file of the files of all pipeline stages. Of several files of a stage the first counts; they must not contradict.

    Raises:
        DataError: a stage is missing, files do not say which they describe, differ in how they cut a parameter of one stage, or
            stages differ in their number of ranks.
    """
    if not files:
        raise DataError("StageMissing", "there is no strategy file", fix="give a strategy file, or a folder that holds some")
    stages: dict[int, Mapping[str, Layout]] = {}
    names: dict[int, str] = {}
    nodes = []
    for file in files:
        if len(files) > 1 and not file.nodes:
            raise DataError(
                "StageUnknown",
                f"it is one of {len(files)} files, but does not say which pipeline stage it describes",
                where=file.name,
                fix="give the one file that is meant",
            )
        _check_agreement(file, stages, names)
        new = {stage: layouts for stage, layouts in file.stages.items() if stage not in stages}
        stages |= new
        names |= dict.fromkeys(new, file.name)
        nodes += [node for node in file.nodes if node.stage in new]
    missing = list(islice((stage for stage in range(max(stages)) if stage not in stages), _SHOWN))
    if missing:
        raise DataError(
            "StageMissing",
            f"there are pipeline stages up to {max(stages)}, but no strategy of stage {', '.join(map(str, missing))}",
            where=files[0].name,
            fix="give the folder with the strategy files of all stages",
        )
    _check_devices(stages, names)
    return StrategyFile(files[0].name, {stage: stages[stage] for stage in sorted(stages)}, tuple(nodes))


def _check_agreement(file: StrategyFile, stages: Mapping[int, Mapping[str, Layout]], files: Mapping[int, str]) -> None:
    """That a file cuts the parameters of each stage as the file before it that counts does."""
    for stage, layouts in file.stages.items():
        known = stages.get(stage, {})
        for name, layout in layouts.items():
            if name in known and _essence(known[name]) != _essence(layout):
                raise DataError(
                    "StrategiesDisagree",
                    f"{files[stage]} cuts it in another way, and both describe stage {stage}",
                    where=f"{file.name}: parameter {name}",
                    fix="give a folder with the strategy files of one run only, or the one file that is meant",
                )


def _check_devices(stages: Mapping[int, Mapping[str, Layout]], files: Mapping[int, str]) -> None:
    """That every layout of every stage is of as many ranks."""
    first: tuple[str, int, int] | None = None
    for stage, layouts in stages.items():
        for name, layout in layouts.items():
            if first is None:
                first = (name, stage, layout.devices)
            elif layout.devices != first[2]:
                raise DataError(
                    "DevicesDisagree",
                    f"stage {stage} has it on {layout.devices} ranks,"
                    f" but stage {first[1]} has parameter {first[0]} on {first[2]} ({files[first[1]]})",
                    where=f"{files[stage]}: parameter {name}",
                    fix="all strategy files must come from one run",
                )
    if first is None:
        raise DataError("StrategyInvalid", "no stage names a parameter", where=next(iter(files.values())))


def _essence(layout: Layout) -> tuple[object, ...]:
    shard = layout.shard_size if layout.shard_step else 0
    return (layout.device_matrix, layout.tensor_map, shard)
