"""Pipelines on disk: a source with a strategy file for each stage, and the contents of a target made stage by stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import disk
import models
import rawfiles
from definition import Cut

from reshard.cli import main
from reshard.spec.request import Options, Request
from reshard.strategy import StrategyFile, dump
from reshard.strategy.records import Node

if TYPE_CHECKING:
    from pathlib import Path

ROWS, COLUMNS, NOT = ((0,), ()), ((), (0,)), ((), ())


def pipeline(*, seed: int = 1, target_stages: int = 1) -> models.Model:
    """Two stages of 2 ranks that become 4 ranks, in one stage or two: optimizer state and shards, a step that all have."""
    four = 4 // target_stages
    last = target_stages - 1
    tensors = (
        models.Tensor("w0", "Float32", (8, 8), Cut((2,), ROWS), 0, Cut((four,), COLUMNS), 0),
        models.Tensor("moment1.w0", "BFloat16", (8, 8), Cut((2,), NOT, 1, 2), 0, Cut((four,), NOT, 1, four), 0),
        models.Tensor("w1", "Float32", (16, 8), Cut((2,), COLUMNS), 1, Cut((four,), ROWS), last),
        models.Tensor("moment1.w1", "Float16", (16, 8), Cut((2,), ROWS), 1, Cut((four,), NOT), last),
        models.Tensor("step", "Int32", (), None, 0, None, 0),
    )
    return models.Model(2, 2, four, target_stages, tensors, seed, remove_redundancy=False)


@dataclass(frozen=True)
class Pipeline:
    """A source with a strategy file for each stage."""

    made: disk.Checkpoint

    def strategy(self, stage: int) -> Path:
        return self.made.folder / f"src_strategy_{stage}.ckpt"

    def arguments(self, stage: int, target: Path, *more: str, whole: bool = False) -> list[str]:
        sides = ["--source", self.made.source, "--source-strategy", self.strategy(stage), "--target", target]
        sides += [] if whole else ["--target-strategy", self.made.target_strategy]
        return ["transform", *map(str, sides), "--output", "stage", *more]

    def request(self, stage: int, target: Path) -> Request:
        return Request(
            source=str(self.made.source),
            source_strategy=str(self.strategy(stage)),
            target=str(target),
            target_strategy=str(self.made.target_strategy),
            options=Options(output="Stage"),
        )

    def run(self, stage: int, target: Path, *more: str, whole: bool = False) -> int:
        return main(self.arguments(stage, target, *more, whole=whole))


def write(folder: Path, model: models.Model, kind: str = "ckpt") -> Pipeline:
    made = Pipeline(disk.write(folder, model, kind))
    for stage, layouts in enumerate(disk.strategies(model)[0].stages):
        file = StrategyFile("x", {stage: layouts}, (Node("MatMul", stage),))
        made.strategy(stage).write_bytes(dump(file, "protobuf"))
    return made


def differences(model: models.Model, target: Path, kind: str = "ckpt") -> list[str]:
    """Return the differences of a target from the expected contents, with the parts of each rank joined."""
    wrong = []
    for rank in range(model.target_ranks):
        found: rawfiles.Tensors = {}
        for path in sorted((target / f"rank_{rank}").iterdir()):
            assert path.name in {f"checkpoint_{rank}_part{stage}.{kind}" for stage in range(model.source_stages)}
            found |= rawfiles.read(kind, path.read_bytes())
        expected = model.target(rank)
        if found.keys() != expected.keys():
            wrong.append(f"rank {rank} holds {sorted(found)}")
        wrong += [f"rank {rank}: {name}" for name, array in expected.items() if not rawfiles.equal(found.get(name), array)]
    return wrong
