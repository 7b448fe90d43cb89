"""Strategies: how all parameters of a model are cut over all ranks, from strategy files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from reshard.errors import DataError
from reshard.strategy.file import StrategyFile, dump, parse

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reshard.layout import Layout

__all__ = ["Strategy", "StrategyFile", "dump", "merge", "parse"]


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
        return cls(tuple(merged.stages.values()), _devices(merged))

    def canonical(self) -> bytes:
        """Equal for strategies that cut alike, whatever their files look like."""
        return msgspec.json.encode([{name: _essence(stage[name]) for name in sorted(stage)} for stage in self.stages])


def merge(files: Sequence[StrategyFile]) -> StrategyFile:
    """One file of the files of all pipeline stages. Of several files of a stage the first counts.

    Raises:
        DataError: a stage is missing, or files do not say which they describe.
    """
    stages: dict[int, Mapping[str, Layout]] = {}
    nodes = []
    for file in files:
        if len(files) > 1 and not file.nodes:
            raise DataError(
                "StageUnknown",
                f"it is one of {len(files)} files, but does not say which pipeline stage it describes",
                where=file.name,
                fix="give the one file that is meant",
            )
        new = {stage: layouts for stage, layouts in file.stages.items() if stage not in stages}
        stages |= new
        nodes += [node for node in file.nodes if node.stage in new]
    missing = sorted(set(range(max(stages) + 1)) - set(stages)) if max(stages) < len(stages) * 64 else [len(stages)]
    if missing:
        raise DataError(
            "StageMissing",
            f"there are pipeline stages up to {max(stages)}, but no strategy of stage {', '.join(map(str, missing[:8]))}",
            where=files[0].name,
            fix="give the folder with the strategy files of all stages",
        )
    return StrategyFile(files[0].name, {stage: stages[stage] for stage in sorted(stages)}, tuple(nodes))


def _devices(merged: StrategyFile) -> int:
    """Ranks of each stage: every layout must be of as many."""
    first: tuple[str, int] | None = None
    for stage, layouts in merged.stages.items():
        for name, layout in layouts.items():
            if first is None:
                first = (name, layout.devices)
            elif layout.devices != first[1]:
                raise DataError(
                    "DevicesDisagree",
                    f"stage {stage} has it on {layout.devices} ranks, but parameter {first[0]} is on {first[1]}",
                    where=f"{merged.name}: parameter {name}",
                    fix="all strategy files must come from one run",
                )
    if first is None:
        raise DataError(
            "StrategyInvalid", "it names no parameter", where=merged.name, fix="give the strategy file that training wrote"
        )
    return first[1]


def _essence(layout: Layout) -> tuple[object, ...]:
    shard = layout.shard_size if layout.shard_step else 0
    return (layout.device_matrix, layout.tensor_map, shard)
