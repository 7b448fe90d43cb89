"""The Python versions that the classifiers promise are those that are tested."""

from __future__ import annotations

import re
import tomllib

import pytest
import yaml
from pages import ROOT

VERSIONS = ["3.11", "3.12", "3.13", "3.14"]


@pytest.mark.parametrize("project", ["pyproject.toml", "operator/pyproject.toml"])
def test_the_classifiers_promise_them(project: str) -> None:
    found = tomllib.loads((ROOT / project).read_text())["project"]
    promised = [name.rpartition(" ")[2] for name in found["classifiers"] if re.search(r":: 3\.\d+$", name)]
    assert (promised, found["requires-python"]) == (VERSIONS, f">={VERSIONS[0]}")


def test_hosted_ci_runs_the_unit_tier_on_each() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yaml").read_text())["jobs"]
    assert jobs["unit"]["strategy"]["matrix"]["python"] == VERSIONS
    assert "matrix.python" in jobs["unit"]["container"]["image"]


@pytest.mark.parametrize("script", ["Makefile", "tests/packaging/prepare.sh"])
def test_scripts_list_each(script: str) -> None:
    assert f"for version in {' '.join(VERSIONS)}; do" in (ROOT / script).read_text()
