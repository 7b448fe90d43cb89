"""What tests of the command line share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from reshard.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must fail: returns the one line that it says."""

    def run(code: int, reason: str, *arguments: str) -> str:
        capsys.readouterr()
        assert main(arguments) == code
        said = capsys.readouterr()
        lines = [line for line in said.err.splitlines() if line.startswith("reshard: ")]
        assert len(lines) == 1
        assert lines[0].startswith(f"reshard: {reason}: ")
        assert "Traceback" not in said.err
        assert said.out == ""
        return lines[0]

    return run
