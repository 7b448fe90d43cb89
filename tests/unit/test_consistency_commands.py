"""Copies of one parameter that differ, at the command line: refusals, and options to accept them."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import disk
import models
import numpy as np
import pytest
import rawfiles
from definition import Cut

from reshard import plan_transform
from reshard.cli import main
from reshard.layout import Layout
from reshard.mindspore import rank_list_for_transform
from reshard.spec.request import Options, Request
from reshard.strategy import StrategyFile, dump
from reshard.transform import prepare

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def made(tmp_path: Path) -> disk.Checkpoint:
    """Four ranks: `m` is held twice, `step` and the large `base` are in no strategy."""
    model = disk.example()
    twice = models.Tensor("m", "BFloat16", (48, 24), Cut((2, 2), ((1,), ())), 0, Cut((6,), ((), (0,))), 0)
    base = models.Tensor("base", "Float32", (300, 100), None, 0, None, 0)
    others = (tensor for tensor in model.tensors if tensor.name != "m")
    return disk.write(tmp_path / "in", replace(model, tensors=(twice, *others, base)))


def rewrite(made: disk.Checkpoint, rank: int, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    path = made.source / f"rank_{rank}" / "net-1_100.ckpt"
    tensors = rawfiles.read("ckpt", path.read_bytes())
    path.write_bytes(rawfiles.write("ckpt", tensors | {name: change(tensors[name])}))


def manifest(target: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((target / "reshard-manifest.json").read_text())
    return found


def set_step(made: disk.Checkpoint, *values: int) -> None:
    for rank, value in enumerate(values):
        rewrite(made, rank, "step", lambda array, value=value: np.full_like(array, value))


@pytest.mark.parametrize("level", ["none", "sample", "full"])
def test_ranks_of_two_steps_are_refused_with_both_values(
    made: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str], level: str
) -> None:
    set_step(made, 100, 100, 200, 100)
    said = refused(65, "RanksDisagree", *made.arguments(tmp_path / "out", "--verification", level))
    assert "parameter step: " in said
    assert "it is 100 on source ranks 0-1,3 and 200 on source rank 2; " in said
    assert "--allow-inconsistent step (spec.parameters.allowInconsistent)" in said
    assert not (tmp_path / "out").exists()


def test_parameters_that_may_differ_are_taken_by_rank_and_listed(
    made: disk.Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_step(made, 10, 11, 12, 13)
    target = tmp_path / "out"
    assert main(made.arguments(target, "--allow-inconsistent", "st*p", "--allow-inconsistent", "nobody")) == 0
    said = capsys.readouterr().err
    assert "copies of these parameters differ between source ranks" in said
    assert "the pattern nobody matches no parameter" in said
    steps = [rawfiles.read("ckpt", path.read_bytes())["step"].item() for path in sorted(target.glob("rank_*/*"))]
    assert steps == [10, 11, 12, 13, 10, 11]
    found = manifest(target)
    assert found["inconsistentReplicas"] == ["step"]
    assert found["options"]["allowInconsistent"] == ["st*p", "nobody"]


@pytest.mark.parametrize("level", ["none", "sample", "full"])
def test_slices_of_parameters_without_a_layout_are_refused_at_any_size(
    made: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str], level: str
) -> None:
    rewrite(made, 3, "base", lambda array: array[::-1].copy())
    said = refused(65, "RanksDisagree", *made.arguments(tmp_path / "out", "--verification", level))
    assert "parameter base: " in said
    assert "use a strategy that contains the parameter" in said
    refused(65, "RanksDisagree", *made.arguments(tmp_path / "out", "--replicas", "lowest-rank"))


def test_replicas_that_drifted_apart_are_refused_unless_accepted(
    made: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(made, 3, "m", lambda array: array[::-1].copy())
    target = tmp_path / "out"
    said = refused(65, "ReplicasDiffer", *made.arguments(target))
    assert "parameter m: " in said
    assert "on source rank 3" in said
    assert "--replicas lowest-rank (spec.source.replicas: LowestRank)" in said
    refused(65, "ReplicasDiffer", *made.arguments(target, "--allow-inconsistent", "*"))
    assert not target.exists()
    assert main(made.arguments(target, "--replicas", "lowest-rank")) == 0
    assert "replicas of these parameters differ" in capsys.readouterr().err
    assert disk.differences(made.model, target, "ckpt") == []
    assert manifest(target)["inconsistentReplicas"] == ["m"]
    assert manifest(target)["options"]["replicas"] == "LowestRank"


def test_without_verification_replicas_are_not_compared(made: disk.Checkpoint, tmp_path: Path) -> None:
    rewrite(made, 3, "m", lambda array: array[::-1].copy())
    assert main(made.arguments(tmp_path / "out", "--verification", "none")) == 0


def test_a_file_that_was_copied_over_that_of_another_rank_is_noted_if_equal_slices_are_accepted(tmp_path: Path) -> None:
    rows = Cut((4,), ((0,), ()))
    tensors = (models.Tensor("w", "Float32", (8, 8), rows, 0, rows, 0),)
    made = disk.write(tmp_path / "made", models.Model(4, 1, 4, 1, tensors, 1, remove_redundancy=False))
    options = Options(allow_equal_slices=True)
    request = Request(made.source, tmp_path / "target", made.source_strategy, made.target_strategy, options)
    assert not any("look like" in note for note in plan_transform(request).notes)
    name = next((made.source / "rank_1").iterdir()).name
    shutil.copy(made.source / "rank_1" / name, made.source / "rank_3" / name)
    assert any("source ranks 3 look like files of lower ranks" in note for note in plan_transform(request).notes)


def test_a_plan_lists_parameters_that_are_written_whole_to_every_rank(
    made: disk.Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["plan", *made.arguments(tmp_path / "out")[1:]]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["replicated_parameters"] == [
        {"name": "base", "dtype": "Float32", "shape": [300, 100]}
    ]
    assert main(arguments) == 0
    assert re.search(r"base +Float32 +\[300, 100\]", capsys.readouterr().out)


def test_ranks_of_a_plan_skip_the_comparison(made: disk.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_step(made, 1, 2, 3, 4)
    sides = made.arguments(tmp_path / "out", "--allow-inconsistent", "step")[1:]
    assert main(["plan", *sides, "--write", "--verification", "sample"]) == 0
    calls = []
    monkeypatch.setattr(prepare, "check_copies", lambda *_, **__: calls.append(1) or frozenset({"step"}))
    for level in ("none", "sample"):
        assert main(["transform", *sides, "--no-commit", "--verification", level]) == 0
    assert calls == []
    assert main(["transform", *sides, "--no-commit", "--verification", "full"]) == 0
    assert calls == [1]
    assert main(["commit", str(tmp_path / "out")]) == 0
    assert manifest(tmp_path / "out")["inconsistentReplicas"] == ["step"]


def test_an_index_settles_which_copies_count(made: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str]) -> None:
    rewrite(made, 3, "m", lambda array: array[::-1].copy())
    index, target = tmp_path / "index", tmp_path / "out"
    assert main(made.arguments(index, "--output", "index", "--replicas", "lowest-rank")) == 0
    by_index = ["transform", "--source", str(made.source), "--index", str(index), "--target", str(target)]
    refused(2, "InvalidOption", *by_index, "--replicas", "lowest-rank")
    assert main(by_index) == 0
    assert disk.differences(made.model, target, "ckpt") == []
    assert manifest(target)["options"]["replicas"] == "LowestRank"


def test_a_resource_has_the_same_options(made: disk.Checkpoint, tmp_path: Path) -> None:
    set_step(made, 1, 2, 3, 4)
    rewrite(made, 3, "m", lambda array: array[::-1].copy())
    document = {
        "apiVersion": "reshard.dev/v1alpha1",
        "kind": "CheckpointTransform",
        "spec": {
            "source": {
                "storage": {"persistentVolumeClaim": {"claimName": "data", "path": "in/src"}},
                "strategy": {"path": "in/source.ckpt"},
                "replicas": "LowestRank",
            },
            "target": {
                "storage": {"persistentVolumeClaim": {"claimName": "data", "path": "out"}},
                "strategy": {"path": "in/target.ckpt"},
            },
            "parameters": {"allowInconsistent": ["step"]},
        },
    }
    (tmp_path / "transform.yaml").write_text(json.dumps(document))
    assert main(["run", str(tmp_path / "transform.yaml"), "--volume", f"data={tmp_path}"]) == 0
    assert manifest(tmp_path / "out")["inconsistentReplicas"] == ["m", "step"]


def test_stages_that_share_a_parameter_are_compared(tmp_path: Path, refused: Callable[..., str]) -> None:
    whole = np.arange(64, dtype=np.float32).reshape(8, 8)
    rows, columns = Layout((2,), ((0,), ())), Layout((2,), ((), (0,)))
    slices = [whole[:4], whole[4:], whole[:, :4], whole[:, 4:]]
    slices[3] = slices[3].copy()
    slices[3][5, 1] = -1
    for rank, content in enumerate(slices):
        path = tmp_path / "src" / f"rank_{rank}" / "n.ckpt"
        path.parent.mkdir(parents=True)
        path.write_bytes(rawfiles.write("ckpt", {"emb": content}))
    (tmp_path / "s.ckpt").write_bytes(dump(StrategyFile("s", {0: {"emb": rows}, 1: {"emb": columns}}), "protobuf"))
    sides = ["--source", str(tmp_path / "src"), "--source-strategy", str(tmp_path / "s.ckpt"), "--target", str(tmp_path / "out")]
    said = refused(65, "ReplicasDiffer", "transform", *sides, "--verification", "full")
    assert "element [5, 5] is 45.0 on source rank 1 and -1.0 on source rank 3" in said
    assert rank_list_for_transform(0, str(tmp_path / "s.ckpt"), None) == [0, 1]
    assert main(["transform", *sides, "--replicas", "lowest-rank"]) == 0
    content = (tmp_path / "out" / "rank_0" / "checkpoint_0.ckpt").read_bytes()
    assert rawfiles.equal(rawfiles.read("ckpt", content)["emb"], whole)
