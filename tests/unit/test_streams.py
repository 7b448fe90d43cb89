"""Standard output and error that are full, closed, or no longer read."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import disk
import numpy as np
import pytest
import rawfiles

from reshard.cli import main
from reshard.errors import documentation

PROGRAM = f"{sys.executable} -m reshard"


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file whose listing does not fit into a pipe."""
    path = tmp_path / "large.ckpt"
    path.write_bytes(rawfiles.ckpt({f"{number}{'x' * 1000}": np.zeros(1, np.int8) for number in range(300)}))
    return path


def shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["/bin/bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("option", ["", "--json"])
def test_a_closed_pipe_is_not_a_failure(large: Path, option: str) -> None:
    ended = shell(f"{PROGRAM} inspect {large} {option} | head -c 10")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(ended.stdout) == 10


@pytest.mark.parametrize("arguments", ["inspect {}", "inspect --json {}", "--help"])
def test_a_full_output_device_is_reported_in_one_line(large: Path, arguments: str) -> None:
    ended = shell(f"{PROGRAM} {arguments.format(large)} >/dev/full")
    said = "reshard: OutputFailed: standard output: No space left on device; check its destination, and run the command again"
    assert (ended.returncode, ended.stderr) == (74, f"{said}. See {documentation('OutputFailed')}\n")


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", ">&-"])
def test_the_work_does_not_depend_on_the_output_streams(tmp_path: Path, redirection: str) -> None:
    made = disk.write(tmp_path / "in", disk.example())
    out = tmp_path / "out"
    assert shell(f"{PROGRAM} {' '.join(made.arguments(out))} {redirection}").returncode == 0
    assert disk.differences(made.model, out, "ckpt") == []
    assert shell(f"{PROGRAM} verify {tmp_path / 'nothing'} {redirection}").returncode == 66


def test_a_call_without_a_command_gets_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["strategy"]) == 2
    said = capsys.readouterr()
    assert "Write checkpoints:\n  transform " in said.err
    assert "Commands:\n  show   Show " in said.err
    assert said.out == ""


def test_hostile_names_are_printed_as_escapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = disk.write(tmp_path / "in", disk.example())
    out = tmp_path / "T\x1b[2J\nreshard: complete"
    assert main(made.arguments(out)) == 0
    assert main(made.arguments(out)) == 0
    said = capsys.readouterr().out
    assert "T\\x1b[2J\\nreshard: complete" in said
    assert "\x1b" not in said


@pytest.fixture
def foreign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    """Every command that prints, with names that require Unicode."""
    folder = tmp_path / "结果"
    model = disk.example()
    named = replace(model, tensors=tuple(replace(t, name=f"{t.name}权重") for t in model.tensors))
    made = disk.write(folder / "in", named)
    out = str(folder / "out")
    request = made.arguments(folder / "planned")[1:]
    stages = folder / "stages"
    stages.mkdir()
    (stages / "stage_0.ckpt").write_bytes(made.target_strategy.read_bytes())
    layout = folder / "layout.yaml"
    layout.write_text("{apiVersion: reshard.dev/layout-v1, mesh: dp=2, rules: [{match: '*'}]}")
    checkpoint = ["--checkpoint", str(made.source), "--source-strategy", str(made.source_strategy)]
    assert main(made.arguments(folder / "out")) == 0
    assert main(made.arguments(folder / "begun", "--no-commit")) == 0
    capsys.readouterr()
    return {
        "transform": made.arguments(folder / "new"),
        "nothing to do": made.arguments(folder / "out"),
        "plan": ["plan", *request],
        "picture": ["plan", *request, "--picture"],
        "parameter": ["plan", *request, "--parameter", "*"],
        "inspect": ["inspect", out, "--all"],
        "verify": ["verify", out],
        "commit": ["commit", str(folder / "begun")],
        "convert": ["convert", str(made.source), str(folder / "converted"), "--format", "safetensors"],
        "fetch": ["fetch", *request[:-2], "--target", str(folder / "fetched"), "--rank", "1"],
        "strategy show": ["strategy", "show", str(made.target_strategy)],
        "layout show": ["layout", "show", str(layout)],
        "layout check": ["layout", "check", str(layout), *checkpoint],
        "layout export": ["layout", "export", str(layout), *checkpoint, "-o", str(folder / "exported")],
        "strategy merge": ["strategy", "merge", str(stages), str(folder / "merged.json")],
    }


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_every_command_prints_to_streams_that_lack_its_characters(
    foreign: dict[str, list[str]], encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, arguments in foreign.items():
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        assert (name, main(arguments)) == (name, 0)
        out.seek(0)
        printed = out.read()
        assert printed
        assert "?" not in printed
        if name == "parameter":
            assert "4 -> 6 ranks" in printed
            assert "####" in printed
            assert "+----" in printed
            assert "w\\u6743\\u91cd" in printed
            assert "\\u2588" not in printed
        assert main(["inspect", "没有"]) == 66
        err.seek(0)
        assert "\\u6ca1\\u6709" in err.read()


def test_a_program_prints_to_a_stream_that_lacks_its_characters(foreign: dict[str, list[str]]) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "reshard", *foreign["transform"]],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert ended.returncode == 0
    assert rb"\u7ed3\u679c" in ended.stdout


@pytest.mark.parametrize("option", ["", "--json"])
def test_every_command_survives_a_closed_pipe(
    foreign: dict[str, list[str]], option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, arguments in foreign.items():
        if option and name in {"picture", "parameter", "strategy merge"}:
            continue
        reading, writing = os.pipe()
        os.close(reading)
        with contextlib.suppress(BrokenPipeError), os.fdopen(writing, "w", encoding="utf-8") as pipe:
            monkeypatch.setattr(sys, "stdout", pipe)
            assert (name, main([*arguments, *option.split()])) == (name, 0)
            assert sys.stdout is pipe
            monkeypatch.undo()
    assert "reshard: " not in capsys.readouterr().err


def test_a_closed_terminal_stops_nothing(tmp_path: Path) -> None:
    made = disk.write(tmp_path / "in", disk.example())
    ours, theirs = pty.openpty()
    os.close(ours)
    ended = subprocess.run(
        [sys.executable, "-m", "reshard", *made.arguments(tmp_path / "out")], stderr=theirs, stdout=subprocess.PIPE, check=False
    )
    os.close(theirs)
    assert ended.returncode == 0
    assert disk.differences(made.model, tmp_path / "out", "ckpt") == []


def test_main_leaves_the_callers_streams_as_they_were(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w", encoding="ascii", buffering=1) as full, io.StringIO() as closed:
        closed.close()
        for stdout, code in ((full, 74), (None, 0), (closed, 0)):
            monkeypatch.setattr(sys, "stdout", stdout)
            monkeypatch.setattr(sys, "stderr", None)
            assert main(["inspect", str(large)]) == code
            assert (sys.stdout, sys.stderr) == (stdout, None)
        with contextlib.suppress(OSError):
            full.close()
