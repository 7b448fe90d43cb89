"""Simulated nodes: the API, the scheduler and all controllers are real; only the pods' processes do not exist."""

import json
import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster import access
from cluster.components import Component, wait
from cluster.layout import ClusterError, Layout, program

LABEL = "reshard.dev/simulation"
_STAGES = ("node/fast", "node/heartbeat-with-lease", "pod/fast")
# A pod that has this label leaves the termination message that an annotation has for the label's value: ANNOTATION + VALUE, or
# ANNOTATION + VALUE + "-" + INDEX if there is one for its completion index.
_MESSAGE_LABEL = "reshard.dev/step"
_MESSAGE_ANNOTATION = "simulation.reshard.dev/"
# Instead of kwok's own, which leaves no message.
_COMPLETE = """
{{ $now := Now }}
{{ $message := "" }}
{{ $annotations := .metadata.annotations }}
{{ with .metadata.labels }}{{ with index . "LABEL" }}{{ $key := printf "ANNOTATION%s" . }}
{{ with $annotations }}{{ $own := printf "%s-%s" $key (index . "batch.kubernetes.io/job-completion-index") }}
{{ with index . $own }}{{ $message = . }}{{ else }}{{ with index $annotations $key }}{{ $message = . }}{{ end }}{{ end }}{{ end }}
{{ end }}{{ end }}
phase: Succeeded
containerStatuses:
{{ range .spec.containers }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  ready: false
  restartCount: 0
  state:
    terminated:
      exitCode: 0
      reason: Completed
      message: {{ $message | Quote }}
      startedAt: {{ $now | Quote }}
      finishedAt: {{ $now | Quote }}
{{ end }}
""".replace("LABEL", _MESSAGE_LABEL).replace("ANNOTATION", _MESSAGE_ANNOTATION)
_CAPACITY = {"cpu": "1k", "memory": "1Ti", "pods": "1k"}


@contextmanager
def nodes(layout: Layout, count: int) -> Iterator[dict[str, Any]]:
    """Run simulated nodes while the body runs; yield the fields of a pod's spec that place it there, unlike real pods."""
    name = f"simulated-{uuid.uuid4().hex[:8]}"
    kwok = Component("kwok", _kwok(layout, name), lambda: _ready(layout, name) == count, layout.logs / f"{name}.log")
    kwok.start()
    try:
        _kubectl(layout, "create", "-f", "-", given={"apiVersion": "v1", "kind": "List", "items": _nodes(name, count)})
        wait([kwok], 60)
        yield {
            "nodeSelector": {LABEL: name},
            "tolerations": [{"key": LABEL, "operator": "Exists"}],
        }
    finally:
        _kubectl(layout, "delete", "node", "--selector", f"{LABEL}={name}", "--ignore-not-found")
        kwok.process.send_signal(signal.SIGKILL)
        kwok.process.wait()


def messages(said: dict[str, object]) -> dict[str, str]:
    """Return the annotations of pods that leave these messages, by the value of their label, or by LABEL-INDEX."""
    return {f"{_MESSAGE_ANNOTATION}{value}": json.dumps(message) for value, message in said.items()}


def _kwok(layout: Layout, name: str) -> list[str]:
    folder = layout.configuration / name
    folder.mkdir()
    # With its four at a time a Job of 1,000 pods takes three minutes.
    options = {"nodeLeaseParallelism": 64, "podPlayStageParallelism": 64, "nodePlayStageParallelism": 64}
    configuration = {"apiVersion": "config.kwok.x-k8s.io/v1alpha1", "kind": "KwokConfiguration", "options": options}
    (folder / "kwok.yaml").write_text(json.dumps(configuration))
    configurations = [folder / "kwok.yaml"]
    for stage in _STAGES:
        files = Path(os.environ["RESHARD_KWOK_STAGES"], stage).glob("*.yaml")
        configurations += sorted(file for file in files if file.name not in {"kustomization.yaml", "pod-complete.yaml"})
    (folder / "pod-complete.yaml").write_text(json.dumps(_completion()))
    configurations.append(folder / "pod-complete.yaml")
    return [
        program("kwok"),
        f"--kubeconfig={layout.kubeconfig}",
        f"--manage-nodes-with-label-selector={LABEL}={name}",
        "--node-lease-duration-seconds=40",
        *(f"--config={path}" for path in configurations),
    ]


def _completion() -> dict[str, Any]:
    """The stage in which a pod of a Job that runs has done its work."""
    running = [
        {"key": ".metadata.deletionTimestamp", "operator": "DoesNotExist"},
        {"key": ".status.phase", "operator": "In", "values": ["Running"]},
        {"key": ".metadata.ownerReferences.[].kind", "operator": "In", "values": ["Job"]},
    ]
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": "pod-complete"},
        "spec": {
            "resourceRef": {"apiGroup": "v1", "kind": "Pod"},
            "selector": {"matchExpressions": running},
            "next": {"statusTemplate": _COMPLETE},
        },
    }


def _nodes(name: str, count: int) -> list[dict[str, Any]]:
    return [
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": f"{name}-{index}", "labels": {LABEL: name}},
            "spec": {"taints": [{"key": LABEL, "effect": "NoSchedule"}]},
            "status": {"allocatable": _CAPACITY, "capacity": _CAPACITY},
        }
        for index in range(count)
    ]


def _ready(layout: Layout, name: str) -> int:
    items = json.loads(access.get(layout, f"/api/v1/nodes?labelSelector={LABEL}%3D{name}"))["items"]
    conditions = [condition for item in items for condition in item["status"].get("conditions", [])]
    return sum(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def _kubectl(layout: Layout, *arguments: str, given: object = None) -> None:
    command = [program("kubectl"), f"--kubeconfig={layout.kubeconfig}", *arguments]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
