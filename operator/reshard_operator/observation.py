"""The observed state of one transform and its objects, as frozen data. This module parses the input of pods and users."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from reshard.errors import ReshardError
from reshard.spec.messages import (
    CommitMessage,
    FailureMessage,
    RanksMessage,
    TransformMessage,
    UnreadableMessageError,
    decode_message,
)
from reshard.spec.ranks import format_ranks, parse_ranks, ranks_to_write
from reshard.spec.resource import TransformSpec, parse_spec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reshard.spec.messages import M, PlanMessage

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
# The converter's container; webhooks may add others to the pod.
CONTAINER = "reshard"
STEPS = ("plan", "ranks", "commit", "transform")
# Number of runs of a step whose result cannot be read.
MOST_RUNS = 3
_LONGEST_BASE = 34
# Pods at the end of a Job. While there are more, all of them are not listed.
_FEW = 50

Object = dict[str, Any]


@dataclass(frozen=True)
class Transform:
    """A CheckpointTransform.

    Attributes:
        spec: parsed spec, or None if it is invalid. `problem` then contains the reason.
        attempt: number of the attempt.
    """

    name: str
    namespace: str
    uid: str
    generation: int
    resource_version: str
    created: str
    deleting: bool
    queue: str
    spec: TransformSpec | None
    problem: str
    attempt: int
    status: Object

    @property
    def status_of_attempt(self) -> Object:
        """The last status of this attempt, or an empty dict."""
        return self.status if self.status.get("attempt", self.attempt) == self.attempt else {}

    @property
    def ended(self) -> bool:
        """True if this attempt has succeeded or failed."""
        return "completionTime" in self.status_of_attempt

    def knows(self, step: str) -> bool:
        """Return whether the status of this attempt already contains the result of a step."""
        mark = {"plan": "plan", "commit": "manifest", "transform": "plan"}[step]
        return mark in self.status_of_attempt

    @classmethod
    def parse(cls, resource: Object) -> Transform:
        """Parse an object of the API server."""
        metadata = resource["metadata"]
        spec, problem = None, ""
        try:
            spec = parse_spec(resource.get("spec"), "the resource")
        except ReshardError as error:
            problem = str(error)
        return cls(
            name=metadata["name"],
            namespace=metadata["namespace"],
            uid=metadata["uid"],
            generation=metadata.get("generation", 1),
            resource_version=metadata["resourceVersion"],
            created=metadata.get("creationTimestamp", ""),
            deleting="deletionTimestamp" in metadata,
            queue=metadata.get("labels", {}).get(QUEUE_LABEL, ""),
            spec=spec,
            problem=problem,
            attempt=_attempt(resource),
            status=resource.get("status") or {},
        )


def _attempt(resource: Object) -> int:
    """Return the number of the attempt, even if the rest of the spec is invalid."""
    try:
        return int(resource["spec"]["execution"]["attempt"])
    except (KeyError, TypeError, ValueError):
        return 1


@dataclass(frozen=True)
class Kept:
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


class Job(Kept):
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
        """True if all expected pods run, so that the watch of the Job reports every change."""
        active = int(self.status.get("active") or 0)
        return active > 0 and int(self.status.get("ready") or 0) >= active

    @property
    def ends(self) -> bool:
        """True if a few indexes have not succeeded yet, and none of their pods is ready any more: their containers have ended."""
        active = int(self.status.get("active") or 0)
        done = len(self.indexes("completedIndexes"))
        return 0 < active <= _FEW and not self.status.get("ready") and done + active >= int(self.spec["completions"])

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


class Pod(Kept):
    """A pod of a transform. Its owner is a Job."""

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
    def alive(self) -> bool:
        """True if a process of the pod may still write."""
        return self.phase not in {"Succeeded", "Failed"}

    @property
    def index(self) -> int:
        """Completion index."""
        return int(self.annotation("batch.kubernetes.io/job-completion-index") or 0)

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
        """True if the pod is in phase Running, but its node does not report its status.

        The pods have no readiness probe, so the Ready condition of a running pod is false only in this case.
        """
        runs = any("running" in (s.get("state") or {}) for s in self._containers())
        return self.phase == "Running" and runs and self.condition("Ready").get("status") == "False"

    @property
    def waiting(self) -> Object:
        """The waiting state of the container, or an empty dict."""
        return next((s["state"]["waiting"] for s in self._containers() if "waiting" in (s.get("state") or {})), {})

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
        except msgspec.MsgspecError:
            pass
        lines = [line for line in text.splitlines() if line.strip()]
        reason = str(ended.get("reason") or self.status.get("reason") or "Error")
        said = _logged(lines[-1]) if lines else str(self.status.get("message") or f"the container exited with code {code}")
        return FailureMessage(reason, said[:1000], code)


class _LogLine(msgspec.Struct):
    message: str


def _logged(line: str) -> str:
    """Return the message of a log line, whatever its format."""
    try:
        return msgspec.json.decode(line, type=_LogLine).message
    except msgspec.MsgspecError:
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


@dataclass(frozen=True)
class Seen:
    """The input of a decision.

    Attributes:
        jobs: Jobs of this attempt, by step. For a step with several runs, the Job of the last run.
        runs: run numbers of these Jobs.
        old_jobs: Jobs of earlier attempts and runs.
        pods: pods of this transform. For the ranks step, only some pods that wait, are not ready, have failed or report a commit.
        rivals: pods and Jobs of other transforms that occupy the same target, as text.
        events: Warning Events of unfinished Jobs and waiting pods.
        now: time of the observation, in whole seconds.
    """

    transform: Transform
    now: datetime
    jobs: dict[str, Job] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)
    old_jobs: tuple[Job, ...] = ()
    pods: tuple[Pod, ...] = ()
    rivals: tuple[str, ...] = ()
    events: tuple[Event, ...] = ()

    @classmethod
    def of(cls, transform: Transform, now: datetime, own: Iterable[Job]) -> Seen:
        """Return the observation with the Jobs of a transform. The names of Jobs determine step, attempt and run."""
        found = {job.name: job for job in own}
        runs: dict[str, int] = {}
        current: dict[str, Job] = {}
        for step in STEPS:
            for run in range(MOST_RUNS, 0, -1):
                job = found.get(job_name(transform.name, transform.uid, step, transform.attempt, run))
                if job is not None:
                    runs[step], current[step] = run, found.pop(job.name)
                    break
        return cls(transform, now, current, runs, tuple(found.values()))

    def pods_of(self, job: Job) -> tuple[Pod, ...]:
        """Return the pods of a Job, newest first."""
        return tuple(sorted((p for p in self.pods if p.owner == job.uid), key=lambda p: p.created, reverse=True))

    def newest_warning(self, uid: str, reasons: set[str]) -> Event | None:
        """Return the newest Warning Event of an object, with one of these reasons. Older Events may be outdated."""
        found = (event for event in self.events if event.object_uid == uid and event.reason in reasons)
        return max(found, key=lambda event: event.last_seen, default=None)

    def read_result(self, step: str, kind: type[M]) -> M | None:
        """Return the result of a step as soon as its container has succeeded, or None before that, or if the pod was deleted.

        Raises:
            UnreadableMessageError: the termination message cannot be read.
        """
        job = self.jobs.get(step)
        if job is None:
            return None
        succeeded = next((pod for pod in self.pods_of(job) if pod.succeeded), None)
        return succeeded.result(kind) if succeeded is not None else None

    def result(self, step: str, kind: type[M]) -> M | None:
        """Return the result of a step, or None if there is none or it cannot be read."""
        try:
            return self.read_result(step, kind)
        except UnreadableMessageError:
            return None

    def committed(self) -> CommitMessage | None:
        """Return the report of the commit: of its step, of a pod of the ranks step, or of the only pod."""
        if (found := self.result("commit", CommitMessage)) is not None:
            return found
        if (done := self.result("transform", TransformMessage)) is not None:
            return done.committed
        job = self.jobs.get("ranks")
        pods = self.pods_of(job) if job is not None else ()  # a Job that failed later does not make the checkpoint incomplete
        return next((found for pod in pods if (found := pod.committed) is not None), None)


def job_name(name: str, uid: str, step: str, attempt: int, run: int = 1) -> str:
    """Return the deterministic name of a step's Job. It is short enough for the names of the pods."""
    base = name.replace(".", "-")[:_LONGEST_BASE].rstrip("-")
    return f"{base}-{uid[:8]}-{step}" + (f"-{attempt}" if attempt > 1 else "") + (f"-r{run}" if run > 1 else "")


def ranks_of(spec: TransformSpec, planned: PlanMessage) -> tuple[int, ...]:
    """Return the target ranks that a transform writes."""
    return ranks_to_write(spec.target.only_ranks, planned.target_ranks) if spec.target.kind.writes_files else ()


def as_text(ranks: tuple[int, ...], most: int = 1000) -> str:
    """Format ranks for a status, shortened to a maximum length."""
    text = format_ranks(ranks)
    return text if len(text) <= most else text[: text.rindex(",", 0, most)] + ",..."
