"""Jobs, pods and Events in the form in which the API server returns them. This module parses what pods report."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from reshard.spec.messages import CommitMessage, FailureMessage, RanksMessage, UnreadableMessageError, decode_message
from reshard.spec.ranks import parse_ranks
from reshard_operator.labels import ANNOTATION_INDEX, ANNOTATION_TRANSFORM

if TYPE_CHECKING:
    from reshard.spec.messages import M

# The converter's container; webhooks may add others to the pod.
CONTAINER = "reshard"
# Pods at the end of a Job. While there are more, all of them are not listed.
_FEW = 50
# The kubelet's reason for a container that the kernel killed because of memory.
_OUT_OF_MEMORY = "OOMKilled"
_READ_ANNOTATIONS = {ANNOTATION_INDEX, ANNOTATION_TRANSFORM}
# Reasons of a container that has not started yet, although nothing is wrong.
_STARTING = {"", "ContainerCreating", "PodInitializing"}
# What a message that is not JSON, or is nested too deeply, raises.
_UNREADABLE = (msgspec.MsgspecError, RecursionError, UnicodeError)

Object = dict[str, Any]


@dataclass(frozen=True)
class KubeObject:
    """An object in the form in which the API server returns it."""

    raw: Object

    @property
    def name(self) -> str:
        """Name of the object."""
        return str(self.raw["metadata"]["name"])

    @property
    def uid(self) -> str:
        """UID of the object."""
        return str(self.raw["metadata"]["uid"])

    @property
    def status(self) -> Object:
        """Status of the object."""
        return self.raw.get("status") or {}

    @property
    def owner(self) -> str:
        """UID of the controlling owner."""
        return next((str(o["uid"]) for o in self.raw["metadata"].get("ownerReferences", ()) if o.get("controller")), "")

    def label(self, name: str) -> str:
        """Return the value of a label, or an empty string."""
        return str((self.raw["metadata"].get("labels") or {}).get(name, ""))

    def annotation(self, name: str) -> str:
        """Return the value of an annotation, or an empty string."""
        return str((self.raw["metadata"].get("annotations") or {}).get(name, ""))


class Job(KubeObject):
    """A Job of a transform."""

    @property
    def spec(self) -> Object:
        """Spec of the Job."""
        return dict(self.raw["spec"])

    @property
    def deleting(self) -> bool:
        """True if the Job is being deleted."""
        return "deletionTimestamp" in self.raw["metadata"]

    def condition(self, kind: str) -> Object | None:
        """Return a condition whose status is True."""
        return next((c for c in self.status.get("conditions") or () if c["type"] == kind and c["status"] == "True"), None)

    @property
    def complete(self) -> bool:
        """True if the Job has succeeded."""
        return self.condition("Complete") is not None

    @property
    def failed(self) -> Object | None:
        """The Failed condition, or None if the Job has not failed."""
        return self.condition("Failed")

    @property
    def ended(self) -> bool:
        """True if the Job has succeeded or failed."""
        return self.complete or self.failed is not None

    @property
    def suspended(self) -> bool:
        """True if the Job is suspended and all its pods are deleted."""
        return self.condition("Suspended") is not None and not self.status.get("active") and not self.status.get("terminating")

    @property
    def runs(self) -> bool:
        """True if all pods run, so that the watch of the Job reports every change.

        A pod on a lost node is only terminating once it has been deleted, and no longer active.
        """
        return self.active > 0 and self.ready >= self.active and not self.status.get("terminating")

    @property
    def ends(self) -> bool:
        """True if a few indexes have not succeeded yet, and none of their pods is ready any more: their containers have ended."""
        return 0 < self.active <= _FEW and not self.ready and self.active >= self.left

    @property
    def active(self) -> int:
        """Number of pods that neither have ended nor are being deleted."""
        return int(self.status.get("active") or 0)

    @property
    def ready(self) -> int:
        """Number of active pods that are ready: those whose containers run, because they have no readiness probe."""
        return int(self.status.get("ready") or 0)

    @property
    def left(self) -> int:
        """Number of indexes of an Indexed Job that have not succeeded yet."""
        return int(self.spec["completions"]) - len(self.indexes("completedIndexes"))

    def variable(self, name: str) -> str:
        """Return the value of an environment variable of the container.

        Raises:
            KeyError: the variable does not exist.
        """
        (container,) = (c for c in self.spec["template"]["spec"]["containers"] if c["name"] == CONTAINER)
        return {str(each["name"]): str(each.get("value")) for each in container["env"]}[name]

    def indexes(self, field_name: str) -> tuple[int, ...]:
        """Return the completion indexes in a field of the status, such as "0,3-5"."""
        text = self.status.get(field_name) or ""
        return parse_ranks(text) if text else ()


class Pod(KubeObject):
    """A pod of a transform. Its owner is a Job."""

    @classmethod
    def parse(cls, raw: Object) -> Pod:
        """Return a pod without the fields that are not read, which can be large, such as variables."""
        metadata, spec = raw["metadata"], raw.get("spec") or {}
        annotations = {key: value for key, value in (metadata.get("annotations") or {}).items() if key in _READ_ANNOTATIONS}
        named = {
            key: metadata[key] for key in ("name", "uid", "creationTimestamp", "ownerReferences", "labels") if key in metadata
        }
        containers = [{key: c.get(key) for key in ("name", "resources")} for c in spec.get("containers") or ()]
        kept = {key: spec[key] for key in ("nodeName", "volumes") if key in spec} | {"containers": containers}
        return cls({"metadata": named | {"annotations": annotations}, "spec": kept, "status": raw.get("status") or {}})

    @property
    def created(self) -> str:
        """Creation time."""
        return str(self.raw["metadata"].get("creationTimestamp", ""))

    @property
    def phase(self) -> str:
        """Phase: Pending, Running, Succeeded, Failed or Unknown."""
        return str(self.status.get("phase", "Pending"))

    def waits_since(self, moment: datetime) -> bool:
        """Return whether the pod was created before `moment`, is scheduled, and has not started."""
        has_node = self.condition("PodScheduled").get("status") == "True"
        return self.phase == "Pending" and has_node and datetime.fromisoformat(self.created) <= moment

    @property
    def starts(self) -> bool:
        """True if the pod is scheduled, and none of its containers is known to be unable to start."""
        return self.phase == "Pending" and self.condition("PodScheduled").get("status") == "True" and self.blocked is None

    @property
    def mounted(self) -> bool:
        """True if the volumes of the pod are mounted. The kubelet creates its sandbox and its network after them."""
        return bool(self.condition("PodReadyToStartContainers").get("status") == "True")

    @property
    def alive(self) -> bool:
        """True if a process of the pod may still write."""
        return self.phase not in {"Succeeded", "Failed"}

    @property
    def index(self) -> int:
        """Completion index."""
        return int(self.annotation(ANNOTATION_INDEX) or 0)

    @property
    def node(self) -> str:
        """Name of the node, or an empty string if the pod is not scheduled."""
        return str((self.raw.get("spec") or {}).get("nodeName") or "")

    @property
    def entries(self) -> dict[str, str]:
        """The Secret or ConfigMap of each volume, by name of the volume."""
        volumes = (self.raw.get("spec") or {}).get("volumes") or ()
        secrets = {v["name"]: f"Secret {v['secret']['secretName']}" for v in volumes if "secret" in v}
        return secrets | {v["name"]: f"ConfigMap {v['configMap']['name']}" for v in volumes if "configMap" in v}

    @property
    def lost(self) -> bool:
        """True if the node of the pod does not report its status.

        The pods have no readiness probe, so the Ready condition of a running pod is false only in this case. A pod that has not
        started is deleted after five minutes, and remains.
        """
        if self.phase == "Pending":
            return self.condition("DisruptionTarget").get("reason") == "DeletionByTaintManager"
        runs = any("running" in (s.get("state") or {}) for s in self._containers())
        return self.phase == "Running" and runs and self.condition("Ready").get("status") == "False"

    @property
    def blocked(self) -> tuple[str, str] | None:
        """Why a container cannot start, as reason and message, or None. Webhooks may have added the container."""
        for kind in ("initContainerStatuses", "containerStatuses"):
            for status in self.status.get(kind) or ():
                waiting = (status.get("state") or {}).get("waiting") or {}
                if (reason := str(waiting.get("reason") or "")) not in _STARTING:
                    name = "" if status.get("name") == CONTAINER else f"container {status.get('name')}: "
                    return reason, name + str(waiting.get("message") or reason)
        return None

    @property
    def terminated(self) -> Object:
        """The terminated state of the container, or an empty dict."""
        return next((s["state"]["terminated"] for s in self._containers() if "terminated" in (s.get("state") or {})), {})

    def _containers(self) -> list[Object]:
        return [s for s in self.status.get("containerStatuses") or () if s.get("name") == CONTAINER]

    def condition(self, kind: str) -> Object:
        """Return a condition, whatever its status."""
        return next((c for c in self.status.get("conditions") or () if c["type"] == kind), {})

    def result(self, kind: type[M]) -> M:
        """Return the termination message of the pod.

        Raises:
            UnreadableMessageError: the message is missing or cannot be read.
        """
        return decode_message(str(self.terminated.get("message") or ""), kind)

    @property
    def succeeded(self) -> bool:
        """True if the container has succeeded. The phase of the pod follows about a second later, and then its Job."""
        return "exitCode" in self.terminated and int(self.terminated["exitCode"]) == 0

    @property
    def committed(self) -> CommitMessage | None:
        """The report of the commit, if this is the pod of the ranks step that completed the checkpoint."""
        if not self.succeeded:
            return None
        try:
            return self.result(RanksMessage).committed
        except UnreadableMessageError:
            return None

    def failure(self) -> FailureMessage:
        """Return the failure of the pod, from its termination message (of any version) if there is one."""
        ended = self.terminated
        text = str(ended.get("message") or "")
        code = int(ended.get("exitCode") or 0)
        try:
            return msgspec.json.decode(text, type=FailureMessage)
        except _UNREADABLE:
            pass
        lines = [line for line in text.splitlines() if line.strip()]
        reason = str(ended.get("reason") or self.status.get("reason") or "Error")
        if reason == _OUT_OF_MEMORY:  # the last line of the log does not explain it
            return FailureMessage(reason, self._memory_exceeded(), code)
        said = _logged(lines[-1]) if lines else str(self.status.get("message") or f"the container exited with code {code}")
        return FailureMessage(reason, said[:1000], code)

    def _memory_exceeded(self) -> str:
        """Return the message for a container that the kernel has killed, with the field that prevents it."""
        containers = (self.raw.get("spec") or {}).get("containers") or ()
        resources: Object = next((c.get("resources") or {} for c in containers if c.get("name") == CONTAINER), {})
        limit = (resources.get("limits") or {}).get("memory")
        if limit is None:
            why, kind = "the node ran out of memory, and the container has no limit", "requests"
        else:
            why, kind = f"the container needed more memory than its limit of {limit}", "limits"
        return f"{why}; create a transform with a higher spec.execution.podTemplate.resources.{kind}.memory"


class _LogLine(msgspec.Struct):
    message: str


def _logged(line: str) -> str:
    """Return the message of a log line, whatever its format."""
    try:
        return msgspec.json.decode(line, type=_LogLine).message
    except _UNREADABLE:
        return line


@dataclass(frozen=True)
class Event:
    """A warning that Kubernetes has attached to a Job or a pod.

    Attributes:
        last_seen: time of the last occurrence.
    """

    object_uid: str
    reason: str
    message: str
    last_seen: datetime

    @classmethod
    def parse(cls, event: Object) -> Event:
        """Parse an object of the API server."""
        repeated = (event.get("series") or {}).get("lastObservedTime") or event.get("lastTimestamp")
        told = repeated or event.get("eventTime") or event["metadata"]["creationTimestamp"]
        return cls(
            str(event["involvedObject"].get("uid")),
            str(event.get("reason")),
            str(event.get("message")),
            datetime.fromisoformat(told),
        )
