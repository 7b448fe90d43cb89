"""Standard output and error that are full, closed, or read by nobody any more."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import disk
import numpy as np
import pytest
import rawfiles

from reshard.cli import main

if TYPE_CHECKING:
    from pathlib import Path

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
def test_a_reader_that_has_seen_enough_is_no_failure(large: Path, option: str) -> None:
    ended = shell(f"{PROGRAM} inspect {large} {option} | head -c 10")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(ended.stdout) == 10


@pytest.mark.parametrize("arguments", ["inspect {}", "inspect --json {}", "--help"])
def test_a_full_output_is_said_in_one_line(large: Path, arguments: str) -> None:
    ended = shell(f"{PROGRAM} {arguments.format(large)} >/dev/full")
    said = "reshard: OutputFailed: standard output: No space left on device; check where the output goes, and run again\n"
    assert (ended.returncode, ended.stderr) == (74, said)


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", ">&-"])
def test_the_work_does_not_depend_on_who_listens(tmp_path: Path, redirection: str) -> None:
    made = disk.write(tmp_path / "in", disk.example())
    out = tmp_path / "out"
    assert shell(f"{PROGRAM} {' '.join(made.arguments(out))} {redirection}").returncode == 0
    assert disk.differences(made.model, out, "ckpt") == []
    assert shell(f"{PROGRAM} verify {tmp_path / 'nothing'} {redirection}").returncode == 66


def test_a_call_without_a_command_gets_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["strategy"]) == 2
    said = capsys.readouterr()
    assert "Commands:\n  commit " in said.err
    assert "Commands:\n  merge " in said.err
    assert said.out == ""


def test_hostile_names_are_printed_as_escapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = disk.write(tmp_path / "in", disk.example())
    out = tmp_path / "T\x1b[2J\nreshard: complete"
    assert main(made.arguments(out)) == 0
    assert main(made.arguments(out)) == 0
    said = capsys.readouterr().out
    assert "T\\x1b[2J\\nreshard: complete" in said
    assert "\x1b" not in said
