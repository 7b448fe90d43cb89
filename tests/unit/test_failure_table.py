"""Each failure that Reshard survives in a cluster has a test that exists."""

from __future__ import annotations

import ast
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
