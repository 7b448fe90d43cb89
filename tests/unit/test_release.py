"""The tree names one version, and `make release` changes it everywhere in a copy of the tree."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from reshard import __version__
from reshard.errors import DOCUMENTATION

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "reshard"
PATHS = (
    "CHANGELOG.md",
    "converter_image/Dockerfile",
    "converter_image/reshard/version.py",
    "crds/checkpointtransforms.yaml",
    "examples/compile-on-cpu/job.yaml",
    "examples/online-load/training.yaml",
    "helm/reshard/Chart.yaml",
    "helm/reshard/files/checkpointtransforms.yaml",
    "operator/Dockerfile",
    "operator/pyproject.toml",
    "scripts/release.py",
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for path in PATHS:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, tmp_path / path)
    return tmp_path


def release(tree: Path, version: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "scripts/release.py", version], cwd=tree, capture_output=True, text=True, check=False)


def contents(tree: Path) -> dict[str, str]:
    return {path: (tree / path).read_text() for path in PATHS}


def named(tree: Path) -> set[str]:
    """Every version of the project that a file outside the changelog names, found without the script's own table."""
    chart = yaml.safe_load((tree / "helm/reshard/Chart.yaml").read_text())
    operator = tomllib.loads((tree / "operator/pyproject.toml").read_text())["project"]
    found = {chart["version"], chart["appVersion"], operator["version"]}
    found |= {image["image"].rpartition(":")[2] for image in annotation(chart, "images")}
    found |= {name.removeprefix("reshard==") for name in operator["dependencies"] if name.startswith("reshard==")}
    for part in ("converter_image", "operator"):
        found |= set(re.findall(r"^ARG VERSION=(.*)$", (tree / part / "Dockerfile").read_text(), re.MULTILINE))
    for path in ("crds", "helm/reshard/files"):
        labels = yaml.safe_load((tree / path / "checkpointtransforms.yaml").read_text())["metadata"]["labels"]
        found.add(labels["app.kubernetes.io/version"])
    for path in ("compile-on-cpu/job.yaml", "online-load/training.yaml"):
        found |= set(re.findall(r"reshard-converter:(\S+)", (tree / "examples" / path).read_text()))
    found |= set(re.findall(r'__version__ = "(.*)"', (tree / "converter_image/reshard/version.py").read_text()))
    return found


def annotation(chart: dict[str, Any], name: str) -> Any:
    return yaml.safe_load(chart["annotations"][f"artifacthub.io/{name}"])


def test_the_tree_names_one_version() -> None:
    assert named(ROOT) == {__version__}


def test_no_other_place_names_the_version() -> None:
    listed = subprocess.run(
        ["git", "grep", "--fixed-strings", "--word-regexp", "--name-only", "--untracked", __version__],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    elsewhere = ("CHANGELOG.md", "constraints.txt", "tests/", "findings/")
    assert {path for path in listed.stdout.splitlines() if not path.startswith(elsewhere)} <= set(PATHS)


def test_a_release_changes_every_place_and_the_changelog(tree: Path) -> None:
    added, fixed = "- A format: `x`\n  ([Formats](docs/x.md)).", '- "Quotes" \\ ok.'
    groups = f"### Added\n\n#### Files\n\n{added}\n\n#### Other\n\n### Fixed\n\n{fixed}\n"
    (tree / "CHANGELOG.md").write_text(f"## [Unreleased]\n\n{groups}")
    done = release(tree, "7.8.9")
    assert done.returncode == 0, done.stderr
    assert named(tree) == {"7.8.9"}
    changelog = (tree / "CHANGELOG.md").read_text()
    assert re.search(r"## \[Unreleased\]\n\n## \[7\.8\.9\] - \d{4}-\d\d-\d\d\n\n### Added\n\n#### Files\n", changelog)
    chart = yaml.safe_load((tree / "helm/reshard/Chart.yaml").read_text())
    assert annotation(chart, "changes") == [
        {"kind": "added", "description": "A format: `x` (Formats)."},
        {"kind": "fixed", "description": '"Quotes" \\ ok.'},
    ]
    assert "git tag --sign v7.8.9" in done.stdout
    assert release(tree, "7.8.10").returncode == 1, "nothing is listed for it"


def test_the_changelog_of_this_tree_can_be_released(tree: Path) -> None:
    done = release(tree, "99.0.0")
    assert done.returncode == 0, done.stderr
    chart = yaml.safe_load((tree / "helm/reshard/Chart.yaml").read_text())
    entries = re.findall(r"^- ", (tree / "CHANGELOG.md").read_text().split("## [99.0.0]")[1].split("\n## ")[0], re.MULTILINE)
    assert len(annotation(chart, "changes")) == len(entries) > 0


@pytest.mark.parametrize("version", ["1.2", "v1.2.3", "1.2.3rc1", "1.2.3\n", "latest", ""])
def test_an_invalid_version_changes_nothing(tree: Path, version: str) -> None:
    before = contents(tree)
    done = release(tree, version)
    assert (done.returncode, "such as 1.2.0" in done.stderr) == (1, True)
    assert contents(tree) == before


def test_a_version_that_is_not_later_than_the_newest_changes_nothing(tree: Path) -> None:
    changelog = tree / "CHANGELOG.md"
    changelog.write_text("## [Unreleased]\n\n### Added\n\n- x\n\n## [0.10.0] - 2026-01-01\n\n## [0.9.0] - 2025-01-01\n")
    before = contents(tree)
    for version in ("0.10.0", "0.9.1", "0.2.0"):
        assert release(tree, version).returncode == 1
    assert contents(tree) == before
    assert release(tree, "0.10.1").returncode == 0


def test_a_place_without_a_version_changes_nothing(tree: Path) -> None:
    dockerfile = tree / "operator" / "Dockerfile"
    dockerfile.write_text(dockerfile.read_text().replace("ARG VERSION=", "ARG VERSION_="))
    before = contents(tree)
    done = release(tree, "99.0.0")
    assert (done.returncode, "operator/Dockerfile" in done.stderr) == (1, True)
    assert contents(tree) == before


def test_distributions_images_and_chart_name_one_home() -> None:
    library, operator = (
        tomllib.loads((folder / "pyproject.toml").read_text())["project"] for folder in (ROOT, ROOT / "operator")
    )
    assert library["urls"] == operator["urls"]
    same = ("authors", "license", "requires-python")
    assert [library[field] for field in same] == [operator[field] for field in same]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    urls = library["urls"]
    assert (chart["home"], chart["sources"]) == (urls["Homepage"], [urls["Source"]])
    assert {link["url"] for link in annotation(chart, "links")} == {urls["Documentation"], urls["Issues"]}
    for part in ("converter_image", "operator"):
        dockerfile = (ROOT / part / "Dockerfile").read_text()
        assert f'org.opencontainers.image.source="{urls["Source"]}"' in dockerfile
        assert f'org.opencontainers.image.url="{urls["Homepage"]}"' in dockerfile
        assert f'org.opencontainers.image.licenses="{library["license"]}"' in dockerfile
    assert chart["annotations"]["artifacthub.io/license"] == library["license"]
    assert (ROOT / "operator" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_every_address_of_the_project_is_one_of_its_urls() -> None:
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    assert urls["Documentation"] == DOCUMENTATION
    assert f"site_url: {DOCUMENTATION}/\n" in (ROOT / "mkdocs.yml").read_text()
    command = ["git", "grep", "--untracked", "-oE", r"https://reshard\.dev[^]\") >]*", "--", ":!tests"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    below = tuple(f"{urls[name]}{mark}" for name in ("Documentation", "Source") for mark in ("/", "#"))
    found = {line.partition(":")[::2] for line in listed.stdout.splitlines()}
    assert [line for line in sorted(found) if line[1] not in urls.values() and not line[1].startswith(below)] == []


def test_the_charts_annotations_name_its_images() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    images = {image["name"]: image["image"] for image in annotation(chart, "images")}
    assert images == {part: f"{values[part]['image']['repository']}:{chart['appVersion']}" for part in ("operator", "converter")}
    crd = yaml.safe_load((CHART / "files" / "checkpointtransforms.yaml").read_text())
    (described,) = annotation(chart, "crds")
    names = (described["kind"], described["version"], described["name"])
    assert names == (crd["spec"]["names"]["kind"], crd["spec"]["versions"][0]["name"], crd["metadata"]["name"])
    assert {change["kind"] for change in annotation(chart, "changes")} <= {
        "added",
        "changed",
        "deprecated",
        "removed",
        "fixed",
        "security",
    }
    assert json.loads(chart["annotations"]["artifacthub.io/prerelease"]) is False
