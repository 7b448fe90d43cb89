"""Telemetry of a run: log records, and durations in results and manifests."""

from __future__ import annotations

import json
import logging
import re
from typing import TYPE_CHECKING, Any

import disk
import pytest
from pages import ROOT

from reshard.cli import main
from reshard.telemetry import durations, operation, phase

if TYPE_CHECKING:
    from pathlib import Path

RUN = {"check_target", "plan", "read_headers", "compare_replicas", "start", "write_ranks", "commit"}


@pytest.fixture
def made(tmp_path: Path) -> disk.Checkpoint:
    return disk.write(tmp_path / "in", disk.example())


def manifest(target: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((target / "reshard-manifest.json").read_bytes())
    return found


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Standard error, each line of which must be a log record in JSON."""
    found = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert all({"timestamp", "level", "logger", "message"} <= line.keys() for line in found)
    return found


def test_each_phase_is_one_record(made: disk.Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main(["--log-level", "info", *made.arguments(tmp_path / "out")]) == 0
    records = [record.__dict__ for record in caplog.records]
    assert {record["name"] for record in records} == {"reshard"}
    once = [record["phase"] for record in records if "rank" not in record]
    assert sorted(once) == sorted({*RUN, "transform_checkpoint"})
    assert once[-1] == "transform_checkpoint"
    for name in ("write_rank", "verify_rank"):
        assert sorted(record["rank"] for record in records if record["phase"] == name) == list(range(6))
    for record in records:
        assert record["seconds"] > 0
        if record["phase"] == "write_rank":
            written = (tmp_path / "out" / f"rank_{record['rank']}" / f"checkpoint_{record['rank']}.ckpt").stat().st_size
            assert record["bytes_written"] == written
            assert record["bytes_per_second"] == round(written / record["seconds"])
            assert record["message"].startswith(f"write rank {record['rank']}: ")
    ranks = next(record for record in records if record["phase"] == "write_ranks")
    assert ranks["bytes_written"] == sum(r["bytes_written"] for r in records if r["phase"] == "write_rank")


def test_json_lines_are_all_that_standard_error_gets(
    made: disk.Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESHARD_LOG_FORMAT", "json")
    monkeypatch.setenv("RESHARD_LOG_LEVEL", "info")
    logger = logging.getLogger("reshard")
    before = (logger.handlers[:], logger.level)
    assert main(made.arguments(tmp_path / "out")) == 0
    said = lines(capsys)
    assert {line["phase"] for line in said if "phase" in line} == {*RUN, "write_rank", "verify_rank", "transform_checkpoint"}
    assert any(line["message"].startswith("Resharding: ") for line in said)
    assert main(["verify", str(tmp_path / "none")]) == 66
    *_, last = lines(capsys)
    assert (last["level"], last["reason"], last["exit_code"]) == ("ERROR", "ManifestMissing", 66)
    assert (logger.handlers, logger.level) == before


def test_a_failed_phase_names_the_reason(made: disk.Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    next(made.source.rglob("*.ckpt")).write_bytes(b"")
    assert main(["--log-format", "json", "--log-level", "info", *made.arguments(tmp_path / "out")]) == 66
    said = lines(capsys)
    failed = [line["phase"] for line in said if line.get("error") == said[-1]["reason"]]
    assert failed == ["read_headers", "plan", "transform_checkpoint"]


def test_nothing_is_logged_by_default(made: disk.Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(made.arguments(tmp_path / "out")) == 0
    quiet = capsys.readouterr().err
    assert "plan" not in quiet
    assert main(["--log-level", "info", *made.arguments(tmp_path / "other")]) == 0
    assert " INFO reshard: plan: " in capsys.readouterr().err


def test_other_loggers_are_left_alone(made: disk.Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The S3 client logs requests with their signatures at level debug."""
    caplog.set_level(logging.WARNING)
    assert main(["--log-level", "debug", *made.arguments(tmp_path / "out")]) == 0
    assert logging.getLogger("botocore").getEffectiveLevel() == logging.WARNING


def test_results_and_the_manifest_have_durations(
    made: disk.Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(made.arguments(tmp_path / "out", "--json")) == 0
    result, written = json.loads(capsys.readouterr().out), manifest(tmp_path / "out")
    assert result["durations"].keys() == written["durations"].keys() == RUN
    assert all(seconds > 0 for seconds in written["durations"].values())
    assert (
        sum(result["durations"][name] for name in ("check_target", "plan", "start", "write_ranks", "commit")) < result["seconds"]
    )
    ranks = {rank["rank"]: rank for rank in result["ranks"]}
    assert ranks.keys() == set(range(6))
    for record in written["files"]:
        rank = ranks[record["rank"]]
        assert (rank["bytes_fetched"], rank["bytes_written"]) == (record["bytesFetched"], record["size"])
        assert rank["seconds"] == record["seconds"] > 0
    assert main(made.arguments(tmp_path / "out", "--json")) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["ranks"], again["durations"].keys() & {"write_ranks", "commit"}) == ([], set())


def test_a_verification_reports_durations_and_throughput(
    made: disk.Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(made.arguments(tmp_path / "out")) == 0
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "out"), "--json"]) == 0
    result, written = json.loads(capsys.readouterr().out), manifest(tmp_path / "out")
    assert (result["digest"], result["committed_ranks"], result["target_ranks"]) == (written["digest"], "0-5", 6)
    assert [(file["rank"], file["path"], file["bytes_fetched"]) for file in result["files"]] == [
        (record["rank"], record["path"], record["size"]) for record in written["files"]
    ]
    assert all(file["seconds"] > 0 for file in result["files"])
    assert result["bytes_fetched"] == sum(record["size"] for record in written["files"])
    assert result["durations"].keys() == {"verify_files"}
    assert 0 < result["durations"]["verify_files"] < result["seconds"]
    assert main(["verify", str(tmp_path / "out")]) == 0
    assert re.search(r"^intact: ranks 0-5 of 6, .* in 6 files, verified in \d+\.\d\d s \(.*/s\)$", capsys.readouterr().out)


def test_a_commit_keeps_the_durations_of_the_plan(
    made: disk.Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out"
    assert main(["plan", *made.arguments(target)[1:], "--write", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["durations"]
    for ranks in ("0-2", "3-5"):
        assert main(made.arguments(target, "--only-ranks", ranks, "--no-commit")) == 0
    capsys.readouterr()
    assert main(["commit", str(target), "--json"]) == 0
    written = manifest(target)
    assert json.loads(capsys.readouterr().out)["durations"] == written["durations"]
    assert written["durations"].keys() == {"plan", "read_headers", "compare_replicas", "start", "commit"}
    for name in ("plan", "read_headers", "compare_replicas"):
        assert written["durations"][name] == planned[name]
    assert all(record["seconds"] > 0 for record in written["files"])


def test_manifests_of_equal_transforms_differ_in_measurements_only(made: disk.Checkpoint, tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        assert main(made.arguments(tmp_path / name)) == 0
        found.append(manifest(tmp_path / name))
    assert found[0] != found[1]
    for each in found:
        del each["durations"], each["checksum"]
        for record in each["files"]:
            del record["seconds"], record["version"]
    assert found[0] == found[1]


def test_an_operation_collects_its_own_phases() -> None:
    with operation("outer"):
        with phase("a"):
            pass
        with operation("inner"), phase("b"):
            assert durations().keys() == {"b"}
        with phase("c", rank=0), phase("a"):
            assert durations().keys() == {"a"}
        taken = durations()
    with phase("d"):
        assert durations() == {}
    assert 0 < taken["a"] < 1


def test_every_phase_is_documented() -> None:
    sources = (path.read_text() for path in (ROOT / "converter_image" / "reshard").rglob("*.py"))
    names = {name for text in sources for name in re.findall(r'\b(?:phase|operation)\("(\w+)"', text)}
    section = (ROOT / "docs" / "observability.md").read_text().partition("### Phases")[2].partition("\n## ")[0]
    rows = (line.split("|")[1] for line in section.splitlines() if line.startswith("| `"))
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == names
