"""`reshard fetch`: the file of one rank on a pod's own disk, complete or absent, and written once."""

from __future__ import annotations

import json
from functools import reduce
from pathlib import Path

import disk
import pytest
import rawfiles
import yaml
from rawfiles import same

from reshard.cli import main
from reshard.spec.resource import parse_resource

ROOT = Path(__file__).parents[2]
PLAIN = ["--source-strategy", "{made}/source.ckpt", "--target-strategy", "{made}/target.ckpt"]


@pytest.fixture
def made(tmp_path: Path) -> disk.Checkpoint:
    (tmp_path / "made").mkdir()
    return disk.write(tmp_path / "made", disk.example())


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


def fetch(made: disk.Checkpoint, output: Path, *more: str, by: str = "headers") -> int:
    sides = ["--index", str(made.folder / "index")] if by == "index" else [word.format(made=made.folder) for word in PLAIN]
    return main(["fetch", "--source", str(made.source), *sides, "--target", str(output), *more])


def holds(made: disk.Checkpoint, output: Path, rank: int, kind: str = "ckpt") -> bool:
    content = (output / f"rank_{rank}" / f"checkpoint_{rank}.{kind}").read_bytes()
    return same(rawfiles.read(kind, content), made.model.target(rank))


@pytest.mark.parametrize("by", ["headers", "index"])
@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_a_file_is_written_once_and_then_up_to_date(
    made: disk.Checkpoint, output: Path, by: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*made.arguments(made.folder / "index"), "--output", "index"]) == 0
    for said in ("rank 3 of 6: ", "nothing to do: rank 3 of 6 is up to date"):
        capsys.readouterr()
        assert fetch(made, output, "--rank", "3", "--format", kind, by=by) == 0
        assert said in capsys.readouterr().out
        assert holds(made, output, 3, kind)
    assert [path.name for path in output.glob("rank_*")] == ["rank_3"]
    assert main(["verify", str(output)]) == 0


def test_a_missing_file_is_fetched_again(made: disk.Checkpoint, output: Path) -> None:
    assert fetch(made, output, "--rank", "0") == 0
    (output / "rank_0" / "checkpoint_0.ckpt").unlink()
    assert fetch(made, output, "--rank", "0") == 0
    assert holds(made, output, 0)


def test_the_example_of_a_training(output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    job = yaml.safe_load((ROOT / "examples" / "online-load" / "training.yaml").read_text())["spec"]
    pod = job["template"]["spec"]
    for rank in range(job["completions"]):
        monkeypatch.setenv("JOB_COMPLETION_INDEX", str(rank))
        for container in (*pod["initContainers"], *pod["containers"]):
            words = [word.replace("$(JOB_COMPLETION_INDEX)", str(rank)) for word in container["args"]]
            places = {"/checkpoints/": f"{ROOT}/tests/conformance/corpus/", "/model": str(output)}
            assert main([reduce(lambda word, place: word.replace(*place), places.items(), word) for word in words]) == 0
        assert f"rank {rank} of 4" in capsys.readouterr().out
    parse_resource((ROOT / "examples" / "online-load" / "index.yaml").read_text(), "index.yaml")


def test_the_same_bytes_as_a_transform(made: disk.Checkpoint, tmp_path: Path) -> None:
    assert main(made.arguments(tmp_path / "all")) == 0
    assert fetch(made, tmp_path / "one", "--rank", "4") == 0
    name = "rank_4/checkpoint_4.ckpt"
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "all" / name).read_bytes()


def test_a_number_from_the_environment_may_select_several_ranks(
    made: disk.Checkpoint, output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK_ID", "2")
    assert fetch(made, output, "--rank-from", "RANK_ID", "--ranks-per-pod", "2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["committed_ranks"] == "4-5"
    assert holds(made, output, 4)
    assert holds(made, output, 5)


@pytest.mark.parametrize(
    ("more", "value", "reason"),
    [
        ([], None, "RankMissing"),
        (["--rank", "1", "--rank-from", "RANK_ID"], "1", "RanksConflict"),
        (["--rank-from", "RANK_ID"], None, "VariableMissing: RANK_ID"),
        *((["--rank-from", "RANK_ID"], value, "InvalidVariable: RANK_ID") for value in ("x", "-1", "1.0", "\u0663", "9" * 30)),
        (["--rank-from", "RANK_ID"], "6", "NoSuchRank"),
        (["--rank", "1", "--target-strategy", "nowhere"], None, "StrategyMissing"),
    ],
)
def test_invalid_requests_are_refused(
    made: disk.Checkpoint,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    value: str | None,
    reason: str,
) -> None:
    monkeypatch.delenv("RANK_ID", raising=False)
    if value is not None:
        monkeypatch.setenv("RANK_ID", value)
    assert fetch(made, output, *more) in (2, 66, 78)
    assert f"reshard: {reason}" in capsys.readouterr().err
    assert not output.exists()


def test_another_checkpoint_is_replaced_if_requested(
    made: disk.Checkpoint, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetch(made, output, "--rank", "2") == 0
    changed = made.source / "rank_1" / "net-1_100.ckpt"
    content = changed.read_bytes()
    changed.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    assert fetch(made, output, "--rank", "2") == 78
    assert "TargetExists" in capsys.readouterr().err
    assert fetch(made, output, "--rank", "3", "--overwrite") == 78  # rank 2 would be lost
    assert "PartialReplacement" in capsys.readouterr().err
    changed.write_bytes(content)
    assert fetch(made, output, "--rank", "2", "--crc", "--overwrite") == 0
    assert holds(made, output, 2)
