"""The control groups that a cluster's pods are in: version 1 has a tree for every controller, version 2 one for all."""

import os
from contextlib import suppress
from pathlib import Path

_TREES = Path("/sys/fs/cgroup")


def make(name: str) -> None:
    """Create a group of this name in each place where the kubelet looks for it."""
    for tree in _trees():
        group = tree
        for part in Path(name.strip("/")).parts:
            _pass_on(group)
            group /= part
            group.mkdir(exist_ok=True)


def _pass_on(group: Path) -> None:
    """Let the subgroups of a group of version 2 have its controllers. The kubelet refuses a group without them."""
    with suppress(OSError):  # version 1 has no such files
        controllers = (group / "cgroup.controllers").read_text().split()
        (group / "cgroup.subtree_control").write_text(" ".join(f"+{controller}" for controller in controllers))


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
