"""Events of a whole installation: its chart is upgraded, removed or misconfigured; its node and its API server fail."""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cluster.components import Component, wait
from cluster.layout import NODE
from kubernetes import client
from kubernetes_objects import wait_for
from transforms_on_cluster import RELEASE, SYSTEM, helm, install

from cluster import access, control_plane

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cluster.layout import Layout
    from transforms_on_cluster import Stage

# Kubernetes takes 40 s to find a node lost, and its controllers a minute to find the API server again.
_PATIENCE = 240.0


def process_of(program: str) -> int:
    """The one process of a component."""
    (found,) = (
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if Path(path.read_bytes().split(b"\0")[0].decode()).name == program
    )
    return found


@contextmanager
def stopped(process: int) -> Iterator[None]:
    """A process that does nothing for a while."""
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


def begun(stage: Stage, name: str) -> None:
    """Create a transform, and wait until one rank is written and others are not."""
    stage.create(name, stage.spec(execution={"parallelism": 1, "ranksPerPod": 1}))
    stage.wait(name, lambda s: s.get("ranks", {}).get("succeeded"), _PATIENCE)


def completes(stage: Stage, name: str) -> None:
    stage.ended(name, seconds=_PATIENCE)
    assert stage.differences() == []
    # No step ran twice. The last rank commits, unless the report of its pod was lost.
    steps = [job.metadata.labels["reshard.dev/step"] for job in stage.jobs().values()]
    assert sorted(steps) in (["plan", "ranks"], ["commit", "plan", "ranks"])


def test_an_upgrade_does_not_disturb_running_transforms(stage: Stage) -> None:
    begun(stage, "upgraded")
    images = {pod.spec.containers[0].image for pod in stage.pods("ranks")}
    uid = next(job.metadata.uid for name, job in stage.jobs().items() if name.endswith("ranks"))
    install("operator.podAnnotations.upgraded=yes", "converter.resources.requests.cpu=25m")
    completes(stage, "upgraded")
    assert {job.metadata.uid for name, job in stage.jobs().items() if name.endswith("ranks")} == {uid}
    assert {pod.spec.containers[0].image for pod in stage.pods("ranks")} == images


def test_a_transform_running_during_uninstallation_is_completed_by_the_next_installation(stage: Stage) -> None:
    begun(stage, "left-alone")
    helm("uninstall", RELEASE, "--namespace", SYSTEM, "--wait")
    wait_for(lambda: any(job.status.completion_time for name, job in stage.jobs().items() if name.endswith("ranks")))
    assert stage.status("left-alone")["phase"] == "Resharding"  # the resource is still there, and so is its kind
    install()
    completes(stage, "left-alone")


def test_a_deletion_without_an_operator_does_not_hang(stage: Stage) -> None:
    begun(stage, "deleted")
    stage.apps.patch_namespaced_deployment_scale(f"{RELEASE}-operator", SYSTEM, {"spec": {"replicas": 0}})
    wait_for(lambda: not stage.core.list_namespaced_pod(SYSTEM).items)
    stage.kubectl("delete", "checkpointtransform", "deleted", "--timeout=30s")
    wait_for(lambda: not stage.jobs() and not stage.pods("ranks"))
    assert not (stage.results / "out" / "reshard-manifest.json").exists()
    install()


def test_a_wrong_image_fails_with_the_kubelets_message(stage: Stage) -> None:
    install("converter.image.tag=none")
    stage.create("wrong-image", stage.spec(execution={"startupDeadlineSeconds": 3}))
    stage.ended("wrong-image", "Failed", _PATIENCE)
    assert stage.ready("wrong-image")["reason"] == "PodsNotStarting"
    assert "reshard-converter:none" in stage.ready("wrong-image")["message"]
    install()
    stage.change("wrong-image", {"execution": {"attempt": 2}})
    stage.wait("wrong-image", lambda s: s.get("attempt") == 2)
    completes(stage, "wrong-image")


def test_a_right_that_is_missing_is_waited_for(stage: Stage) -> None:
    roles = client.RbacAuthorizationV1Api(stage.api)
    role = roles.read_cluster_role(f"{RELEASE}-operator")
    (rule,) = (rule for rule in role.rules if "jobs" in rule.resources and "create" in rule.verbs)
    rule.verbs.remove("create")
    roles.patch_cluster_role(role.metadata.name, {"rules": stage.api.sanitize_for_serialization(role.rules)})
    try:
        stage.create("denied", stage.spec())
        stage.wait("denied", lambda _: stage.ready("denied").get("reason") == "JobDenied", _PATIENCE)
        assert "cannot create resource" in stage.ready("denied")["message"]
        assert stage.status("denied")["phase"] == "Planning"
    finally:  # later tests need the right
        rule.verbs.append("create")
        roles.patch_cluster_role(role.metadata.name, {"rules": stage.api.sanitize_for_serialization(role.rules)})
    completes(stage, "denied")


def test_the_second_replica_continues_when_the_first_is_killed(stage: Stage) -> None:
    install("operator.replicas=2")

    def holder() -> str:
        return str(stage.leases.read_namespaced_lease(f"{RELEASE}-operator", SYSTEM).spec.holder_identity)

    pods = wait_for(lambda: len(p := [x.metadata.name for x in stage.core.list_namespaced_pod(SYSTEM).items]) == 2 and p)
    wait_for(lambda: holder() in pods)
    begun(stage, "two-replicas")
    first = holder()
    stage.core.delete_namespaced_pod(first, SYSTEM, grace_period_seconds=0)
    completes(stage, "two-replicas")
    assert holder() != first
    install()


def test_a_lost_node_is_named_and_its_pods_continue_when_it_returns(stage: Stage) -> None:
    stage.create("lost", stage.spec(execution={"parallelism": 1, "ranksPerPod": 1}))
    wait_for(lambda: any(pod.status.phase == "Running" for pod in stage.pods("ranks")))
    with stopped(process_of("kubelet")):
        status = stage.wait("lost", lambda s: "NodeLost" in str(s), _PATIENCE)
        assert status["phase"] == "Resharding"
        assert f"node {NODE} is not responding" in stage.ready("lost")["message"]
    completes(stage, "lost")


@pytest.fixture(scope="session", autouse=True)
def restarted() -> Iterator[list[Component]]:
    """Components that tests restart after they killed them. The fixture is set up first, so that it ends last."""
    components: list[Component] = []
    yield components
    for component in components:
        component.process.kill()
        component.process.wait()


def test_the_api_server_is_down_for_a_minute(stage: Stage, layout: Layout, restarted: list[Component]) -> None:
    begun(stage, "outage")
    os.kill(process_of("kube-apiserver"), signal.SIGKILL)
    time.sleep(60)
    server = Component(
        "kube-apiserver",
        control_plane.apiserver(layout),
        lambda: access.get(layout, "/readyz"),
        layout.logs / "kube-apiserver-again.log",
    )
    server.start()
    restarted.append(server)
    wait([server], 60)
    completes(stage, "outage")
