"""Transforms on a real cluster, from the chart's installation on."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import disk
import models
import pytest
import yaml
from definition import Cut
from kubernetes_objects import claim_folder, wait_for
from transforms_on_cluster import RELEASE, ROOT, SYSTEM, helm

from reshard.cli import main

if TYPE_CHECKING:
    from pathlib import Path

    from transforms_on_cluster import Stage

CORPUS = ROOT / "tests" / "conformance" / "corpus"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("rank_*/*")}


@pytest.mark.parametrize(
    ("example", "ranks", "target"), [("retrain-on-4", 4, "dst_checkpoints_4"), ("serve-on-7", 7, "dst_checkpoints_7")]
)
def test_the_examples_on_files_of_the_real_mindspore(stage: Stage, tmp_path: Path, example: str, ranks: int, target: str) -> None:
    """One pod for each target rank, and byte for byte what the same resource makes without a cluster."""
    resource = yaml.safe_load((ROOT / "examples" / f"{example}.yaml").read_text())
    alone = tmp_path / "alone"
    alone.mkdir()
    claim_folder(stage.api, stage.namespace, "corpus", CORPUS)
    text = json.dumps(resource["spec"]).replace('"claimName": "checkpoints"', '"claimName": "corpus"')
    stage.create(example, json.loads(text))
    status = stage.ended(example)

    assert (status["progress"], status["percentage"], status["plan"]["targetRanks"]) == (f"{ranks}/{ranks}", 100, ranks)
    assert sorted(pod.metadata.annotations["batch.kubernetes.io/job-completion-index"] for pod in stage.pods("ranks")) == [
        str(rank) for rank in range(ranks)
    ]
    (tmp_path / "resource.yaml").write_text(yaml.safe_dump(resource))
    volumes = ["--volume", f"checkpoints={CORPUS}", "--volume", f"results={alone}"]
    assert main(["run", str(tmp_path / "resource.yaml"), *volumes]) == 0
    assert contents(stage.results / target) == contents(alone / target)
    assert status["bytesWritten"] == sum(map(len, contents(alone / target).values()))


def test_a_second_resource_for_the_same_target_has_nothing_to_do(stage: Stage) -> None:
    stage.create("first", stage.spec())
    stage.ended("first")
    assert stage.differences() == []
    stage.create("second", stage.spec())
    stage.ended("second")
    assert stage.ready("second")["reason"] == "AlreadyComplete"
    assert not any(name.startswith("second") and "ranks" in name for name in stage.jobs())


def test_a_dry_run_writes_nothing(stage: Stage) -> None:
    stage.create("dry", stage.spec(dryRun=True))
    status = stage.ended("dry")
    assert (stage.ready("dry")["reason"], status["plan"]["sourceRanks"]) == ("DryRun", 4)
    assert list(stage.results.iterdir()) == []


def test_suspended_before_and_while_ranks_are_written(stage: Stage) -> None:
    stage.create("pause", stage.spec(suspend=True))
    stage.wait("pause", lambda s: s.get("phase") == "Suspended")
    assert stage.jobs() == {}
    stage.change("pause", {"suspend": False, "execution": {"parallelism": 1}})
    stage.wait("pause", lambda s: s.get("ranks", {}).get("active"))
    stage.change("pause", {"suspend": True})
    stage.wait("pause", lambda s: s.get("phase") == "Suspended")
    assert [pod for pod in stage.pods("ranks") if pod.status.phase == "Running"] == []
    stage.change("pause", {"suspend": False, "execution": {"parallelism": 6}})
    stage.ended("pause")
    assert stage.differences() == []


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


def test_two_resources_with_one_target(stage: Stage) -> None:
    """The second waits, and is then refused: it would make something else."""
    stage.create("one", stage.spec(execution={"parallelism": 1}))
    stage.wait("one", lambda s: s.get("phase") == "Resharding")
    stage.create("two", stage.spec(target=stage.spec()["target"] | {"format": "Safetensors"}))
    stage.wait("two", lambda s: s.get("phase"))
    assert stage.ready("two")["reason"] == "TargetBusy"
    assert "one" in stage.ready("two")["message"]
    stage.ended("one")
    stage.ended("two", "Failed")
    assert stage.ready("two")["reason"] == "TargetExists"
    assert stage.differences() == []


def test_deleted_while_it_runs_and_created_again(stage: Stage) -> None:
    stage.create("again", stage.spec(execution={"parallelism": 1}))
    stage.wait("again", lambda s: s.get("phase") == "Resharding")
    stage.delete("again")
    stage.create("again", stage.spec())
    stage.ended("again")
    assert stage.differences() == []
    assert len({job.metadata.owner_references[0].uid for job in stage.jobs().values()}) == 1


def test_the_operator_is_killed_in_each_phase(stage: Stage) -> None:
    stage.create("survivor", stage.spec())
    for phase in ("Planning", "Resharding", "Committing"):
        stage.wait("survivor", lambda s, phase=phase: s.get("phase") in {phase, "Complete"})
        for pod in stage.core.list_namespaced_pod(SYSTEM, label_selector=f"app.kubernetes.io/instance={RELEASE}").items:
            stage.core.delete_namespaced_pod(pod.metadata.name, SYSTEM, grace_period_seconds=0)
    stage.ended("survivor")
    assert stage.differences() == []
    assert len(stage.jobs()) == 3


def test_an_evicted_pod_runs_again(stage: Stage) -> None:
    stage.create("evicted", stage.spec(execution={"parallelism": 2, "backoffLimitPerIndex": 0}))
    pod = wait_for(lambda: next((p for p in stage.pods("ranks") if p.status.phase in {"Pending", "Running"}), None), 60)
    stage.core.create_namespaced_pod_eviction(pod.metadata.name, stage.namespace, {"metadata": {"name": pod.metadata.name}})
    stage.ended("evicted")
    assert stage.differences() == []


def test_files_as_training_leaves_them(stage: Stage) -> None:
    """Root's, with mode 0400 in folders of 0700: the message says what to set, and with that it works."""
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


def test_events_tell_the_story(stage: Stage) -> None:
    stage.create("told", stage.spec())
    stage.ended("told")

    def reasons() -> set[str]:
        events: list[Any] = stage.core.list_namespaced_event(stage.namespace, field_selector="involvedObject.name=told").items
        return {event.reason for event in events}

    wait_for(lambda: {"Planning", "Resharding", "Committing", "Complete"} <= reasons(), 10)


def test_a_pipeline_of_two_stages_becomes_four_ranks(stage: Stage) -> None:
    rows, columns = Cut((4,), ((0,), ())), Cut((4,), ((), (0,)))
    tensors = tuple(models.Tensor(f"layer{i}", "Float32", (16, 8), rows, i, columns, 0) for i in range(2))
    model = models.Model(4, 2, 4, 1, tensors, 7, remove_redundancy=False)
    folder = stage.source / "pipeline"
    disk.write(folder, model, "safetensors")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    claim = {"persistentVolumeClaim": {"claimName": "checkpoints", "path": "pipeline/src"}}
    source = {"storage": claim, "strategy": {"path": "pipeline/source.ckpt"}}
    target = stage.spec()["target"]
    target["strategy"] |= {"path": "pipeline/target.ckpt"}
    stage.create("pipeline", stage.spec(source=source, target=target))
    assert stage.ended("pipeline")["plan"]["sourceRanks"] == 8
    assert disk.differences(model, stage.results / "out", "safetensors") == []


def test_pods_that_cannot_start_are_given_up(stage: Stage) -> None:
    missing = {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "no-such-secret", "key": "token"}}}
    stage.create("stuck", stage.spec(execution={"startupDeadlineSeconds": 5, "podTemplate": {"env": [missing]}}))
    stage.ended("stuck", "Failed")
    ready = stage.ready("stuck")
    assert ready["reason"] == "PodsNotStarting"
    assert "no-such-secret" in ready["message"]
    wait_for(lambda: not stage.pods("plan"), 60)


@pytest.mark.usefixtures("operator")
def test_helm_test_passes() -> None:
    helm("test", RELEASE, "--namespace", SYSTEM, "--timeout", "120s")
