"""Fake kubelet: changes the statuses of pods without a node, so that a whole transform runs on an API server alone."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from kubernetes import client
from pretend_cluster import COMMIT, PLAN, RANKS, TRANSFORM

from reshard_operator.labels import LABEL_STEP
from reshard_operator.objects import CONTAINER

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import contextmanager
else:
    from contextlib import contextmanager

_MESSAGES = {"plan": PLAN, "ranks": RANKS, "commit": COMMIT, "transform": TRANSFORM}
_LOOK_SECONDS = 0.2


class PretendKubelet:
    """Runs the pods of one namespace: each is running at one observation, and has succeeded at the next.

    Attributes:
        held: steps whose pods run and do not end.
    """

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        self.held: set[str] = set()
        self._core, self._namespace = client.CoreV1Api(api), namespace
        self._stop = threading.Event()

    @contextmanager
    def running(self) -> Iterator[PretendKubelet]:
        """Run pods until the context ends."""
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_LOOK_SECONDS):
            for pod in self._core.list_namespaced_pod(self._namespace).items:
                step = (pod.metadata.labels or {}).get(LABEL_STEP, "")
                if pod.metadata.deletion_timestamp is not None:
                    self._change(self._core.delete_namespaced_pod, pod.metadata.name, grace_period_seconds=0)
                elif pod.status.phase == "Pending":
                    self._write(pod.metadata.name, "Running", {"running": {"startedAt": _now()}})
                elif pod.status.phase == "Running" and step not in self.held:
                    ended = {"exitCode": 0, "message": json.dumps(_MESSAGES[step]), "finishedAt": _now(), "startedAt": _now()}
                    self._write(pod.metadata.name, "Succeeded", {"terminated": ended})

    def _write(self, name: str, phase: str, state: dict[str, Any]) -> None:
        runs = phase == "Running"
        container = {"name": CONTAINER, "image": "i", "imageID": "i", "ready": runs, "restartCount": 0, "state": state}
        ready = {"type": "Ready", "status": str(runs)}
        status = {"phase": phase, "conditions": [ready], "containerStatuses": [container]}
        self._change(self._core.patch_namespaced_pod_status, name, body={"status": status})

    def _change(self, call: Any, name: str, **arguments: Any) -> None:
        try:
            call(name, self._namespace, **arguments)
        except client.ApiException as error:
            if error.status not in {404, 409}:
                raise


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
