"""Failures in a cluster: named, without partial output, and followed by recovery where possible."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from cluster.layout import program
from kubernetes_objects import claim_folder, wait_for

from reshard.spec.ranks import parse_ranks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from transforms_on_cluster import Stage


def test_a_corrupt_source_fails_at_once_and_the_next_attempt_after_its_repair(stage: Stage) -> None:
    path = next((stage.made.source / "rank_2").iterdir())
    good = path.read_bytes()
    path.write_bytes(good[:-7])
    stage.create("corrupt", stage.spec())
    status = stage.ended("corrupt", "Failed")
    ready = stage.ready("corrupt")
    assert "rank_2/net-1_100.ckpt" in ready["message"]
    assert len(stage.pods("plan")) == 1  # no second try of what cannot succeed
    assert {c["type"]: c["status"] for c in status["conditions"]} == {"Ready": "False", "Failed": "True", "Stalled": "True"}
    path.write_bytes(good)
    stage.change("corrupt", {"execution": {"attempt": 2}})
    stage.wait("corrupt", lambda s: s.get("attempt") == 2)
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
    failed = parse_ranks(status["ranks"]["failedRanks"])
    assert status["ranks"]["succeeded"] == 6 - len(failed) > 0
    assert [failure["ranks"] for failure in status["ranks"]["failures"]] == [str(rank) for rank in failed]
    pods = [pod.metadata.annotations["batch.kubernetes.io/job-completion-index"] for pod in stage.pods("ranks")]
    assert sorted(pods) == [str(rank) for rank in range(6)]  # none a second time
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


def test_pods_that_cannot_start_are_given_up(stage: Stage) -> None:
    missing = {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "no-such-secret", "key": "token"}}}
    stage.create("stuck", stage.spec(execution={"startupDeadlineSeconds": 5, "podTemplate": {"env": [missing]}}))
    stage.ended("stuck", "Failed")
    ready = stage.ready("stuck")
    assert ready["reason"] == "PodsNotStarting"
    assert "no-such-secret" in ready["message"]
    wait_for(lambda: not stage.pods("plan"))


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
