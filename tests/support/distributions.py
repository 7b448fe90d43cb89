"""The distributions that `make dist` builds, and clean environments that they are installed into."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / ".venv-dist"
PYTHONS = (os.environ.get("RESHARD_PYTHONS") or sys.executable).split(os.pathsep)
COMMITTED = "2020-02-02T02:02:02Z"
COMMITTED_SECONDS = "1580608922"
_GIT, _MAKE = shutil.which("git") or "git", shutil.which("make") or "make"


@dataclass(frozen=True)
class Dist:
    """Distributions that `make dist` has built from a checkout of its own."""

    folder: Path
    commit: str

    def file(self, pattern: str) -> Path:
        """Return the only file of a pattern."""
        (found,) = self.folder.glob(pattern)
        return found


def copy_tree(folder: Path) -> None:
    """Copy the files that Git tracks or would add, from the current tree."""
    listing = [_GIT, "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(listing, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).exists() and not name.startswith("tests/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)


def build(folder: Path) -> None:
    """Run `make dist` in a copy of this tree that is a checkout of a commit."""
    tree = folder / "tree"
    copy_tree(tree)
    identity = {f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = os.environ | identity | {"GIT_COMMITTER_DATE": COMMITTED}
    environment.pop("SOURCE_DATE_EPOCH", None)
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "Copy"]):
        subprocess.run([_GIT, *command], cwd=tree, env=environment, check=True)
    commit = subprocess.run([_GIT, "rev-parse", "HEAD"], cwd=tree, capture_output=True, text=True, check=True)
    (folder / "commit").write_text(commit.stdout.strip())
    places = [f"DIST={folder / 'dist'}", f"DIST_VENV={TOOLS}"]
    made = subprocess.run([_MAKE, "dist", *places], cwd=tree, env=environment, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    shutil.rmtree(tree)


@contextmanager
def environment(python: str, folder: Path, *installations: list[str | Path]) -> Iterator[Path]:
    """Make an environment of an interpreter, and remove it after use.

    Args:
        python: the interpreter.
        folder: where the environment is made.
        installations: arguments of `pip install`, one after the other.

    Yields:
        The folder of its programs.
    """
    try:
        subprocess.run([python, "-m", "venv", "--without-pip", str(folder)], check=True)
        programs = folder / "bin"
        for arguments in installations:
            pip = [TOOLS / "bin" / "python", "-m", "pip", "--python", programs / "python", "install", "--quiet", "--no-compile"]
            done = subprocess.run(
                [*map(str, pip), "--constraint", str(ROOT / "constraints.txt"), *map(str, arguments)],
                env=os.environ | {"PIP_CONSTRAINT": str(ROOT / "constraints.txt"), "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
        yield programs
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(program: Path, *arguments: str | Path, programs: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program of an environment, or one that finds those of an environment first."""
    programs = programs or program.parent
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "AWS_", "RESHARD_"))}
    return subprocess.run(
        [str(program), *map(str, arguments)],
        cwd=programs,
        env=inherited | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
