"""Transforms in the test cluster: the chart, installed once; claims with a checkpoint; resources and their outcomes."""

from __future__ import annotations

import base64
import copy
import fcntl
import json
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import disk
import pytest
from cluster.layout import Layout, program
from kubernetes import client
from kubernetes_objects import claim_folder

from reshard.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

ROOT = Path(__file__).parents[2]
GROUP, VERSION, PLURAL = "reshard.dev", "v1alpha1", "checkpointtransforms"
RELEASE, SYSTEM = "reshard", "reshard-system"
IMAGES = [
    f"{part}.image.{name}={value}"
    for part in ("operator", "converter")
    for name, value in (("repository", f"localhost/reshard-{part}"), ("tag", "tests"), ("pullPolicy", "Never"))
] + ["converter.resources.requests.cpu=20m"]  # many pods on a small machine


def helm(*arguments: str) -> None:
    """Run helm."""
    done = subprocess.run([program("helm"), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def install(*values: str) -> None:
    """Install the chart as users do, or upgrade it, with values in addition to those that name the tests' images."""
    place = ["--namespace", SYSTEM, "--create-namespace", "--wait", "--timeout", "120s"]
    settings = [part for value in (*IMAGES, *values) for part in ("--set", value)]
    helm("upgrade", "--install", RELEASE, str(ROOT / "helm" / "reshard"), *place, *settings)


@pytest.fixture(scope="session")
def operator(layout: Layout, api: client.ApiClient) -> Iterator[None]:
    """The operator, installed once, whichever process of pytest comes first. It must never restart by itself."""
    with (layout.state / "operator.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = layout.state / "operator.installed"
        if not done.exists():
            install()
            done.touch()
    yield
    for pod in client.CoreV1Api(api).list_namespaced_pod(SYSTEM, label_selector=f"app.kubernetes.io/instance={RELEASE}").items:
        assert sum(container.restart_count for container in pod.status.container_statuses or ()) == 0, pod.metadata.name


def document(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    """A resource."""
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": "CheckpointTransform", "metadata": {"name": name}, "spec": spec}


def with_field(spec: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a copy of a spec with one more field, such as "target.output"."""
    changed = copy.deepcopy(spec)
    *folders, last = path.split(".")
    place = changed
    for folder in folders:
        place = place.setdefault(folder, {})
    place[last] = value
    return changed


def without_a_cluster(spec: dict[str, Any], folder: Path, **claims: Path) -> None:
    """Run the same spec on this machine, with folders for its claims; and one for the resource."""
    resource = folder / "resource.json"
    resource.write_text(json.dumps(document("x", spec)))
    volumes = [part for claim, place in claims.items() for part in ("--volume", f"{claim}={place}")]
    assert main(["run", str(resource), *volumes]) == 0


class Transforms:
    """The transforms of one namespace, and their outcomes."""

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        self.api, self.namespace = api, namespace
        self.batch, self.core = client.BatchV1Api(api), client.CoreV1Api(api)
        self.apps, self.leases = client.AppsV1Api(api), client.CoordinationV1Api(api)
        self.custom = client.CustomObjectsApi(api)
        self.where = (GROUP, VERSION, namespace, PLURAL)

    def kubectl(self, *arguments: str) -> str:
        """Run kubectl in the namespace; what it says."""
        command = [program("kubectl"), "--namespace", self.namespace, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def create(self, name: str, spec: dict[str, Any], unknown: Literal["Strict", "Ignore"] = "Strict") -> None:
        """Create a resource. If the API server does not know a field, it refuses or ignores the field."""
        self.custom.create_namespaced_custom_object(*self.where, document(name, spec), field_validation=unknown)

    def secret(self, name: str, entries: Mapping[str, bytes]) -> None:
        """Create a Secret, or change entries of the existing one."""
        body = {"metadata": {"name": name}, "data": {key: base64.b64encode(value).decode() for key, value in entries.items()}}
        if name in {found.metadata.name for found in self.core.list_namespaced_secret(self.namespace).items}:
            self.core.patch_namespaced_secret(name, self.namespace, body)
        else:
            self.core.create_namespaced_secret(self.namespace, body)

    def change(self, name: str, spec: dict[str, Any]) -> None:
        """Change some fields of a resource's spec."""
        self.custom.patch_namespaced_custom_object(*self.where, name, {"spec": spec})

    def delete(self, name: str, policy: str = "Background") -> None:
        """Delete a resource, by default as kubectl does."""
        self.custom.delete_namespaced_custom_object(*self.where, name, propagation_policy=policy)

    def status(self, name: str) -> dict[str, Any]:
        """Return the status that the operator has written."""
        found: dict[str, Any] = self.custom.get_namespaced_custom_object(*self.where, name)
        return found.get("status") or {}

    def ready(self, name: str) -> dict[str, Any]:
        """Return the condition that describes the current activity."""
        return next((c for c in self.status(name).get("conditions") or [] if c["type"] == "Ready"), {})

    def wait(self, name: str, until: Callable[[dict[str, Any]], object], seconds: float = 240) -> dict[str, Any]:
        """Poll the status until it is as expected, and return it."""
        end = time.monotonic() + seconds
        while not until(status := self.status(name)):
            assert time.monotonic() < end, json.dumps(status, indent=1)
            time.sleep(0.2)
        return status

    def ended(self, name: str, phase: str = "Complete", seconds: float = 240) -> dict[str, Any]:
        """Wait until the transform has ended, in the expected phase."""
        status = self.wait(name, lambda s: s.get("completionTime") and s["phase"] in {"Complete", "Failed"}, seconds)
        assert status["phase"] == phase, json.dumps(status, indent=1)
        return status

    def jobs(self) -> dict[str, Any]:
        """All Jobs, by name."""
        return {job.metadata.name: job for job in self.batch.list_namespaced_job(self.namespace).items}

    def pods(self, step: str) -> list[Any]:
        """The pods of a step."""
        return list(self.core.list_namespaced_pod(self.namespace, label_selector=f"reshard.dev/step={step}").items)


class Stage(Transforms):
    """A namespace with a checkpoint on a claim."""

    def __init__(
        self, api: client.ApiClient, namespace: str, folder: Path, *, ranks: int = 6, rows: int = 48, columns: int = 24
    ) -> None:
        super().__init__(api, namespace)
        self.source, self.results = folder / "source", folder / "results"
        self.made = disk.write(self.source, disk.example(ranks=ranks, rows=rows, columns=columns))
        self.results.mkdir()
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o777 if path.is_dir() else 0o644)
        self.checkpoints: dict[str, Any] = {"persistentVolumeClaim": {"claimName": "checkpoints"}}
        claim_folder(api, namespace, "checkpoints", self.source)
        claim_folder(api, namespace, "results", self.results)

    def spec(self, folder: str = "out", **more: Any) -> dict[str, Any]:
        """Return a spec from the checkpoint's 4 ranks to those of its target strategy."""
        source = {"persistentVolumeClaim": {"claimName": "checkpoints", "path": "src"}}
        results = {"persistentVolumeClaim": {"claimName": "results", "path": folder}}
        made: dict[str, Any] = {
            "source": {"storage": source, "strategy": {"path": "source.ckpt"}},
            "target": {"storage": results, "strategy": {"path": "target.ckpt", "storage": self.checkpoints}},
        }
        for key, value in more.items():
            made[key] = made[key] | value if isinstance(value, dict) and key in made else value
        return made

    def differences(self, target: str = "out", kind: str = "ckpt") -> list[str]:
        """Return the differences of a target from the expected contents."""
        return disk.differences(self.made.model, self.results / target, kind)


@pytest.fixture
def stage(api: client.ApiClient, namespace: str, tmp_path: Path, operator: None) -> Stage:  # noqa: ARG001 - it has to be there
    """A checkpoint on a claim, and the operator."""
    for path in (tmp_path, *tmp_path.parents[:3]):  # pods are other users
        if path.stat().st_uid == 0:
            path.chmod(path.stat().st_mode | 0o011)
    return Stage(api, namespace, tmp_path)
