"""Skipped tests, which are failures in CI."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from pages import ROOT

if TYPE_CHECKING:
    from pathlib import Path

SUITE = """
import pytest

@pytest.mark.skip(reason="marked")
def test_marked(): ...

def test_inside(): pytest.skip("no reason to run")

@pytest.mark.xfail(reason="known")
def test_known(): assert False

@pytest.mark.parametrize("_", [])
def test_of_no_case(_): ...

def test_passed(): ...
"""
MODULE = 'import pytest\npytest.skip("all of it", allow_module_level=True)\n'


def pytest_on(suite: str, folder: Path, ci: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a suite with the settings of this project's tests."""
    (folder / "test_suite.py").write_text(suite)
    variables = {"CI": ci, "PYTHONPATH": f"{ROOT}/tests:{ROOT}/tests/support", "RESHARD_TEST_COUNTS": str(folder / "counts")}
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "-c", os.devnull, "-rA", *options]
    return subprocess.run(
        [*command, "test_suite.py"], cwd=folder, env=os.environ | variables, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("processes", ["0", "1"])
def test_in_ci_a_skipped_test_is_a_failure_that_is_named(tmp_path: Path, processes: str) -> None:
    done = pytest_on(SUITE, tmp_path, "true", "-n", processes)
    assert done.returncode == 1
    named = re.findall(r"^(FAILED|ERROR|XFAIL|PASSED) test_suite.py::(\w+)", done.stdout, re.MULTILINE)
    assert sorted(named) == [
        ("ERROR", "test_marked"),
        ("ERROR", "test_of_no_case"),
        ("FAILED", "test_inside"),
        ("PASSED", "test_passed"),
        ("XFAIL", "test_known"),
    ]
    assert "marked (with CI=true, a skipped test is a failure)" in done.stdout
    assert (tmp_path / "counts").read_text() == "1 3 0\n"


def test_in_ci_a_skipped_module_is_a_failure(tmp_path: Path) -> None:
    done = pytest_on(MODULE, tmp_path, "true")
    assert done.returncode != 0
    assert "ERROR test_suite.py" in done.stdout


@pytest.mark.parametrize(("suite", "code", "counts"), [(SUITE, 0, "1 0 3\n"), (MODULE, 5, "0 0 1\n")])
def test_elsewhere_a_skipped_test_is_no_failure(tmp_path: Path, suite: str, code: int, counts: str) -> None:
    done = pytest_on(suite, tmp_path, "")
    assert (done.returncode, (tmp_path / "counts").read_text()) == (code, counts), done.stdout
