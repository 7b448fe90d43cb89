"""A checkpoint written stage by stage: in any order, concurrently, killed or replaced; complete at the end or absent."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from typing import TYPE_CHECKING

import disk
import models
import numpy as np
import pytest
import rawfiles
from definition import Cut
from effort import examples
from hypothesis import given
from hypothesis import strategies as st
from killing import killed_after
from memory_tasks import task, written
from pipelines import Pipeline, differences, pipeline, write
from rawfiles import same

from reshard.checkpoint.manifest import MANIFEST_NAME
from reshard.cli import main
from reshard.layout import Layout
from reshard.pictures.traffic import count_traffic
from reshard.progress import Silent
from reshard.storage.local import LocalStore
from reshard.strategy import StrategyFile, dump
from reshard.target.lock import locked
from reshard.transform.inputs import Inputs
from reshard.transform.prepare import prepare
from reshard.transform.run import transform_checkpoint

if TYPE_CHECKING:
    from pathlib import Path


def right(model: models.Model, target: Path, kind: str = "ckpt") -> bool:
    """Check that the manifest exists, all files are right, and nothing else is left."""
    assert differences(model, target, kind) == []
    assert {path.name for path in target.iterdir()} - {".reshard"} == {
        MANIFEST_NAME,
        *(f"rank_{rank}" for rank in range(model.target_ranks)),
    }
    assert list((target / ".reshard").iterdir()) == []
    return main(["verify", str(target)]) == 0


def manifest(target: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((target / MANIFEST_NAME).read_text())
    return found


@pytest.fixture
def made(tmp_path: Path) -> Pipeline:
    return write(tmp_path / "made", pipeline())


@examples(500)
@given(models.models(16), st.sampled_from(["ckpt", "safetensors"]), st.data())
def test_the_parts_of_a_rank_are_exactly_its_slices(model: models.Model, kind: str, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, model.target_ranks - 1))
    expected = model.target(rank)
    held = model.source()
    for stage in range(model.source_stages):
        first = stage * model.source_devices
        mine = {name for tensors in held[first : first + model.source_devices] for name in tensors} & expected.keys()
        if not mine and (kind == "ckpt" or not any(held[first : first + model.source_devices])):
            continue
        made, _ = task(model, kind, kind, stage)
        assert (rank in made.ranks) == bool(mine)
        found = rawfiles.read(kind, written(made, rank)) if mine else {}
        assert same(found, {name: expected[name] for name in mine})
    assert expected.keys() <= {name for tensors in held for name in tensors}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
@pytest.mark.parametrize("target_stages", [1, 2])
def test_stages_in_any_order(tmp_path: Path, order: tuple[int, ...], kind: str, target_stages: int) -> None:
    model, target = pipeline(target_stages=target_stages), tmp_path / "target"
    made = write(tmp_path / "made", model, kind)
    first, last = order
    assert made.run(first, target, "--verification", "full") == 0
    assert not (target / MANIFEST_NAME).exists()
    assert made.run(last, target) == 0
    assert right(model, target, kind)
    found = manifest(target)
    assert [part["stage"] for part in found["stages"]] == [0, 1]
    assert found["ranks"] == "0-3"
    assert {(f["rank"], f["stage"]) for f in found["files"]} >= {(0, 0), (3, 1)}
    before = {path: path.stat().st_mtime_ns for path in target.rglob("*.*")}
    assert made.run(first, target) == made.run(last, target) == 0
    assert before == {path: path.stat().st_mtime_ns for path in target.rglob("*.*")}


def test_a_target_stage_gets_no_file_from_parts_without_its_parameters(tmp_path: Path, target: Path) -> None:
    model = replace(pipeline(target_stages=2), tensors=pipeline(target_stages=2).tensors[:-1])
    made = write(tmp_path / "made", model)
    assert made.run(1, target) == made.run(0, target) == 0
    assert right(model, target)
    assert [len(list((target / f"rank_{rank}").iterdir())) for rank in range(4)] == [1, 1, 1, 1]


def test_to_one_whole_rank(made: Pipeline, target: Path) -> None:
    assert made.run(1, target, whole=True) == made.run(0, target, whole=True) == 0
    model = made.made.model
    one = tuple(replace(t, target=t.target and Cut((1,), ((),) * len(t.shape)), target_stage=0) for t in model.tensors)
    assert right(replace(model, tensors=one, target_devices=1), target)


def together(made: Pipeline, target: Path) -> None:
    """Run both stages, started at once."""
    start = Barrier(2)

    def run(stage: int) -> None:
        start.wait()
        transform_checkpoint(made.request(stage, target))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, range(2)))


def test_stages_at_the_same_time(made: Pipeline, target: Path) -> None:
    together(made, target)
    assert right(made.made.model, target)


def test_one_of_two_last_parts_completes_the_checkpoint(made: Pipeline, target: Path) -> None:
    """Only the commit is left to do."""
    assert made.run(0, target, "--no-commit") == made.run(1, target, "--no-commit") == 0
    together(made, target)
    assert right(made.made.model, target)


def test_one_commit_completes_all_parts(made: Pipeline, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert made.run(1, target, "--no-commit") == 0
    assert main(["commit", str(target)]) == 0
    assert "stage 1 is finished" in capsys.readouterr().out
    assert made.run(0, target, "--no-commit", "--only-ranks", "0-2") == 0
    assert main(["commit", str(target)]) == 66
    assert made.run(0, target, "--no-commit", "--only-ranks", "3") == 0
    assert main(["commit", str(target)]) == 0
    assert right(made.made.model, target)


def test_one_part_is_written_by_one_run_at_a_time(made: Pipeline, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(LocalStore(target), ".reshard/lock-stage0", owner=None, mode=0o640):
        assert made.run(0, target) == 75
        assert "TargetLocked" in capsys.readouterr().err
        assert made.run(1, target) == 0
    assert made.run(0, target) == 0
    assert right(made.made.model, target)


def test_a_whole_checkpoint_and_parts_are_not_mixed(made: Pipeline, target: Path) -> None:
    assert made.run(0, target) == 0
    assert main(made.made.arguments(target)) == 78
    assert made.run(1, target) == 0
    assert right(made.made.model, target)
    assert main(made.made.arguments(target)) == 78


def test_a_part_of_another_step_does_not_fit(made: Pipeline, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Training continues between two runs, and leaves a newer step."""
    assert made.run(0, target) == 0
    for path in made.made.source.glob("rank_*/net-1_100.ckpt"):
        path.with_name("net-2_200.ckpt").write_bytes(path.read_bytes())
    assert made.run(1, target) == 78
    assert "TargetExists" in capsys.readouterr().err
    assert made.run(1, target, "--step", "100") == 0
    assert right(made.made.model, target)


def test_replacing_requires_all_parts_again_and_keeps_the_old_ones_until_then(
    tmp_path: Path, made: Pipeline, target: Path
) -> None:
    other = write(tmp_path / "other", pipeline(seed=2))
    assert made.run(0, target) == made.run(1, target) == 0
    assert other.run(0, target) == 78
    assert other.run(0, target, "--overwrite") == 0
    assert differences(made.made.model, target) == []
    assert main(["verify", str(target)]) == 0
    assert other.run(1, target) == 0
    assert right(other.made.model, target)


def test_replacing_without_renames(tmp_path: Path, made: Pipeline, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old manifest is deleted first; files that only it named are deleted at the end, though the first part was abandoned."""
    monkeypatch.setattr(LocalStore, "renames", property(lambda _: False, lambda _, __: None), raising=False)
    assert made.run(0, target, "--file-prefix", "old_") == made.run(1, target, "--file-prefix", "old_") == 0
    given_up, other = write(tmp_path / "up", pipeline(seed=3)), write(tmp_path / "other", pipeline(seed=2))
    assert given_up.run(0, target, "--overwrite") == 0
    assert not (target / MANIFEST_NAME).exists()
    assert other.run(0, target) == 78
    assert other.run(0, target, "--overwrite") == other.run(1, target) == 0
    assert right(other.made.model, target)


def test_an_unchanged_part_is_written_again_when_replaced(made: Pipeline, target: Path) -> None:
    """A complete checkpoint is never a mixture of two runs."""
    assert made.run(0, target) == made.run(1, target) == 0
    for path in made.made.source.glob("rank_[01]/*"):
        tensors = rawfiles.read("ckpt", path.read_bytes())
        path.write_bytes(rawfiles.write("ckpt", tensors | {"w0": np.zeros_like(tensors["w0"])}))
    assert made.run(0, target, "--overwrite") == 0
    assert differences(made.made.model, target) == []
    assert made.run(1, target) == 0
    assert all("w0" in line for line in differences(made.made.model, target))
    assert main(["verify", str(target)]) == 0


@pytest.mark.parametrize("after", [0, 1, 5, 7])
def test_a_killed_replacement_is_finished(tmp_path: Path, made: Pipeline, target: Path, after: int) -> None:
    other = write(tmp_path / "other", pipeline(seed=2))
    assert made.run(0, target) == made.run(1, target) == 0
    assert other.run(1, target, "--overwrite") == 0
    with killed_after(after):
        assert other.run(0, target) == 130
    assert not (target / MANIFEST_NAME).exists()
    assert other.run(1, target) == 0
    assert right(other.made.model, target)


def test_a_damaged_part_is_written_again(made: Pipeline, target: Path) -> None:
    assert made.run(0, target) == made.run(1, target) == 0
    path = target / "rank_2" / "checkpoint_2_part1.ckpt"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert main(["verify", str(target)]) == 65
    assert made.run(1, target, "--overwrite") == 0
    assert right(made.made.model, target)


def test_a_part_with_a_missing_file_does_not_count(made: Pipeline, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert made.run(0, target) == 0
    (target / "rank_1" / "checkpoint_1_part0.ckpt").unlink()
    assert made.run(1, target) == 66
    assert "rank_1/checkpoint_1_part0.ckpt" in capsys.readouterr().err
    assert made.run(0, target) == 0
    assert right(made.made.model, target)


def without_other_ranks(made: Pipeline, stage: int, folder: Path) -> Pipeline:
    """The same, with the ranks of one stage only."""
    for path in made.made.source.glob("rank_*/*"):
        rank = int(path.parent.name.removeprefix("rank_"))
        if rank // 2 == stage:
            copy = folder / "src" / path.parent.name / path.name
            copy.parent.mkdir(parents=True)
            copy.write_bytes(path.read_bytes())
    for path in made.made.folder.glob("*.ckpt"):
        (folder / path.name).write_bytes(path.read_bytes())
    return Pipeline(replace(made.made, folder=folder))


@pytest.mark.parametrize("stages", [[], ["--stages", "2"]])
def test_stages_kept_in_different_places(tmp_path: Path, made: Pipeline, target: Path, stages: list[str]) -> None:
    """The number of parts is unknown: they are complete once they hold all parameters of the target strategy."""
    for stage in (1, 0):
        assert not (target / MANIFEST_NAME).exists()
        assert without_other_ranks(made, stage, tmp_path / f"{stage}").run(stage, target, *stages) == 0
    assert right(made.made.model, target)


def test_the_number_of_stages_can_be_corrected(made: Pipeline, target: Path) -> None:
    assert made.run(0, target, "--stages", "3") == made.run(1, target, "--stages", "3") == 0
    assert not (target / MANIFEST_NAME).exists()
    assert made.run(0, target) == made.run(1, target) == 0
    assert right(made.made.model, target)


def test_parameters_in_no_part_are_missing_when_all_parts_exist(
    made: Pipeline, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = models.Tensor("lost", "Float32", (8,), None, 0, Cut((4,), ((0,),)), 0)
    after = disk.strategies(replace(made.made.model, tensors=(*made.made.model.tensors, lost)))[1]
    made.made.target_strategy.write_bytes(dump(StrategyFile("x", dict(enumerate(after.stages))), "protobuf"))
    assert made.run(0, target) == 0
    assert made.run(1, target) == 66
    assert "none of the 2 stages holds these parameters of the strategy: lost" in capsys.readouterr().err
    assert made.run(0, target, "--allow-missing", "--overwrite") == made.run(1, target, "--allow-missing") == 0
    assert manifest(target)["targetOnly"] == ["lost"]


def with_step_7_in_stage_1(made: Pipeline) -> None:
    for path in made.made.source.glob("rank_[23]/*"):
        tensors = rawfiles.read("ckpt", path.read_bytes())
        path.write_bytes(rawfiles.write("ckpt", tensors | {"step": np.full_like(tensors["step"], 7)}))


def test_copies_that_differ_between_parts_are_refused_unless_accepted(
    made: Pipeline, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_step_7_in_stage_1(made)
    assert (made.run(0, target), made.run(1, target)) == (0, 65)
    said = capsys.readouterr().err
    assert "RanksDisagree: parameter step: " in said
    assert "and 7 on stage 1; " in said
    assert not (target / MANIFEST_NAME).exists()
    accepted = ["--allow-inconsistent", "step", "--overwrite"]
    assert made.run(0, target, *accepted) == made.run(1, target, *accepted) == 0
    assert "copies of these parameters differ between stages; those of the first stage are used: step" in capsys.readouterr().err
    assert manifest(target)["inconsistentReplicas"] == ["step"]


def with_different_replicas(made: Pipeline) -> None:
    """Give both stages an embedding, whose last slice on source rank 3 differs from that on rank 1."""
    emb = np.arange(16, dtype=np.float32)
    for path in made.made.source.glob("rank_*/*"):
        rank = int(path.parent.name.removeprefix("rank_"))
        mine = (emb + (rank == 3))[rank % 2 * 8 :][:8]
        path.write_bytes(rawfiles.write("ckpt", rawfiles.read("ckpt", path.read_bytes()) | {"emb": mine}))
    before, after = disk.strategies(made.made.model)
    for stage, layouts in enumerate(before.stages):
        shared = {stage: layouts | {"emb": Layout((2,), ((0,),))}}
        made.strategy(stage).write_bytes(dump(StrategyFile("x", shared), "protobuf"))
    shared = {0: after.stages[0] | {"emb": Layout((4,), ((0,),))}}
    made.made.target_strategy.write_bytes(dump(StrategyFile("x", shared), "protobuf"))


def test_replicas_that_differ_between_parts_are_refused_unless_accepted(
    made: Pipeline, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_different_replicas(made)
    assert (made.run(0, target), made.run(1, target)) == (0, 65)
    said = capsys.readouterr().err
    assert "ReplicasDiffer: parameter emb: " in said
    assert not (target / MANIFEST_NAME).exists()
    accepted = ["--replicas", "lowest-rank", "--overwrite"]
    assert made.run(0, target, *accepted) == made.run(1, target, *accepted) == 0
    assert manifest(target)["inconsistentReplicas"] == ["emb"]


def test_replicas_of_added_ranks_are_compared(made: Pipeline, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_different_replicas(made)
    for ranks, code in (("0-1", 0), ("2-3", 65)):
        assert made.run(0, target, "--only-ranks", ranks) == 0
        assert made.run(1, target, "--only-ranks", ranks) == code
    assert "ReplicasDiffer: parameter emb: " in capsys.readouterr().err
    assert manifest(target)["ranks"] == "0-1"


def test_stages_written_for_different_ranks_are_complete_once_a_rank_has_all(made: Pipeline, target: Path) -> None:
    assert made.run(0, target, "--only-ranks", "2-3") == made.run(1, target, "--only-ranks", "0-1") == 0
    assert not (target / MANIFEST_NAME).exists()
    assert made.run(0, target, "--only-ranks", "0-1") == 0
    assert manifest(target)["ranks"] == "0-1"
    assert made.run(1, target, "--only-ranks", "2-3") == 0
    assert right(made.made.model, target)


def test_copies_in_stages_written_for_different_ranks_are_compared(
    made: Pipeline, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lowest rank has the file of only one stage."""
    with_step_7_in_stage_1(made)
    for stage, ranks in ((0, "1-3"), (1, "0,3")):
        code = made.run(stage, target, "--only-ranks", ranks)
    assert code == 65
    assert "RanksDisagree: parameter step: " in capsys.readouterr().err
    assert not (target / MANIFEST_NAME).exists()


@pytest.mark.parametrize(
    ("code", "reason", "more"),
    [
        (78, "NoSuchStage", ["--stages", "1"]),
        (78, "SeveralStages", ["--source-strategy", "{made}/source.ckpt"]),
        (66, "SourceRankMissing", ["--source", "{made}/moved"]),
        (2, "InvalidOption", ["--stages", "2", "--output", "per-rank"]),
    ],
)
def test_invalid_parts_are_refused(
    made: Pipeline, target: Path, code: int, reason: str, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    moved = made.made.folder / "moved" / "rank_0"
    moved.mkdir(parents=True)
    (moved / "a.ckpt").write_bytes(next(made.made.source.glob("rank_2/*")).read_bytes())
    assert made.run(1, target, *(text.format(made=made.made.folder) for text in more)) == code
    assert reason in capsys.readouterr().err
    assert not target.exists()


def test_the_plan_of_a_part_names_its_ranks(made: Pipeline, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *made.arguments(1, target, "--json")[1:]]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert (planned["source_ranks"], planned["parameters"]) == (2, 3)
    assert {rank for sources in planned["sources"].values() for rank in sources} == {2, 3}
    planner = prepare(Inputs(made.request(1, target)), Silent(), workers=1).planner
    fed = count_traffic(planner, range(4), 8)
    assert fed.source.groups == ((2,), (3,))
    assert sum(fed.by_source) == planned["bytes_needed"]
    assert all(fed.by_source)


def test_the_number_of_stages_is_unknown(
    tmp_path: Path, made: Pipeline, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = without_other_ranks(made, 0, tmp_path / "alone")
    assert alone.run(0, target, whole=True) == 78
    assert "StagesUnknown" in capsys.readouterr().err
    assert alone.run(0, target, "--stages", "2", whole=True) == 0
    assert without_other_ranks(made, 1, tmp_path / "other").run(1, target, "--stages", "2", whole=True) == 0
    assert (target / MANIFEST_NAME).exists()


def test_a_target_written_in_stages_is_refused_as_a_source(
    made: Pipeline, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert made.run(0, target) == made.run(1, target) == 0
    sides = ["--source", str(target), "--source-strategy", str(made.made.target_strategy), "--target", str(tmp_path / "out")]
    assert main(["transform", *sides]) == 78
    assert "SourceIsStages" in capsys.readouterr().err
    assert main(["inspect", str(target), "--files", "*_part1.*"]) == 0
    assert "moment1.w1" in capsys.readouterr().out


def test_parts_give_the_names_that_the_whole_has(made: Pipeline, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, last = (
        next(t.name for t in made.made.model.tensors if t.source is not None and t.source_stage == stage) for stage in (0, 1)
    )
    one_stage_only = ["--rename", f"{first}=new.first", "--rename", f"{last}=new.last"]
    for stage in (0, 1):
        assert made.run(stage, target, *one_stage_only, whole=True) == 0
    names = disk.parameters_of(manifest(target)).keys()
    assert {"new.first", "new.last"} <= names
    assert not {first, last} & names
    clash = ["--rename", f"{first}=x", "--rename", f"{last}=x"]
    other = target.with_name("other")
    assert made.run(0, other, *clash, whole=True) == 0
    assert made.run(1, other, *clash, whole=True) == 78
    assert "NamesClash" in capsys.readouterr().err
    assert not (other / MANIFEST_NAME).exists()
