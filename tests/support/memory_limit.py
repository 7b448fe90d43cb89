"""Run a program in a memory control group, as a container with a memory limit does: the kernel kills it above the limit."""

from __future__ import annotations

import contextlib
import os
import subprocess
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_ROOT = Path("/sys/fs/cgroup")
# In both versions of control groups: the folder of new groups, and the file with the limit of each.
_VERSIONS = (
    (_ROOT / "memory", "memory.limit_in_bytes"),
    (_ROOT, "memory.max"),
)


class Ended(NamedTuple):
    """A program that has ended. If the kernel has killed it, `code` is -9."""

    code: int
    output: str
    errors: str


@contextlib.contextmanager
def _group(limit: int) -> Iterator[Path]:
    parent, name = next((parent, name) for parent, name in _VERSIONS if (parent / "cgroup.procs").exists())
    folder = parent / f"reshard-{uuid.uuid4().hex}"
    folder.mkdir()
    try:
        (folder / name).write_text(str(limit))
        yield folder
    finally:
        folder.rmdir()


def can_limit() -> bool:
    """Return whether this process can create such groups."""
    try:
        with _group(1 << 30):
            return True
    except (OSError, StopIteration):
        return False


def run_within(limit: int, command: Sequence[str]) -> Ended:
    """Run a program with at most `limit` bytes of memory, including the page cache that it fills."""
    with _group(limit) as group:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: (group / "cgroup.procs").write_text(str(os.getpid())),
        )
    return Ended(done.returncode, done.stdout, done.stderr)
