"""Objects that tests create in a cluster and wait for: restricted pods, Jobs of them, claims on a folder of this machine."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar

from kubernetes import client

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

USER = 65532
T = TypeVar("T")


def pod_spec(image: str, command: list[str], claims: dict[str, str] | None = None) -> dict[str, Any]:
    """A pod that the strictest namespace admits, with claims as CLAIM: PATH."""
    claims = claims or {}
    return {
        "restartPolicy": "Never",
        "securityContext": {"runAsNonRoot": True, "runAsUser": USER, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "name": "main",
                "image": image,
                "imagePullPolicy": "Never",
                "command": command,
                "securityContext": {
                    "readOnlyRootFilesystem": True,
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [{"name": claim, "mountPath": path} for claim, path in claims.items()],
            }
        ],
        "volumes": [{"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim in claims],
    }


def indexed_job(name: str, completions: int, pod: dict[str, Any]) -> dict[str, Any]:
    """A Job that runs a pod for every index."""
    return {"metadata": {"name": name}, "spec": indexed_spec(completions, pod)}


def indexed_spec(completions: int, pod: dict[str, Any]) -> dict[str, Any]:
    """The spec of a Job that runs a pod for every index."""
    return {"completions": completions, "parallelism": completions, "completionMode": "Indexed", "template": {"spec": pod}}


def claim_folder(api: client.ApiClient, namespace: str, name: str, folder: Path) -> None:
    """Make a claim whose volume is a folder of this machine."""
    core = client.CoreV1Api(api)
    common = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    volume = {**common, "capacity": {"storage": "1Gi"}, "hostPath": {"path": str(folder), "type": "Directory"}}
    volume["claimRef"] = {"namespace": namespace, "name": name}
    core.create_persistent_volume({"metadata": {"name": f"{namespace}-{name}"}, "spec": volume})
    claim = {**common, "resources": {"requests": {"storage": "1Gi"}}, "volumeName": f"{namespace}-{name}"}
    core.create_namespaced_persistent_volume_claim(namespace, {"metadata": {"name": name}, "spec": claim})


def wait_for(look: Callable[[], T], seconds: float = 240) -> T:
    """Return the first true answer. Machines are shared, so the timeout is far longer than an idle one needs."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, f"not within {seconds} s: {found}"
        time.sleep(0.1)
    return found
