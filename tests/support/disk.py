"""Models on disk: rank folders and strategy files for the command line, and the contents of target folders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import models
import rawfiles
from definition import Cut

from reshard.cli import main
from reshard.layout import Layout
from reshard.strategy import Strategy, StrategyFile, dump

if TYPE_CHECKING:
    from pathlib import Path


def layout(cut: Cut) -> Layout:
    """A layout of the code under test."""
    return Layout(cut.matrix, cut.maps, cut.step, cut.size)


def strategies(model: models.Model) -> tuple[Strategy, Strategy]:
    """Return both strategies of a model."""
    before: list[dict[str, Layout]] = [{} for _ in range(model.source_stages)]
    after: list[dict[str, Layout]] = [{} for _ in range(model.target_stages)]
    for tensor in model.tensors:
        if tensor.source is not None:
            before[tensor.source_stage][tensor.name] = layout(tensor.source)
        if tensor.target is not None:
            after[tensor.target_stage][tensor.name] = layout(tensor.target)
    return Strategy(tuple(before), model.source_devices), Strategy(tuple(after), model.target_devices)


@dataclass(frozen=True)
class Checkpoint:
    """A source on disk."""

    folder: Path
    model: models.Model
    kind: str

    @property
    def source(self) -> Path:
        return self.folder / "src"

    @property
    def source_strategy(self) -> Path:
        return self.folder / "source.ckpt"

    @property
    def target_strategy(self) -> Path:
        return self.folder / "target.ckpt"

    def arguments(self, target: Path, *more: str) -> list[str]:
        """Return the arguments of `reshard transform`."""
        sides = ["--source", self.source, "--source-strategy", self.source_strategy, "--target-strategy", self.target_strategy]
        return ["transform", *map(str, sides), "--target", str(target), *more]


def write(folder: Path, model: models.Model, kind: str = "ckpt") -> Checkpoint:
    """Write a model's source and strategies into an empty folder."""
    made = Checkpoint(folder, model, kind)
    for rank, tensors in enumerate(model.source()):
        path = made.source / f"rank_{rank}" / f"net-1_100.{kind}"
        path.parent.mkdir(parents=True)
        path.write_bytes(rawfiles.write(kind, tensors))
    for strategy, path in zip(strategies(model), (made.source_strategy, made.target_strategy), strict=True):
        path.write_bytes(dump(StrategyFile(path.name, dict(enumerate(strategy.stages))), "protobuf"))
    return made


def contents(folder: Path, pattern: str = "rank_*/*") -> dict[str, bytes]:
    """The files of a folder, by their names in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob(pattern)}


def differences(model: models.Model, target: Path, kind: str, prefix: str = "checkpoint_") -> list[str]:
    """Return the differences of a target from the expected contents, as text."""
    wrong = []
    for rank in range(model.target_ranks):
        found = rawfiles.read(kind, (target / f"rank_{rank}" / f"{prefix}{rank}.{kind}").read_bytes())
        expected = model.target(rank)
        if found.keys() != expected.keys():
            wrong.append(f"rank {rank} holds {sorted(found)}")
        wrong += [f"rank {rank}: {name}" for name, array in expected.items() if not rawfiles.equal(found.get(name), array)]
    return wrong


def example(*, rows: int = 48, columns: int = 24, seed: int = 1, ranks: int = 6) -> models.Model:
    """A small model of 4 ranks that becomes one of 6, or 8: rows to columns, optimizer shards, a replicated step."""
    tensors = (
        models.Tensor("w", "Float32", (rows, columns), Cut((4,), ((0,), ())), 0, Cut((ranks,), ((), (0,))), 0),
        models.Tensor("m", "BFloat16", (rows, columns), Cut((2, 2), ((1,), ()), 1, 2), 0, Cut((ranks,), ((), ()), 1, ranks), 0),
        models.Tensor("b", "Int8", (columns,), Cut((4,), ((0,),)), 0, Cut((2, ranks // 2), ((0,),)), 0),
        models.Tensor("step", "Int32", (), None, 0, None, 0),
    )
    return models.Model(4, 1, ranks, 1, tensors, seed, remove_redundancy=False)


def run(made: Checkpoint, target: Path, *more: str) -> int:
    """The exit code of a transform, with further arguments."""
    return main(made.arguments(target, *more))


def right(made: Checkpoint, target: Path) -> bool:
    """Return whether a target has the expected contents, and its manifest verifies."""
    return differences(made.model, target, "ckpt") == [] and main(["verify", str(target)]) == 0


def leftovers(target: Path) -> list[Path]:
    """Return the files that unfinished work has left in a target."""
    return [path for path in (target / ".reshard").rglob("*") if path.is_file()]


def rank_file(target: Path, rank: int) -> Path:
    """The file of a rank of a target, by the usual prefix."""
    return target / f"rank_{rank}" / f"checkpoint_{rank}.ckpt"


def parameters_of(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the parameters of a manifest by name, each with the fields of its kind."""
    table = manifest["parameters"]
    return {record["name"]: table["kinds"][record["kind"]] | record for record in table["records"]}
