"""Prepare a release in the tree: release.py VERSION (`make release VERSION=1.2.0`).

Write the version wherever it is named, turn the changelog's section "Unreleased" into the version's, and list its changes in the
chart's annotations. Commit, tag and publish nothing.
"""

from __future__ import annotations

import json
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parents[1]
CHANGELOG, CHART = "CHANGELOG.md", "helm/reshard/Chart.yaml"
_VERSION = r"\d+\.\d+\.\d+"

# Files that name the version, with the patterns before and after it.
PLACES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "converter_image/reshard/version.py": ((r'__version__ = "', '"'),),
    "operator/pyproject.toml": ((r'^version = "', '"'), (r'"reshard==', '"')),
    CHART: ((r"^version: ", "$"), (r"^appVersion: ", "$"), (r"image: \S*reshard-\w+:", "$")),
    "crds/checkpointtransforms.yaml": ((r'app\.kubernetes\.io/version: "', '"'),),
    "helm/reshard/files/checkpointtransforms.yaml": ((r'app\.kubernetes\.io/version: "', '"'),),
    "converter_image/Dockerfile": ((r"^ARG VERSION=", "$"),),
    "operator/Dockerfile": ((r"^ARG VERSION=", "$"),),
    "examples/compile-on-cpu/job.yaml": ((r"image: \S*reshard-converter:", " "),),
    "examples/online-load/training.yaml": ((r"image: \S*reshard-converter:", " "),),
}
_UNRELEASED = "## [Unreleased]\n"
_SECTION = re.compile(r"^## \[Unreleased\]\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_KIND = re.compile(r"^### (Added|Changed|Deprecated|Removed|Fixed|Security)\n(.*?)(?=^### |\Z)", re.MULTILINE | re.DOTALL)
_CHANGES = re.compile(r"^  artifacthub\.io/changes: \|\n(?:    .*\n)*", re.MULTILINE)


class ReleaseError(Exception):
    """The release cannot be prepared."""


def versions(files: Mapping[str, str]) -> dict[str, set[str]]:
    """Return the versions that each file names.

    Args:
        files: text of each file of `PLACES`, by path.

    Raises:
        ReleaseError: a file does not name a version where it should.
    """
    found: dict[str, set[str]] = {}
    for path, places in PLACES.items():
        for before, after in places:
            named = re.findall(f"{before}({_VERSION}){after}", files[path], re.MULTILINE)
            if not named:
                raise ReleaseError(f"{path}: no version after {before!r}")
            found.setdefault(path, set()).update(named)
    return found


def prepare(files: Mapping[str, str], version: str, date: str) -> dict[str, str]:
    """Return the text of each file as it is released.

    Args:
        files: text of each file of `PLACES` and of the changelog, by path.
        version: version to release, three numbers.
        date: its day, as 2026-01-31.

    Raises:
        ReleaseError: the version or the changelog does not permit a release.
    """
    if not re.fullmatch(_VERSION, version):
        raise ReleaseError(f"{version!r} is not a version of three numbers, such as 1.2.0")
    changelog = files[CHANGELOG]
    released = re.findall(rf"^## \[({_VERSION})\]", changelog, re.MULTILINE)
    newest = max(map(_numbers, released), default=(0, 0, 0))
    if _numbers(version) <= newest:
        raise ReleaseError(f"{CHANGELOG}: {'.'.join(map(str, newest))} is released already; choose a later version")
    section = _SECTION.search(changelog)
    changes = [] if section is None else _changes(section[1])
    if not changes:
        raise ReleaseError(f'{CHANGELOG}: nothing is listed under "Unreleased"')
    versions(files)
    result = dict(files)
    for path, places in PLACES.items():
        for before, after in places:
            result[path] = re.sub(f"({before}){_VERSION}(?={after})", rf"\g<1>{version}", result[path], flags=re.MULTILINE)
    result[CHANGELOG] = changelog.replace(_UNRELEASED, f"{_UNRELEASED}\n## [{version}] - {date}\n", 1)
    result[CHART], replaced = _CHANGES.subn(lambda _: _annotation(changes), result[CHART])
    if replaced != 1:
        raise ReleaseError(f"{CHART}: the annotation artifacthub.io/changes is missing")
    for path, found in versions(result).items():
        if found != {version}:
            raise ReleaseError(f"{path}: it names {', '.join(sorted(found))} instead of {version}")
    return result


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _changes(section: str) -> list[tuple[str, str]]:
    """Return kind and description of each change in a section of the changelog, without its links."""
    return [
        (kind.lower(), re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", " ".join(line[2:].split())))
        for kind, entries in _KIND.findall(section)
        for line in re.split(r"^(?=- |#)", entries, flags=re.MULTILINE)
        if line.startswith("- ")  # the others are headings of groups
    ]


def _annotation(changes: list[tuple[str, str]]) -> str:
    lines = [f"    - kind: {kind}\n      description: {json.dumps(text, ensure_ascii=False)}\n" for kind, text in changes]
    return "  artifacthub.io/changes: |\n" + "".join(lines)


def main(version: str, root: Path = ROOT) -> int:
    """Prepare a release of the tree in a folder.

    Returns:
        The exit code.
    """
    files = {path: (root / path).read_text(encoding="utf-8") for path in (*PLACES, CHANGELOG)}
    try:
        prepared = prepare(files, version, f"{datetime.now(UTC):%Y-%m-%d}")
    except ReleaseError as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    for path, text in prepared.items():
        (root / path).write_text(text, encoding="utf-8")
        print(path)
    print(
        f"\n{version} is prepared. Next:\n"
        f"  git diff, make lint, make test\n"
        f"  git commit --all --message 'Release {version}', and merge it\n"
        f"  git tag --sign v{version}\n"
        f"  make dist, make images REGISTRY=...; CONTRIBUTING.md says how to publish them"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]) if len(sys.argv) == 2 else "release: name the version, with VERSION=x.y.z")
