"""`reshard` as users run it: its files, output and exit codes."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import disk
import numpy as np
import pytest

from reshard.cli import main
from reshard.errors import documentation
from reshard.layout import Layout
from reshard.strategy import StrategyFile, dump
from reshard.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KINDS = ["ckpt", "safetensors"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> disk.Checkpoint:
    return disk.write(tmp_path / "in", disk.example())


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The JSON object that is all of standard output."""
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("verify", ["none", "sample", "full"])
def test_any_format_to_any_format(tmp_path: Path, source: str, target: str, verify: str) -> None:
    made = disk.write(tmp_path / "in", disk.example(), source)
    out = tmp_path / "out"
    assert main(made.arguments(out, "--format", target, "--verification", verify, "--crc")) == 0
    assert disk.differences(made.model, out, target) == []
    assert main(["verify", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {f"rank_{r}" for r in range(6)} | {"reshard-manifest.json", ".reshard"}


def test_the_numbers_are_reported(checkpoint: disk.Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(checkpoint.arguments(tmp_path / "out", "--json")) == 0
    numbers = said(capsys)
    written = sum(p.stat().st_size for p in (tmp_path / "out").glob("rank_*/*"))
    assert numbers["source_ranks"] == 4
    assert numbers["target_ranks"] == 6
    assert numbers["parameters"] == 4
    assert numbers["bytes_written"] == written
    assert numbers["bytes_needed"] == 48 * 24 * 4 + 48 * 24 * 2 + 2 * 24 + 6 * 4
    assert numbers["bytes_distinct"] <= numbers["bytes_fetched"] <= 1.25 * numbers["bytes_needed"]
    assert numbers["skipped_ranks"] == []
    assert numbers["seconds"] > 0
    assert numbers["peak_rss_bytes"] > 0


def test_an_unchanged_second_run_does_nothing(
    checkpoint: disk.Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(checkpoint.arguments(out)) == 0
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    capsys.readouterr()
    assert main(checkpoint.arguments(out, "--json")) == 0
    assert said(capsys)["skipped_ranks"] == list(range(6))
    assert main(checkpoint.arguments(out)) == 0
    assert "nothing" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}


def test_another_transform_is_refused_until_it_may_overwrite(
    checkpoint: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str]
) -> None:
    out = tmp_path / "out"
    assert main(checkpoint.arguments(out)) == 0
    other = disk.write(tmp_path / "other", disk.example(seed=2))
    refused(78, "TargetExists", *other.arguments(out))
    assert disk.differences(checkpoint.model, out, "ckpt") == []
    assert main(other.arguments(out, "--overwrite", "--format", "safetensors")) == 0
    assert disk.differences(other.model, out, "safetensors") == []
    assert list(out.glob("rank_*/*.ckpt")) == []
    assert main(["verify", str(out)]) == 0


def test_ranks_can_be_written_in_several_runs(
    checkpoint: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(checkpoint.arguments(out, "--only-ranks", "0,2-3", "--no-commit")) == 0
    refused(66, "ManifestMissing", "verify", str(out))
    assert main(checkpoint.arguments(out, "--only-ranks", "1,4-5", "--no-commit")) == 0
    assert not (out / "reshard-manifest.json").exists()
    assert main(["commit", str(out)]) == 0
    assert disk.differences(checkpoint.model, out, "ckpt") == []
    capsys.readouterr()
    assert main(checkpoint.arguments(out, "--json")) == 0
    assert said(capsys)["skipped_ranks"] == list(range(6))


def test_each_process_takes_its_rank_from_the_environment(
    checkpoint: disk.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank in range(6):
        monkeypatch.setenv("OMPI_COMM_WORLD_RANK", str(rank))
        assert main(checkpoint.arguments(tmp_path / "out", "--rank-from", "OMPI_COMM_WORLD_RANK", "--no-commit")) == 0
        assert [path.name for path in (tmp_path / "out" / f"rank_{rank}").iterdir()] == [f"checkpoint_{rank}.ckpt"]
        assert not (tmp_path / "out" / f"rank_{rank + 1}").exists()
    assert main(["commit", str(tmp_path / "out")]) == 0
    assert disk.differences(checkpoint.model, tmp_path / "out", "ckpt") == []


def test_plan_reports_the_bytes_to_read_and_writes_nothing(
    checkpoint: disk.Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["plan", *checkpoint.arguments(out)[1:]]
    assert main([*arguments, "--json"]) == 0
    plan = said(capsys)
    assert not out.exists()
    assert plan["sources"].keys() == {str(rank) for rank in range(6)}
    assert plan["sources"]["0"] == [0, 1, 2, 3]
    assert 0 < plan["memory_bytes"] < 200e6
    assert main(arguments) == 0
    assert main([*arguments, "--write"]) == 0
    assert list(out.glob(".reshard/*/inventory.json"))


@pytest.mark.parametrize("command", ["plan", "transform"])
def test_excluded_parameters_are_reported_before_and_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    made = disk.example()
    moment = replace(made.tensors[0], name="moment1.w", target=None)
    checkpoint = disk.write(tmp_path / "in", replace(made, tensors=(*made.tensors, moment)))
    assert main([command, *checkpoint.arguments(tmp_path / "out")[1:]]) == 0
    assert "skipped parameters that only the source strategy, or a part file, names: moment1.w" in capsys.readouterr().err


def test_a_changed_target_is_noticed(checkpoint: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str]) -> None:
    out = tmp_path / "out"
    assert main(checkpoint.arguments(out)) == 0
    path = out / "rank_4" / "checkpoint_4.ckpt"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "rank_4/checkpoint_4.ckpt" in refused(65, "ContentChanged", "verify", str(out))


@pytest.mark.parametrize("options", [["--bogus", "--json"], ["--workers", "x", "--json"]])
def test_a_command_line_that_cannot_be_parsed_is_an_error_in_json(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transform", *options]) == 2
    assert said(capsys)["error"]["exitCode"] == 2


def test_an_error_is_json_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path), "--json"]) == 66
    assert said(capsys)["error"] == {
        "reason": "ManifestMissing",
        "message": "reshard-manifest.json does not exist: this is not the complete target of a transform",
        "where": str(tmp_path),
        "remedy": "specify the target of a transform; if the transform was interrupted, run it again",
        "exitCode": 66,
        "documentation": documentation("ManifestMissing"),
    }


def test_files_get_the_requested_mode(checkpoint: disk.Checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(checkpoint.arguments(out, "--file-mode", "0604")) == 0
    assert stat.S_IMODE((out / "rank_0" / "checkpoint_0.ckpt").stat().st_mode) == 0o604
    assert stat.S_IMODE((out / "rank_0").stat().st_mode) == 0o705


def test_a_resource_runs_as_it_is(checkpoint: disk.Checkpoint, tmp_path: Path) -> None:
    resource = tmp_path / "transform.yaml"
    resource.write_text(
        """
apiVersion: reshard.dev/v1alpha1
kind: CheckpointTransform
metadata: {name: example}
spec:
  source:
    storage: {persistentVolumeClaim: {claimName: data, path: in/src}}
    strategy: {path: in/source.ckpt}
  target:
    storage: {persistentVolumeClaim: {claimName: data, path: out}}
    strategy: {path: in/target.ckpt}
    format: Safetensors
    filePrefix: net
  verification: Full
"""
    )
    assert main(["run", str(resource), "--volume", f"data={tmp_path}"]) == 0
    assert disk.differences(checkpoint.model, tmp_path / "out", "safetensors", "net") == []


def test_stages_are_merged_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "stages"
    folder.mkdir()
    for stage in range(2):
        file = StrategyFile("x", {stage: {f"a-{stage}": Layout((2,), ((0,),))}})
        (folder / f"strategy_{stage}.ckpt").write_bytes(dump(file, "protobuf"))
    assert main(["strategy", "merge", str(folder), str(tmp_path / "merged.json")]) == 0
    capsys.readouterr()
    assert main(["strategy", "show", str(tmp_path / "merged.json"), "--json"]) == 0
    shown = said(capsys)
    assert shown["ranks"] == 4
    assert [list(stage) for stage in shown["stages"]] == [["a-0"], ["a-1"]]
    assert main(["strategy", "show", str(folder)]) == 0


def test_inspect_shows_a_checkpoint(checkpoint: disk.Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(checkpoint.source)]) == 0
    assert "Float32" in capsys.readouterr().out
    assert main(["inspect", str(checkpoint.source / "rank_0" / "net-1_100.ckpt"), "--json"]) == 0
    assert "w" in json.dumps(said(capsys))


def test_version_names_build_and_environment(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"reshard {__version__}\n"
    assert main(["version"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[:3] == [f"reshard {__version__}", "commit: unknown", "built: unknown"]
    assert f"numpy: {np.__version__}" in shown
    monkeypatch.setenv("RESHARD_BUILD_COMMIT", "0" * 40)
    monkeypatch.setenv("RESHARD_BUILD_DATE", "2026-01-31T00:00:00Z")
    assert main(["version", "--json"]) == 0
    found = said(capsys)
    assert (found["commit"], found["built"]) == ("0" * 40, "2026-01-31T00:00:00Z")
    assert found["packages"]["numpy"] == np.__version__


@pytest.mark.parametrize(
    "command", ["", "transform", "convert", "run", "plan", "commit", "verify", "inspect", "strategy", "strategy merge"]
)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    assert "Usage: reshard" in capsys.readouterr().out
