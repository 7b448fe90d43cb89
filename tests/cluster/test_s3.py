"""Buckets on either side, each with its own keys, from `kubectl apply` to the last object."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import disk
import pytest
import s3_server
from cluster.layout import NODE_ADDRESS
from kubernetes_objects import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from transforms_on_cluster import Stage

CLAIM = {"persistentVolumeClaim": {"claimName": "checkpoints"}}
RESULTS = {"persistentVolumeClaim": {"claimName": "results", "path": "out"}}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[s3_server.Server]:
    """A server that pods reach."""
    with s3_server.running(tmp_path / "s3", NODE_ADDRESS) as found:
        yield found


@pytest.fixture
def other(tmp_path: Path) -> Iterator[s3_server.Server]:
    """Another one, with other keys."""
    with s3_server.running(tmp_path / "other", NODE_ADDRESS, "other-key", "other-secret") as found:
        yield found


def keys(stage: Stage, name: str, key: str, secret: str) -> None:
    """A Secret with credentials, new or changed."""
    stage.secret(name, {"accessKeyId": key.encode(), "secretAccessKey": secret.encode()})


def place(server: s3_server.Server, bucket: str, prefix: str, secret: str) -> dict[str, Any]:
    found = {"bucket": bucket, "prefix": prefix, "endpoint": server.endpoint, "addressingStyle": "Path"}
    return {"s3": found | {"region": "us-east-1", "credentialsSecretRef": {"name": secret}}}


def sides(source: Any, source_strategy: str, target: Any, target_strategy: str, **more: Any) -> dict[str, Any]:
    """A spec; strategies are on the claim."""
    return {
        "source": {"storage": source, "strategy": {"path": source_strategy, "storage": CLAIM}},
        "target": {"storage": target, "strategy": {"path": target_strategy, "storage": CLAIM}},
    } | more


def test_from_a_claim_to_a_bucket_to_another_and_back(stage: Stage, server: s3_server.Server, other: s3_server.Server) -> None:
    keys(stage, "first", server.key, server.secret)
    keys(stage, "second", other.key, other.secret)
    one, two = place(server, server.bucket(), "run/on-6", "first"), place(other, other.bucket(), "on-4", "second")
    source = {"persistentVolumeClaim": {"claimName": "checkpoints", "path": "src"}}
    for name, spec in (
        ("to-bucket", sides(source, "source.ckpt", one, "target.ckpt")),
        ("between", sides(one, "target.ckpt", two, "source.ckpt")),
        ("from-bucket", sides(two, "source.ckpt", RESULTS, "target.ckpt", verification="Full")),
    ):
        stage.create(name, spec)
        stage.ended(name)
    assert stage.differences() == []
    shown = json.dumps([stage.status(name) for name in ("to-bucket", "between", "from-bucket")])
    shown += str(list(stage.jobs().values())) + "".join(str(stage.pods(step)) for step in ("plan", "ranks", "commit"))
    assert server.secret not in shown
    assert other.secret not in shown


@pytest.mark.parametrize(
    ("bucket", "secret", "reason"), [("no-such-bucket", s3_server.SECRET, "BucketMissing"), ("", "wrong", "CredentialsRefused")]
)
def test_refusals_by_the_server_are_reported_with_its_code(
    stage: Stage, server: s3_server.Server, bucket: str, secret: str, reason: str
) -> None:
    keys(stage, "keys", server.key, secret)
    source = {"persistentVolumeClaim": {"claimName": "checkpoints", "path": "src"}}
    target = place(server, bucket or server.bucket(), "out", "keys")
    stage.create("refused", sides(source, "source.ckpt", target, "target.ckpt"))
    stage.ended("refused", "Failed")
    assert stage.ready("refused")["reason"] == reason
    assert " failed with " in stage.ready("refused")["message"]


def test_keys_changed_during_a_run_are_used(stage: Stage, server: s3_server.Server) -> None:
    for number in ("old", "new"):
        server.administer("create-user", "--access", number, "--secret", f"{number}-secret", "--role", "admin")
    keys(stage, "keys", "old", "old-secret")
    source = {"persistentVolumeClaim": {"claimName": "checkpoints", "path": "src"}}
    target = place(server, server.bucket(), "out", "keys")
    stage.create("rotated", sides(source, "source.ckpt", target, "target.ckpt", execution={"parallelism": 1, "ranksPerPod": 1}))
    stage.wait("rotated", lambda s: s.get("ranks", {}).get("succeeded"))
    keys(stage, "keys", "new", "new-secret")
    before = {pod.metadata.name for pod in stage.pods("ranks")}
    wait_for(lambda: all(p.status.phase == "Succeeded" for p in stage.pods("ranks") if p.metadata.name in before))
    server.administer("delete-user", "--access", "old")
    stage.ended("rotated")


def test_a_killed_pod_leaves_no_upload(stage: Stage, server: s3_server.Server, tmp_path: Path) -> None:
    made = disk.write(stage.source / "large", disk.example(rows=24_576, columns=1152))
    keys(stage, "keys", server.key, server.secret)
    bucket = server.bucket()
    source = {"persistentVolumeClaim": {"claimName": "checkpoints", "path": "large/src"}}
    target = place(server, bucket, "out", "keys")
    stage.create(
        "killed",
        sides(
            source,
            "large/source.ckpt",
            target,
            "large/target.ckpt",
            execution={"parallelism": 1, "ranksPerPod": 1},
            verification="None",
        ),
    )
    stage.wait("killed", lambda s: s.get("phase") == "Resharding")
    wait_for(lambda: server.uploads(bucket))
    for pod in stage.pods("ranks"):
        stage.core.delete_namespaced_pod(pod.metadata.name, stage.namespace, grace_period_seconds=0)
    stage.ended("killed")
    assert server.uploads(bucket) == []
    assert disk.differences(made.model, server.download(f"s3://{bucket}/out", tmp_path / "found"), "ckpt") == []
