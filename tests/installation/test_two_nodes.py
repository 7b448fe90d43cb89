"""A second node: ranks that leave it because it is drained or lost, and a claim that it occupies. The last test ends the node."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import disk
import pytest
from cluster.images import BASE
from cluster.layout import NODE
from cluster.second import NAME, PREFERRED, TAINT, second_node
from kubernetes_objects import pod_spec, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cluster.components import Component
    from cluster.layout import Layout
    from transforms_on_cluster import Stage

# Kubernetes takes 50 s to find a node lost, and more than a minute to delete the pods of a node that is gone.
_PATIENCE = 400.0
# A driver whose volumes are folders of this machine that are attached to one node at a time.
_DRIVER = """#!/bin/sh
success() { echo "{\\"status\\": \\"Success\\"$1}"; }
case $1 in
    init) success ', "capabilities": {"attach": true, "fsGroup": false, "selinuxRelabel": false}' ;;
    attach | waitforattach) success ', "device": "/dev/null"' ;;
    mountdevice)
        folder=$(echo "$4" | sed -n 's/.*"folder": *"\\([^"]*\\)".*/\\1/p')
        mkdir -p "$2" && mount --bind "$folder" "$2" >&2 && success ;;
    unmountdevice) umount "$2" >&2 && success ;;
    detach) success ;;
    *) echo '{"status": "Not supported"}'; exit 1 ;;
esac
"""


@pytest.fixture(scope="module")
def second(layout: Layout) -> Iterator[Component]:
    driver = layout.volume_plugins / "reshard.dev~folder" / "folder"
    driver.parent.mkdir(exist_ok=True)
    driver.write_text(_DRIVER)
    driver.chmod(0o755)
    with second_node(layout) as node:
        yield node


def placed(stage: Stage, **execution: Any) -> dict[str, Any]:
    """Return a spec whose pods run on the second node as long as they can."""
    return stage.spec(execution={"ranksPerPod": 1, "podTemplate": PREFERRED} | execution)


def nodes(stage: Stage) -> dict[str, list[str]]:
    """Return the nodes of the pods of each completion index."""
    found: dict[str, list[str]] = {}
    for pod in stage.pods("ranks"):
        found.setdefault(pod.metadata.annotations["batch.kubernetes.io/job-completion-index"], []).append(pod.spec.node_name)
    return found


def running(stage: Stage) -> list[str]:
    """Return the completion indexes of the running pods."""
    pods = [pod for pod in stage.pods("ranks") if pod.status.phase == "Running"]
    return [pod.metadata.annotations["batch.kubernetes.io/job-completion-index"] for pod in pods]


@pytest.mark.usefixtures("second")
def test_only_the_ranks_of_a_drained_node_that_are_not_written_run_again(stage: Stage) -> None:
    stage.create("drained", placed(stage, parallelism=1, backoffLimitPerIndex=0))
    wait_for(lambda: list(stage.results.glob("out/.reshard/*/records/*")), _PATIENCE)
    assert {node for found in nodes(stage).values() for node in found} == {NAME}
    recorded = {path.stem.removeprefix("rank_") for path in stage.results.glob("out/.reshard/*/records/*")}
    written = {path: path.stat().st_mtime_ns for number in recorded for path in stage.results.glob(f"out/rank_{number}/*")}
    stage.kubectl("drain", NAME, "--ignore-daemonsets", "--force", "--timeout", "60s")
    stage.ended("drained", seconds=_PATIENCE)
    stage.kubectl("uncordon", NAME)
    assert disk.right(stage.made, stage.results / "out")
    assert {path: path.stat().st_mtime_ns for path in written} == written
    again = nodes(stage)  # without those that were on the other node
    assert not again.keys() & recorded
    assert {node for found in again.values() for node in found} == {NODE}


def claim_on_one_node(stage: Stage, name: str, folder: Path) -> None:
    """Make a ReadWriteOnce claim whose volume is a folder that one node at a time can attach."""
    folder.mkdir()
    folder.chmod(0o777)
    common = {"accessModes": ["ReadWriteOnce"], "storageClassName": ""}
    flex = {"driver": "reshard.dev/folder", "options": {"folder": str(folder)}}
    volume = {**common, "capacity": {"storage": "1Gi"}, "flexVolume": flex}
    full = f"{stage.namespace}-{name}"
    stage.core.create_persistent_volume({"metadata": {"name": full}, "spec": volume})
    claim = {**common, "resources": {"requests": {"storage": "1Gi"}}, "volumeName": full}
    stage.core.create_namespaced_persistent_volume_claim(stage.namespace, {"metadata": {"name": name}, "spec": claim})


@pytest.mark.usefixtures("second")
def test_a_claim_that_another_node_occupies_is_waited_for(stage: Stage, tmp_path: Path) -> None:
    claim_on_one_node(stage, "once", tmp_path / "once")
    holder = pod_spec(BASE, ["sleep", "1000"], {"once": "/data"})
    holder |= {"nodeSelector": {"kubernetes.io/hostname": NAME}, "tolerations": [{"key": TAINT, "operator": "Exists"}]}
    stage.core.create_namespaced_pod(stage.namespace, {"metadata": {"name": "holder"}, "spec": holder})
    wait_for(lambda: stage.core.read_namespaced_pod("holder", stage.namespace).status.phase == "Running", _PATIENCE)
    target = stage.spec()["target"] | {"storage": {"persistentVolumeClaim": {"claimName": "once", "path": "out"}}}
    stage.create("waits", stage.spec(target=target))
    stage.wait("waits", lambda _: stage.ready("waits").get("reason") == "FailedAttachVolume", _PATIENCE)
    status = stage.status("waits")
    assert "already used by pod(s) holder" in stage.ready("waits")["message"], json.dumps(status)
    assert status["phase"] == "Planning"
    stage.core.delete_namespaced_pod("holder", stage.namespace, grace_period_seconds=0)
    stage.ended("waits", seconds=_PATIENCE)
    assert disk.right(stage.made, tmp_path / "once" / "out")


def test_the_ranks_of_a_node_that_is_gone_run_again(stage: Stage, second: Component) -> None:
    stage.create("lost", placed(stage, parallelism=2))
    wait_for(lambda: running(stage), _PATIENCE)
    second.process.kill()
    stage.wait("lost", lambda _: stage.ready("lost").get("reason") == "NodeLost", _PATIENCE)
    assert f"node {NAME} is not responding" in stage.ready("lost")["message"]
    stage.core.delete_node(NAME)
    stage.ended("lost", seconds=_PATIENCE)
    assert disk.right(stage.made, stage.results / "out")
    assert disk.leftovers(stage.results / "out") == []
