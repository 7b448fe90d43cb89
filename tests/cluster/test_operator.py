"""Transforms on a real cluster, from the chart's installation on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import disk
import pytest
from kubernetes_objects import wait_for
from transforms_on_cluster import RELEASE, SYSTEM, helm

if TYPE_CHECKING:
    from transforms_on_cluster import Stage


def test_a_second_resource_for_the_same_target_has_nothing_to_do(stage: Stage) -> None:
    stage.create("first", stage.spec())
    bound = str(stage.ended("first")["plan"]["memoryBytes"])
    assert stage.differences() == []
    found = [pod.spec.containers[0].resources for step in ("plan", "ranks") for pod in stage.pods(step)]
    assert {(each.requests["memory"], (each.limits or {}).get("memory")) for each in found[1:]} == {(bound, bound)}
    assert not found[0].limits  # the plan of any checkpoint must fit
    stage.create("second", stage.spec())
    stage.ended("second")
    assert stage.ready("second")["reason"] == "AlreadyComplete"
    assert not any(name.startswith("second") and "ranks" in name for name in stage.jobs())


def test_source_and_target_on_one_claim_and_the_same_resource_again(stage: Stage) -> None:
    place = {"persistentVolumeClaim": {"claimName": "checkpoints", "path": "out"}}
    spec = stage.spec(target={"storage": place, "strategy": {"path": "target.ckpt", "storage": stage.checkpoints}})
    stage.create("same-claim", spec)
    stage.ended("same-claim")
    assert disk.right(stage.made, stage.source / "out")
    written = {path: path.stat().st_mtime_ns for path in (stage.source / "out").rglob("*")}
    stage.delete("same-claim", "Foreground")
    wait_for(lambda: not stage.custom.list_namespaced_custom_object(*stage.where)["items"])
    stage.create("same-claim", spec)
    stage.ended("same-claim")
    assert stage.ready("same-claim")["reason"] == "AlreadyComplete"
    assert not any("ranks" in name for name in stage.jobs())
    assert {path: path.stat().st_mtime_ns for path in (stage.source / "out").rglob("*")} == written


def test_a_dry_run_writes_nothing(stage: Stage) -> None:
    stage.create("dry", stage.spec(dryRun=True))
    status = stage.ended("dry")
    assert (stage.ready("dry")["reason"], status["plan"]["sourceRanks"]) == ("DryRun", 4)
    assert list(stage.results.iterdir()) == []


def test_suspended_in_each_phase(stage: Stage) -> None:
    stage.create("pause", stage.spec(suspend=True, execution={"ranksPerPod": 1}))
    stage.wait("pause", lambda s: s.get("phase") == "Suspended")
    assert stage.jobs() == {}
    stage.change("pause", {"suspend": False, "execution": {"parallelism": 1}})
    stage.wait("pause", lambda s: s.get("phase") == "Planning")
    stage.change("pause", {"suspend": True})
    stage.wait("pause", lambda s: s.get("phase") == "Suspended")
    stage.change("pause", {"suspend": False})
    stage.wait("pause", lambda s: s.get("ranks", {}).get("active"))
    stage.change("pause", {"suspend": True})
    stage.wait("pause", lambda s: s.get("phase") == "Suspended")
    assert [pod for pod in stage.pods("ranks") if pod.status.phase == "Running"] == []
    stage.change("pause", {"suspend": False, "execution": {"parallelism": 6}})
    stage.ended("pause")
    assert stage.differences() == []


def test_two_resources_with_one_target(stage: Stage) -> None:
    """The second waits, and is then refused, because its result would differ."""
    stage.create("one", stage.spec(execution={"parallelism": 1, "ranksPerPod": 1}))
    stage.wait("one", lambda s: s.get("phase") == "Resharding")
    stage.create("two", stage.spec(target=stage.spec()["target"] | {"format": "Safetensors"}))
    stage.wait("two", lambda s: s.get("phase"))
    assert stage.ready("two")["reason"] == "TargetBusy"
    assert "one" in stage.ready("two")["message"]
    stage.ended("one")
    stage.ended("two", "Failed")
    assert stage.ready("two")["reason"] == "TargetExists"
    assert stage.differences() == []


def test_the_operator_is_killed_in_each_phase(stage: Stage) -> None:
    stage.create("survivor", stage.spec())
    for phase in ("Planning", "Resharding", "Complete"):
        stage.wait("survivor", lambda s, phase=phase: s.get("phase") in {phase, "Complete"})
        for pod in stage.core.list_namespaced_pod(SYSTEM, label_selector=f"app.kubernetes.io/instance={RELEASE}").items:
            stage.core.delete_namespaced_pod(pod.metadata.name, SYSTEM, grace_period_seconds=0)
    stage.ended("survivor")
    assert stage.differences() == []
    assert len(stage.jobs()) == 2


def test_an_evicted_pod_runs_again(stage: Stage) -> None:
    stage.create("evicted", stage.spec(execution={"parallelism": 2, "backoffLimitPerIndex": 0}))
    pod = wait_for(lambda: next((p for p in stage.pods("ranks") if p.status.phase in {"Pending", "Running"}), None))
    stage.core.create_namespaced_pod_eviction(pod.metadata.name, stage.namespace, {"metadata": {"name": pod.metadata.name}})
    stage.ended("evicted")
    assert stage.differences() == []


def test_events_report_each_phase(stage: Stage) -> None:
    stage.create("events", stage.spec())
    stage.ended("events")

    def reasons() -> set[str]:
        events: list[Any] = stage.core.list_namespaced_event(stage.namespace, field_selector="involvedObject.name=events").items
        return {event.reason for event in events}

    wait_for(lambda: {"Planning", "Resharding", "Complete"} <= reasons())


@pytest.mark.usefixtures("operator")
def test_helm_test_passes() -> None:
    helm("test", RELEASE, "--namespace", SYSTEM, "--timeout", "120s")
