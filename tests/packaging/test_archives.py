"""The files that `make dist` writes: their contents, and equal bytes in each run."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from typing import TYPE_CHECKING

import pytest
from distributions import COMMITTED_SECONDS, ROOT, TOOLS, Dist, copy_tree, environment, run

from reshard import __version__

if TYPE_CHECKING:
    from pathlib import Path

SOURCES = {"reshard": "converter_image/reshard", "reshard_operator": "operator/reshard_operator"}
both = pytest.mark.parametrize("package", SOURCES)


def sources(package: str) -> set[str]:
    """The files of a package, by their names in it."""
    folder = ROOT / SOURCES[package]
    found = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {f"{package}/{path.relative_to(folder)}" for path in found}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@both
def test_a_wheel_contains_only_its_package(package: str, dist: Dist) -> None:
    names = set(zipfile.ZipFile(dist.file(f"{package}-*.whl")).namelist())
    metadata = f"{package}-{__version__}.dist-info/"
    assert {name for name in names if not name.startswith(metadata)} == sources(package)
    assert {f"{metadata}licenses/LICENSE", f"{package}/py.typed"} <= names


@both
def test_an_sdist_contains_its_package_and_build_files(package: str, dist: Dist) -> None:
    with tarfile.open(dist.file(f"{package}-*.tar.gz")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    source = SOURCES[package].removesuffix(package)
    inside = "" if package == "reshard_operator" else source
    code = {inside + name for name in sources(package)}
    changelog = {"CHANGELOG.md"} if package == "reshard" else set()
    assert names == code | changelog | {"LICENSE", "PKG-INFO", "README.md", "pyproject.toml", ".gitignore"}


def test_links_of_the_readme_are_absolute(dist: Dist) -> None:
    wheel = zipfile.ZipFile(dist.file("reshard-*.whl"))
    text = wheel.read(f"reshard-{__version__}.dist-info/METADATA").decode()
    source = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Source"]
    assert f"]({source}/docs/get-started.md)" in text
    assert "](docs/" not in text


def test_sdists_can_be_installed_and_equal_the_wheels(dist: Dist, tmp_path: Path) -> None:
    sdists = [dist.file("reshard-*.tar.gz"), dist.file("reshard_operator-*.tar.gz")]
    with environment(sys.executable, tmp_path / "environment", ["--no-deps", *sdists]) as programs:
        (site,) = programs.parent.glob("lib/*/site-packages")
        for package in SOURCES:
            with zipfile.ZipFile(dist.file(f"{package}-*.whl")) as archive:
                for name in sources(package):
                    assert (site / name).read_bytes() == archive.read(name), name
        shown = run(programs / "python", "-c", "from importlib.metadata import version as v; print(v('reshard-operator'))")
        assert shown.stdout.strip() == __version__


def test_another_folder_gives_the_same_bytes(dist: Dist, tmp_path: Path) -> None:
    copy_tree(tmp_path / "tree")
    for project in (tmp_path / "tree", tmp_path / "tree" / "operator"):
        subprocess.run(
            [TOOLS / "bin" / "python", "-m", "build", "--no-isolation", "--outdir", tmp_path / "dist", project],
            env=os.environ | {"SOURCE_DATE_EPOCH": COMMITTED_SECONDS},
            umask=0o077,
            capture_output=True,
            check=True,
        )
    again = {path.name: sha256(path) for path in (tmp_path / "dist").iterdir()}
    assert again == {name: sha256(dist.folder / name) for name in again}
    assert len(again) == 4


@both
def test_an_sbom_lists_the_installed_packages(package: str, dist: Dist) -> None:
    text = dist.file(f"{package}-*.cdx.json").read_text()
    found = json.loads(text)
    root = found["metadata"]["component"]
    assert (found["bomFormat"], root["name"], root["version"]) == ("CycloneDX", package.replace("_", "-"), __version__)
    versions = {component["name"]: component["version"] for component in found["components"]}
    expected = {"botocore", "cryptography", "numpy"} if package == "reshard" else {"kopf", "kubernetes", "reshard", "numpy"}
    assert expected <= versions.keys()
    assert not {"pytest", "pip", "cyclonedx-bom"} & versions.keys()
    assert f"msgspec=={versions['msgspec']}\n" in (ROOT / "constraints.txt").read_text()
    assert "file:/" not in text


def test_the_provenance_names_every_file_and_the_commit(dist: Dist) -> None:
    path = dist.file("*.intoto.json")
    found = json.loads(path.read_text())
    files = {other.name: {"sha256": sha256(other)} for other in dist.folder.iterdir() if other != path}
    assert {subject["name"]: subject["digest"] for subject in found["subject"]} == files
    assert len(files) == 6
    assert (found["_type"], found["predicateType"]) == ("https://in-toto.io/Statement/v1", "https://slsa.dev/provenance/v1")
    source, *tools = found["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert source["digest"] == {"gitCommit": dist.commit}
    constraints = (ROOT / "constraints.txt").read_text()
    assert all(tool["uri"].removeprefix("pkg:pypi/").replace("@", "==") + "\n" in constraints for tool in tools)
    assert found["predicate"]["runDetails"]["builder"]["id"]
