"""Fixtures shared by unit tests: two small checkpoints, a place for a target, an S3 server, and refusals of the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import disk
import pytest
import thin_s3

from reshard.cli import main
from reshard.errors import documentation
from reshard.storage.s3 import client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def made(tmp_path: Path) -> disk.Checkpoint:
    return disk.write(tmp_path / "made", disk.example())


@pytest.fixture
def other(tmp_path: Path) -> disk.Checkpoint:
    return disk.write(tmp_path / "other", disk.example(seed=2))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[thin_s3.ThinServer]:
    """A small S3 server, and the environment that names it."""
    client.client_of.cache_clear()
    with thin_s3.running() as found:
        for name, value in found.environment().items():
            monkeypatch.setenv(name, value)
        yield found
    client.client_of.cache_clear()


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail, and return its one line of output."""

    def run(code: int, reason: str, *arguments: str) -> str:
        capsys.readouterr()
        assert main(arguments) == code
        said = capsys.readouterr()
        lines = [line for line in said.err.splitlines() if line.startswith("reshard: ")]
        assert len(lines) == 1
        assert lines[0].startswith(f"reshard: {reason}: ")
        assert lines[0].endswith(f". See {documentation(reason)}")
        assert "Traceback" not in said.err
        assert said.out == ""
        return lines[0]

    return run
