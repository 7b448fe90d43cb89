"""Build the release files of both distributions: dist.py FOLDER (`make dist`).

Each distribution gets an sdist, a wheel built from the sdist, and an SBOM (CycloneDX). One provenance statement (SLSA) covers all
files; it is not written if the tree differs from its commit. The same commit gives the same archives.
"""

from __future__ import annotations

import email
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PROJECTS = (ROOT, ROOT / "operator")
NOT_RUNTIME = {"dev", "docs", "fuzz"}  # extras that serve the project itself
BUILD_TOOLS = ("build", "hatch-fancy-pypi-readme", "hatchling")


def main(folder: Path) -> int:
    """Build everything.

    Args:
        folder: output folder. Files of an earlier build are replaced, other files stay.

    Returns:
        The exit code.
    """
    commit, changed = _commit()
    os.environ.setdefault("SOURCE_DATE_EPOCH", _commit_time(commit))
    folder.mkdir(parents=True, exist_ok=True)
    for earlier in _built(folder):
        earlier.unlink()
    for source in PROJECTS:
        _run("build", "--no-isolation", "--outdir", folder, source)
    archives = _built(folder)
    _run("twine", "check", "--strict", *archives)
    wheels = [path for path in archives if path.suffix == ".whl"]
    for wheel in wheels:
        _write_sbom(wheel, wheels)
    project = tomllib.loads((ROOT / "operator" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = project["version"]
    if commit and not changed:
        digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in _built(folder)}
        text = json.dumps(statement(digests, commit, project["urls"]["Source"], version), indent=2)
        (folder / f"reshard-{version}.intoto.json").write_text(text + "\n", encoding="utf-8")
    else:
        why = "the tree differs from its commit" if commit else "the tree is not a Git checkout"
        print(f"dist: no provenance statement: {why}", file=sys.stderr)
    for path in _built(folder):
        print(path)
    return 0


def statement(subjects: dict[str, str], commit: str, source: str, version: str) -> dict[str, Any]:
    """Return an in-toto statement with SLSA provenance of the built files.

    Args:
        subjects: SHA-256 of each file, by name.
        commit: Git object name of the source.
        source: address of the repository.
        version: version of the distributions.
    """
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in subjects.items()],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": f"{source}/scripts/dist.py",
                "externalParameters": {"source": source, "version": version},
                "internalParameters": {
                    "python": platform.python_version(),
                    "SOURCE_DATE_EPOCH": os.environ.get("SOURCE_DATE_EPOCH", ""),
                },
                "resolvedDependencies": [
                    {"uri": f"git+{source}", "digest": {"gitCommit": commit}},
                    *({"uri": f"pkg:pypi/{name}@{metadata.version(name)}"} for name in BUILD_TOOLS),
                ],
            },
            "runDetails": {"builder": {"id": os.environ.get("RESHARD_BUILDER_ID", f"{source}/builders/local")}},
        },
    }


def _built(folder: Path) -> list[Path]:
    return sorted(folder.glob("reshard*-*.*"))


def _write_sbom(wheel: Path, wheels: list[Path]) -> None:
    """Write the components of an installation with the versions in constraints.txt."""
    name, version = wheel.name.split("-")[:2]
    with zipfile.ZipFile(wheel) as archive:
        headers = email.message_from_bytes(archive.read(f"{name}-{version}.dist-info/METADATA"))
    extras = ",".join(sorted(set(headers.get_all("Provides-Extra", [])) - NOT_RUNTIME))
    with tempfile.TemporaryDirectory() as scratch:
        environment = Path(scratch) / "environment"
        venv.create(environment, with_pip=False)
        wanted = [f"{wheel.resolve()}[{extras}]" if extras else wheel.resolve()]
        if name != "reshard":  # it requires `reshard`, which is not on an index yet
            wanted += [other.resolve() for other in wheels if other != wheel]
        pip = ("pip", "--python", environment / "bin" / "python", "install", "--quiet", "--no-compile")
        _run(*pip, "-c", ROOT / "constraints.txt", *wanted)
        for origin in environment.glob("lib/*/site-packages/*.dist-info/direct_url.json"):
            origin.unlink()  # it names a folder of this machine
        root = Path(scratch) / "pyproject.toml"  # the tool reads no dynamic version
        root.write_text(f'[project]\nname = "{name.replace("_", "-")}"\nversion = "{version}"\nlicense = "Apache-2.0"\n')
        out = wheel.parent / f"{name}-{version}.cdx.json"
        options = ("--output-reproducible", "--pyproject", root, "--mc-type", "library", "-o", out)
        _run("cyclonedx_py", "environment", *options, environment / "bin" / "python")


def _run(module: str, *arguments: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{done.stdout}dist: {module} failed, with the output above")


def _commit() -> tuple[str, bool]:
    """Return the commit of the tree, empty where there is none, and whether the tree differs from it."""
    commit = _git("rev-parse", "HEAD")
    return commit, bool(commit and _git("status", "--porcelain"))


def _commit_time(commit: str) -> str:
    found = _git("log", "-1", "--format=%ct", commit) if commit else ""
    return found or "315532800"  # 1980, the first year that a zip file can hold


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("dist: name the folder to build into")
    sys.exit(main(Path(sys.argv[1])))
