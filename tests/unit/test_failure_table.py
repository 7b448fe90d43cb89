"""Each failure that Reshard survives in a cluster has a test that exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

TESTS = Path(__file__).parents[1]
ROWS: list[dict[str, Any]] = yaml.safe_load((TESTS / "cluster" / "failures.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("row", ROWS, ids=[row["failure"] for row in ROWS])
def test_a_failure_has_a_promise_and_tests_on_a_real_cluster(row: dict[str, Any]) -> None:
    assert row.keys() == {"failure", "promise", "tests"}
    assert row["tests"]
    for test in row["tests"]:
        path, _, name = test.partition("::")
        assert path.startswith(("cluster/", "installation/"))
        tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, test


def test_the_documentation_has_the_same_rows() -> None:
    text = (TESTS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
    table = text.partition("| failure | promise | tests |")[2].partition("\n\n")[0]
    found = re.findall(r"^\| (.+) \| (.+) \| (\d+) \|$", table, re.MULTILINE)
    assert found == [(row["failure"][:1].upper() + row["failure"][1:], row["promise"], str(len(row["tests"]))) for row in ROWS]


def test_every_test_that_the_documentation_names_exists() -> None:
    text = (TESTS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
    for pattern in re.findall(r"test_[a-z0-9_*]+\.py", text):
        assert list(TESTS.glob(f"*/{pattern}")), pattern
