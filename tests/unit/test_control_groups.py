"""Control groups of the test cluster in a hierarchy of version 2, which machines with version 1 have without most controllers."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest

from cluster import groups

ROOT = Path("/sys/fs/cgroup")
HIERARCHY = next((tree for tree in (ROOT, ROOT / "unified") if (tree / "cgroup.controllers").exists()), None)


def controllers(group: Path) -> set[str]:
    return set((group / "cgroup.controllers").read_text().split())


@pytest.mark.skipif(HIERARCHY is None or not os.access(HIERARCHY, os.W_OK), reason="control groups cannot be created")
def test_subgroups_of_version_2_have_the_controllers_of_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    assert HIERARCHY is not None
    monkeypatch.setattr(groups, "_TREES", HIERARCHY)
    name = f"reshard-test-{uuid.uuid4().hex}"
    groups.make(f"/{name}/kubelet/pods")
    try:
        assert controllers(HIERARCHY / name / "kubelet" / "pods") == controllers(HIERARCHY) != set()
    finally:
        assert groups.remove(name)
    assert not (HIERARCHY / name).exists()
