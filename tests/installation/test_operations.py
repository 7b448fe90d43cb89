"""Tasks of administrators: an upgrade, a rollback, a restore from a backup, and a CRD of another version than the operator."""

from __future__ import annotations

import copy
import json
import re
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from cluster.layout import program
from kubernetes.client import ApiException
from kubernetes_objects import wait_for
from transforms_on_cluster import RELEASE, ROOT, SYSTEM, helm, install

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transforms_on_cluster import Stage

BACKUP = (ROOT / "docs" / "operations.md").read_text().partition("## Back up and restore")[2].partition("\n## ")[0]
CRD = yaml.safe_load((ROOT / "crds" / "checkpointtransforms.yaml").read_text())


def kubectl(*arguments: str, given: object = None) -> str:
    done = subprocess.run([program("kubectl"), *arguments], input=json.dumps(given), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def installed(crd: Any) -> Iterator[None]:
    """Another version of the CRD, while the body runs."""
    replace = ("replace", "--filename", "-")
    kubectl(*replace, given=crd)
    try:
        yield
    finally:
        kubectl(*replace, given=CRD)


def properties(crd: Any, *path: str) -> Any:
    """The fields below a field."""
    found = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    for name in path:
        found = found[name]["properties"]
    return found


def is_created(stage: Stage, name: str, spec: dict[str, Any]) -> bool:
    """Create a resource. Return False if the API server does not know a field yet: it serves a replaced CRD a moment later."""
    try:
        stage.create(name, spec)
    except ApiException as error:
        if "unknown field" not in str(error.body):
            raise
        return False
    return True


def test_the_operator_works_with_an_older_crd(stage: Stage) -> None:
    older = copy.deepcopy(CRD)
    for name in ("pods", "grouping", "bytesFetched", "bytesDistinct"):
        del properties(older, "status", "plan")[name]
    del properties(older, "status")["requests"]
    with installed(older):
        stage.create("older", stage.spec())
        assert "requests" not in stage.ended("older")  # the API server removes what it does not know
    assert stage.differences() == []


def test_a_field_of_a_newer_crd_is_refused_by_name(stage: Stage) -> None:
    newer = copy.deepcopy(CRD)
    properties(newer, "spec")["novelty"] = {"type": "integer"}
    properties(newer, "status")["novelty"] = {"type": "integer"}
    with installed(newer):
        wait_for(lambda: is_created(stage, "novel", stage.spec(novelty=1)), 60)
        stage.wait("novel", lambda s: "novelty" in str(s.get("conditions")))
        assert stage.ready("novel")["reason"] == "InvalidSpec"
        stage.create("plain", stage.spec())
        stage.ended("plain")
    assert stage.differences() == []


def test_an_upgrade_and_a_rollback_keep_transforms_in_every_phase(stage: Stage) -> None:
    one_by_one = {"parallelism": 1, "ranksPerPod": 1}
    stage.create("complete", stage.spec("complete"))
    stage.create("failed", stage.spec("failed", source={"strategy": {"path": "none.ckpt"}}))
    stage.create("suspended", stage.spec("suspended", suspend=True))
    nowhere = {"nodeSelector": {"no": "node"}}
    stage.create("waiting", stage.spec("waiting", execution={"podTemplate": nowhere}))
    ended = {"complete": stage.ended("complete"), "failed": stage.ended("failed", "Failed")}
    stage.wait("suspended", lambda s: s.get("phase") == "Suspended")
    stage.wait("waiting", lambda s: "Unschedulable" in str(s.get("conditions")))
    stage.create("running", stage.spec("running", execution=one_by_one))
    stage.wait("running", lambda s: s.get("ranks", {}).get("succeeded"))

    install("operator.podAnnotations.upgraded=yes")
    helm("rollback", RELEASE, "--namespace", SYSTEM, "--wait", "--timeout", "120s")

    stage.ended("running")
    stage.change("suspended", {"suspend": False})
    stage.ended("suspended")
    assert "Unschedulable" in str(stage.status("waiting")["conditions"])
    stage.delete("waiting")
    assert {name: stage.status(name) for name in ended} == ended
    for folder in ("complete", "running", "suspended"):
        assert stage.differences(folder) == []


def test_a_backup_is_restored_after_the_resources_were_lost(stage: Stage) -> None:
    """By the commands in docs/operations.md."""
    stage.create("complete", stage.spec("complete"))
    stage.ended("complete")
    written = {path: path.stat().st_mtime_ns for path in (stage.results / "complete").rglob("*.ckpt")}
    stage.create("running", stage.spec("running", execution={"parallelism": 1, "ranksPerPod": 1}))
    stage.wait("running", lambda s: s.get("ranks", {}).get("succeeded"))
    backup, restore = re.findall(r"^```console\n(.*?)```", BACKUP, re.MULTILINE | re.DOTALL)
    place = f"--namespace {stage.namespace}"

    def run(command: str) -> None:
        subprocess.run(["bash", "-euo", "pipefail", "-c", command], cwd=stage.source, check=True, capture_output=True)

    run(f'PATH="{Path(program("kubectl")).parent}:$PATH"; {backup.replace("--all-namespaces", place)}')
    stage.kubectl("delete", "checkpointtransforms", "--all")
    run(f'PATH="{Path(program("kubectl")).parent}:$PATH"; {restore}')
    assert stage.kubectl("get", "checkpointtransforms", "--output=name").split() == [
        "checkpointtransform.reshard.dev/running"  # an ended one would run again
    ]
    stage.create("complete", stage.spec("complete"))
    for name in ("complete", "running"):
        stage.ended(name)
        assert stage.differences(name) == []
    assert {path: path.stat().st_mtime_ns for path in (stage.results / "complete").rglob("*.ckpt")} == written
