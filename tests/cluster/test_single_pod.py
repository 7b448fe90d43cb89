"""Transforms with the mode SinglePod."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kubernetes_objects import wait_for

if TYPE_CHECKING:
    from transforms_on_cluster import Stage

SINGLE = {"mode": "SinglePod"}


def test_one_pod_does_what_several_do(stage: Stage) -> None:
    stage.create("single", stage.spec(execution=SINGLE))
    status = stage.ended("single")
    assert stage.differences() == []
    assert (status["progress"], status["manifest"], set(status["jobs"])) == ("6/6", "reshard-manifest.json", {"transform"})
    assert len(stage.jobs()) == len(stage.pods("transform")) == 1
    stage.create("chained", stage.spec())
    stage.ended("chained")
    assert stage.ready("chained")["reason"] == "AlreadyComplete"


def test_suspended_before_and_evicted_later(stage: Stage) -> None:
    stage.create("single", stage.spec(execution=SINGLE, suspend=True))
    stage.wait("single", lambda s: s.get("phase") == "Suspended")
    assert stage.jobs() == {}
    stage.change("single", {"suspend": False})
    pod = wait_for(lambda: next(iter(stage.pods("transform")), None)).metadata.name
    stage.core.create_namespaced_pod_eviction(pod, stage.namespace, {"metadata": {"name": pod}})
    stage.ended("single")
    assert stage.differences() == []


def test_what_is_wrong_is_reported(stage: Stage) -> None:
    (stage.source / "source.ckpt").unlink()
    stage.create("single", stage.spec(execution=SINGLE))
    status = stage.ended("single", "Failed")
    assert "source.ckpt" in stage.ready("single")["message"]
    assert set(status["jobs"]) == {"transform"}


def test_two_that_start_together_with_one_target(stage: Stage) -> None:
    """One waits, in its pod or before it has one, and is then refused, because its result would differ."""
    target = stage.spec()["target"]
    stage.create("ckpt", stage.spec(execution=SINGLE))
    stage.create("safetensors", stage.spec(execution=SINGLE, target=target | {"format": "Safetensors"}))
    ended = {name: stage.wait(name, lambda s: s.get("completionTime"))["phase"] for name in ("ckpt", "safetensors")}
    assert sorted(ended.values()) == ["Complete", "Failed"]
    (failed,) = (name for name, phase in ended.items() if phase == "Failed")
    assert stage.ready(failed)["reason"] == "TargetExists"
    assert stage.differences(kind="safetensors" if failed == "ckpt" else "ckpt") == []
