"""Failures in a cluster: named, without partial output, and followed by recovery where possible."""

from __future__ import annotations

import json
import os
import subprocess
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import disk
import pytest
from cluster.layout import NODE, program
from kubernetes_objects import claim_folder, indexed_job, pod_spec, wait_for

from reshard.checkpoint.manifest import MANIFEST_NAME
from reshard.spec.ranks import parse_ranks
from reshard_operator.observation import job_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from transforms_on_cluster import Stage


def test_a_corrupt_source_fails_at_once_and_the_next_attempt_after_its_repair(stage: Stage) -> None:
    path = next((stage.made.source / "rank_2").iterdir())
    good = path.read_bytes()
    hostile = b"\x0a" + b"\xff" * 9 + b"\x01"  # a tensor of 2**64 - 1 bytes
    stage.create("corrupt", stage.spec(suspend=True))
    for attempt, content in enumerate((good[:-7], hostile), start=1):
        path.write_bytes(content)
        stage.change("corrupt", {"suspend": False, "execution": {"attempt": attempt}})
        stage.wait("corrupt", lambda s, attempt=attempt: s.get("attempt") == attempt)
        status = stage.ended("corrupt", "Failed")
        ready = stage.ready("corrupt")
        assert "rank_2/net-1_100.ckpt" in ready["message"]
        assert "byte" in ready["message"]
        assert len(stage.pods("plan")) == attempt  # no second try of what cannot succeed
        assert {c["type"]: c["status"] for c in status["conditions"]} == {"Ready": "False", "Failed": "True", "Stalled": "True"}
    path.write_bytes(good)
    stage.change("corrupt", {"execution": {"attempt": 3}})
    stage.wait("corrupt", lambda s: s.get("attempt") == 3)
    stage.ended("corrupt")
    assert stage.differences() == []


def test_a_source_rank_damaged_during_a_run_fails_the_ranks_that_need_it_once(stage: Stage) -> None:
    path = next((stage.made.source / "rank_3").iterdir())
    good = path.read_bytes()
    stage.create("damaged", stage.spec(execution={"parallelism": 1, "ranksPerPod": 1}))
    wait_for(lambda: list(stage.results.glob("out/.reshard/*/records/*")))  # the status reports it later, perhaps too late
    path.write_bytes(bytes(len(good)))
    status = stage.ended("damaged", "Failed")
    assert stage.ready("damaged")["reason"] == "SourceChanged"
    assert "rank_3/net-1_100.ckpt" in stage.ready("damaged")["message"]
    failed, written = parse_ranks(status["ranks"]["failedRanks"]), status["ranks"]["succeeded"]
    assert written > 0
    assert 1 <= len(failed) <= 2  # one more than `parallelism`
    assert ("the other ranks were stopped" in stage.ready("damaged")["message"]) == (len(failed) + written < 6)
    assert [failure["ranks"] for failure in status["ranks"]["failures"]] == [str(rank) for rank in failed]
    pods = [pod.metadata.annotations["batch.kubernetes.io/job-completion-index"] for pod in stage.pods("ranks")]
    assert len(set(pods)) == len(pods) == len(failed) + written  # none a second time
    assert not (stage.results / "out" / "reshard-manifest.json").exists()
    path.write_bytes(good)
    stage.change("damaged", {"execution": {"attempt": 2}})
    stage.wait("damaged", lambda s: s.get("attempt") == 2)
    stage.ended("damaged")
    assert stage.differences() == []


def test_a_missing_claim_is_waited_for_by_name(stage: Stage, tmp_path: Path) -> None:
    target = stage.spec()["target"] | {"storage": {"persistentVolumeClaim": {"claimName": "later", "path": "out"}}}
    stage.create("waits", stage.spec(target=target))
    status = stage.wait("waits", lambda s: "later" in json.dumps(s.get("conditions")))
    assert (status["phase"], stage.ready("waits")["reason"]) == ("Planning", "Unschedulable")
    folder = tmp_path / "later"
    folder.mkdir()
    folder.chmod(0o777)
    claim_folder(stage.api, stage.namespace, "later", folder)
    stage.ended("waits")


def test_pods_that_cannot_start_or_need_more_memory_are_given_up(stage: Stage) -> None:
    missing = {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "no-such-secret", "key": "token"}}}
    stage.create("stuck", stage.spec(execution={"startupDeadlineSeconds": 5, "podTemplate": {"env": [missing]}}))
    little = {"resources": {"limits": {"memory": "24Mi"}}}
    stage.create("killed", stage.spec("killed", execution={"backoffLimitPerIndex": 0, "podTemplate": little}))
    stage.ended("killed", "Failed")
    assert stage.ready("killed")["reason"] == "OOMKilled"
    assert "its limit of 24Mi; create a transform with a higher" in stage.ready("killed")["message"]
    stage.ended("stuck", "Failed")
    ready = stage.ready("stuck")
    assert ready["reason"] == "PodsNotStarting"
    assert "no-such-secret" in ready["message"]
    wait_for(lambda: all(pod.metadata.name.startswith("killed-") for pod in stage.pods("plan")))


def test_files_as_training_leaves_them(stage: Stage) -> None:
    """Files of root with mode 0400 in folders of 0700: the message names the setting that makes it work."""
    for path in (stage.made.source, *stage.made.source.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o400)
    stage.create("denied", stage.spec())
    stage.ended("denied", "Failed")
    ready = stage.ready("denied")
    assert ready["reason"] == "PermissionDenied"
    for said in ("uid 0", "mode 0700", "uid 65532", "runAsUser"):
        assert said in ready["message"]
    for path in (stage.made.source, *stage.made.source.rglob("*")):
        os.chown(path, 1000, 1000)
    override = {"podTemplate": {"securityContext": {"runAsUser": 1000, "runAsGroup": 1000}}}
    stage.create("allowed", stage.spec("allowed", execution=override))
    stage.ended("allowed")
    assert stage.differences("allowed") == []


def test_a_target_folder_of_another_user(stage: Stage) -> None:
    stage.results.chmod(0o755)
    stage.create("denied", stage.spec())
    stage.ended("denied", "Failed")
    ready = stage.ready("denied")
    assert ready["reason"] == "PermissionDenied"
    assert "/volumes/target" in ready["message"]
    assert list(stage.results.iterdir()) == []


def test_missing_inputs_are_named(stage: Stage) -> None:
    (missing,) = (stage.made.source / "rank_3").iterdir()
    missing.unlink()
    target = stage.spec()["target"]
    stage.create("rank", stage.spec())
    stage.create("strategy", stage.spec(target=target | {"strategy": target["strategy"] | {"path": "none.ckpt"}}))
    for name, reason, said in (("rank", "SourceRankMissing", "rank 3"), ("strategy", "StrategyMissing", "none.ckpt")):
        stage.ended(name, "Failed")
        assert (stage.ready(name)["reason"], said in stage.ready(name)["message"]) == (reason, True), stage.ready(name)
    assert list(stage.results.iterdir()) == []


@pytest.fixture
def small_volume(stage: Stage, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A claim, "small", on a file system of its own with the options of the test's parameter."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run([program("mount"), "-t", "tmpfs", "-o", request.param, "tmpfs", str(folder)], check=True)
    claim_folder(stage.api, stage.namespace, "small", folder)
    yield folder
    subprocess.run([program("umount"), "--lazy", str(folder)], check=True)


@pytest.mark.parametrize(
    ("small_volume", "said"),
    [("size=4k,mode=777", "NotEnoughSpace"), ("mode=777,ro", "CannotWrite")],
    indirect=["small_volume"],
    ids=["full", "read-only"],
)
def test_a_volume_that_cannot_be_written_to(stage: Stage, small_volume: Path, said: str) -> None:
    target = stage.spec()["target"] | {"storage": {"persistentVolumeClaim": {"claimName": "small", "path": "out"}}}
    stage.create("small", stage.spec(target=target, execution={"backoffLimitPerIndex": 0}))
    stage.ended("small", "Failed")
    assert stage.ready("small")["reason"] == said
    assert "/volumes/target" in stage.ready("small")["message"]
    assert list(small_volume.iterdir()) == []


@pytest.mark.parametrize("small_volume", ["size=1m,mode=777"], indirect=True)
def test_a_volume_that_fills_up_during_a_run(stage: Stage, small_volume: Path) -> None:
    target = stage.spec()["target"] | {"storage": {"persistentVolumeClaim": {"claimName": "small", "path": "out"}}}
    one = {"parallelism": 1, "ranksPerPod": 1, "backoffLimitPerIndex": 0}
    stage.create("fills", stage.spec(target=target, execution=one))
    wait_for(lambda: list(small_volume.glob("out/.reshard/*/records/*")))
    filler = small_volume / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    stage.ended("fills", "Failed")
    # The pod that writes finds the volume full, or the one after it finds too little space before it writes.
    assert stage.ready("fills")["reason"] in {"CannotWrite", "NotEnoughSpace"}
    assert "/volumes/target" in stage.ready("fills")["message"]
    assert stage.status("fills")["ranks"]["failed"] == 2  # one more than `parallelism`, and the other ranks were not tried
    assert not (small_volume / "out" / MANIFEST_NAME).exists()
    assert not list(small_volume.glob("out/.reshard/*/tmp/*"))
    filler.unlink()
    stage.change("fills", {"execution": {"attempt": 2, "parallelism": 6}})
    stage.wait("fills", lambda s: s.get("attempt") == 2)
    stage.ended("fills")
    assert disk.right(stage.made, small_volume / "out")


def test_a_job_of_another_owner_is_left_alone(stage: Stage) -> None:
    stage.create("named", stage.spec(suspend=True))
    stage.wait("named", lambda s: s.get("phase") == "Suspended")
    uid = stage.custom.get_namespaced_custom_object(*stage.where, "named")["metadata"]["uid"]
    foreign = indexed_job(job_name("named", uid, "plan", 1), 1, pod_spec("localhost/none", []))
    foreign["spec"]["suspend"] = True
    created = stage.batch.create_namespaced_job(stage.namespace, foreign)
    wait_for(lambda: stage.jobs()[created.metadata.name].status.conditions)
    before = stage.jobs()[created.metadata.name]
    stage.change("named", {"suspend": False})
    stage.wait("named", lambda _: stage.ready("named").get("reason") == "NameTaken")
    assert created.metadata.name in stage.ready("named")["message"]
    assert stage.jobs() == {created.metadata.name: before}
    stage.batch.delete_namespaced_job(created.metadata.name, stage.namespace, propagation_policy="Background")
    stage.ended("named")
    assert stage.differences() == []


def test_a_node_that_does_not_exist_is_waited_for_beyond_the_startup_deadline(stage: Stage) -> None:
    template = {"nodeSelector": {f"tests/{stage.namespace}": "yes"}}
    stage.create("waits", stage.spec(execution={"startupDeadlineSeconds": 1, "podTemplate": template}))
    stage.wait("waits", lambda _: stage.ready("waits").get("reason") == "Unschedulable")
    assert "affinity/selector" in stage.ready("waits")["message"]
    time.sleep(12)  # two looks of the operator
    assert (stage.status("waits")["phase"], stage.ready("waits")["reason"]) == ("Planning", "Unschedulable")
    stage.core.patch_node(NODE, {"metadata": {"labels": {f"tests/{stage.namespace}": "yes"}}})
    stage.ended("waits")
    assert stage.differences() == []


def test_a_quota_that_is_full_is_waited_for(stage: Stage) -> None:
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    stage.core.create_namespaced_resource_quota(stage.namespace, quota)
    wait_for(lambda: stage.core.read_namespaced_resource_quota("none", stage.namespace).status.hard)
    stage.create("quota", stage.spec())
    status = stage.wait("quota", lambda s: "exceeded quota" in json.dumps(s))
    assert (status["phase"], stage.ready("quota")["reason"]) == ("Planning", "PodsDenied")
    stage.core.delete_namespaced_resource_quota("none", stage.namespace)
    stage.ended("quota")
    assert stage.differences() == []


def test_pods_that_the_namespace_does_not_allow_until_it_does(stage: Stage) -> None:
    root = {"podTemplate": {"securityContext": {"runAsUser": 0, "runAsNonRoot": False}}}
    stage.create("root", stage.spec(execution=root))
    status = stage.wait("root", lambda s: "PodSecurity" in json.dumps(s))
    assert (status["phase"], stage.ready("root")["reason"]) == ("Planning", "PodsDenied")
    label: dict[str, Any] = {"pod-security.kubernetes.io/enforce": "baseline"}
    stage.core.patch_namespace(stage.namespace, {"metadata": {"labels": label}})
    stage.ended("root")
    assert stage.differences() == []
