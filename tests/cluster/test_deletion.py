"""Deletion never hangs and leaves no partial checkpoint that looks complete; a resource created again continues."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from kubernetes.client import ApiException
from kubernetes_objects import wait_for
from pod_processes import process_of

if TYPE_CHECKING:
    from transforms_on_cluster import Stage

MANIFEST = "reshard-manifest.json"


def underway(stage: Stage, name: str) -> None:
    """Create a transform, and wait until one rank is written and others are not."""
    stage.create(name, stage.spec(execution={"parallelism": 1, "ranksPerPod": 1}))
    stage.wait(name, lambda s: s.get("ranks", {}).get("succeeded"))


def gone(stage: Stage, name: str) -> bool:
    try:
        stage.status(name)
    except ApiException as error:
        return error.status == 404
    return False


def test_a_transform_deleted_while_running_can_be_created_again(stage: Stage) -> None:
    """The new one waits for the old pod, by its name, even if the pod takes long to end."""
    underway(stage, "again")
    uid = stage.custom.get_namespaced_custom_object(*stage.where, "again")["metadata"]["uid"]
    process = wait_for(lambda: next(filter(None, (process_of(uid, index) for index in range(6))), None))
    os.kill(process, signal.SIGSTOP)
    (old,) = {pod.metadata.name for pod in stage.pods("ranks") if pod.status.phase in {"Pending", "Running"}}
    stage.delete("again")
    stage.create("again", stage.spec())
    stage.wait("again", lambda _: old in stage.ready("again").get("message", ""))
    assert stage.ready("again")["reason"] == "TargetBusy"
    with suppress(ProcessLookupError):  # the kubelet kills it after a while
        os.kill(process, signal.SIGCONT)
    stage.ended("again")
    assert stage.differences() == []
    assert len({job.metadata.owner_references[0].uid for job in stage.jobs().values()}) == 1


@pytest.mark.parametrize("policy", ["Background", "Foreground"])
def test_deletion_of_a_running_transform_ends_its_pods_and_leaves_nothing_complete(stage: Stage, policy: str) -> None:
    underway(stage, "deleted")
    stage.delete("deleted", policy)
    wait_for(lambda: gone(stage, "deleted"))
    wait_for(lambda: not stage.pods("ranks") and not stage.jobs())
    assert not (stage.results / "out" / MANIFEST).exists()


def test_orphaned_ranks_are_finished_and_found_by_a_resource_that_comes_again(stage: Stage) -> None:
    underway(stage, "orphan")
    stage.delete("orphan", "Orphan")
    wait_for(lambda: gone(stage, "orphan"))
    wait_for(lambda: any(job.status.completion_time for name, job in stage.jobs().items() if name.endswith("ranks")))
    assert (stage.results / "out" / MANIFEST).exists()
    written = {path: path.stat().st_mtime_ns for path in (stage.results / "out").glob("rank_*/*")}
    assert len(written) == 6
    stage.create("orphan", stage.spec())
    stage.ended("orphan")
    assert stage.ready("orphan")["reason"] == "AlreadyComplete"
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert stage.differences() == []
