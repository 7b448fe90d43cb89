"""The control groups that a cluster's pods are in: version 1 has a tree for every controller, version 2 one for all."""

import os
from contextlib import suppress
from pathlib import Path

_TREES = Path("/sys/fs/cgroup")


def make(name: str) -> None:
    """Create a group of this name in each place where the kubelet looks for it."""
    for tree in _trees():
        (tree / name).mkdir(parents=True, exist_ok=True)


def remove(name: str) -> bool:
    """Remove the group and its subgroups; return False while it still has processes."""
    groups = [tree / name for tree in _trees()]
    for group in groups:
        for folder, _, _ in os.walk(group, topdown=False):
            with suppress(OSError):
                Path(folder).rmdir()
    return not any(group.exists() for group in groups)


def _trees() -> list[Path]:
    if (_TREES / "cgroup.controllers").exists():
        return [_TREES]
    return [tree for tree in _TREES.iterdir() if (tree / "cgroup.procs").exists() and not tree.is_symlink()]
