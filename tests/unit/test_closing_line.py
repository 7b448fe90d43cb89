"""The closing line of `make test`."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest
from pages import ROOT

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("session", "code", "line"),
    [
        ('echo "30 0 2" >"$RESHARD_TEST_COUNTS"', 0, r"test: 30 passed, 0 failed, 2 skipped in \d+ s"),
        ('echo "30 1 0" >"$RESHARD_TEST_COUNTS"; exit 1', 1, r"test: 30 passed, 1 failed, 0 skipped in \d+ s"),
        ("exit 3", 1, r"test: 0 passed, 0 failed, 0 skipped in \d+ s; ended early: unit"),
    ],
)
def test_the_last_line_sums_all_sessions(tmp_path: Path, session: str, code: int, line: str) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ "$2" = pytest ] || exit 0\n{session}\n')
    python.chmod(0o755)
    done = subprocess.run(["/bin/sh", "scripts/test.sh", python, "unit"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert re.fullmatch(line, done.stdout.splitlines()[-1])
