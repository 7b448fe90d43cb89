"""What the operator sees of one transform at one moment, as frozen data. Whatever pods and users wrote is parsed here."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from reshard.errors import ReshardError
from reshard.spec.messages import FailureMessage, UnreadableMessageError, decode_message
from reshard.spec.ranks import format_ranks, parse_ranks, ranks_to_write
from reshard.spec.resource import TransformSpec, parse_spec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reshard.spec.messages import M, PlanMessage

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
# Ours, whatever else a webhook has put into the pod.
CONTAINER = "reshard"
STEPS = ("plan", "ranks", "commit")
# How often a step runs whose result cannot be read.
MOST_RUNS = 3
_LONGEST_BASE = 34

Object = dict[str, Any]


@dataclass(frozen=True)
class Transform:
    """A CheckpointTransform.

    Attributes:
        spec: None when it cannot be read; `problem` then says why.
        attempt: which try this is.
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
        """The last status, if it is of this attempt; else empty."""
        return self.status if self.status.get("attempt", self.attempt) == self.attempt else {}

    def knows(self, step: str) -> bool:
        """Whether the status of this attempt tells already what the pod of a step has left."""
        mark = {"plan": "plan", "commit": "manifest"}[step]
        return mark in self.status_of_attempt

    @classmethod
    def parse(cls, resource: Object) -> Transform:
        """Of what the API server sent."""
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
    """Also of a spec that cannot be read."""
    try:
        return int(resource["spec"]["execution"]["attempt"])
    except (KeyError, TypeError, ValueError):
        return 1


@dataclass(frozen=True)
class Kept:
    """An object that Kubernetes keeps, as the API server sent it."""

    raw: Object

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.raw["metadata"]["name"])

    @property
    def uid(self) -> str:
        """Its UID."""
        return str(self.raw["metadata"]["uid"])

    @property
    def status(self) -> Object:
        """Its status."""
        return self.raw.get("status") or {}

    @property
    def owner(self) -> str:
        """The UID of the object that controls it."""
        return next((str(o["uid"]) for o in self.raw["metadata"].get("ownerReferences", ()) if o.get("controller")), "")

    def label(self, name: str) -> str:
        """A label; empty when it has none of that name."""
        return str((self.raw["metadata"].get("labels") or {}).get(name, ""))

    def annotation(self, name: str) -> str:
        """An annotation; empty when it has none of that name."""
        return str((self.raw["metadata"].get("annotations") or {}).get(name, ""))


class Job(Kept):
    """A Job of a transform."""

    @property
    def spec(self) -> Object:
        """Its spec."""
        return dict(self.raw["spec"])

    @property
    def deleting(self) -> bool:
        """Whether it is on its way out."""
        return "deletionTimestamp" in self.raw["metadata"]

    def condition(self, kind: str) -> Object | None:
        """A condition that is true."""
        return next((c for c in self.status.get("conditions") or () if c["type"] == kind and c["status"] == "True"), None)

    @property
    def complete(self) -> bool:
        """Whether it has ended well."""
        return self.condition("Complete") is not None

    @property
    def failed(self) -> Object | None:
        """The condition that says that it has ended otherwise."""
        return self.condition("Failed")

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self.complete or self.failed is not None

    @property
    def suspended(self) -> bool:
        """Whether it is suspended, and all its pods are gone."""
        return self.condition("Suspended") is not None and not self.status.get("active") and not self.status.get("terminating")

    @property
    def runs(self) -> bool:
        """Whether all pods that should run do: then its watch tells all that happens."""
        active = int(self.status.get("active") or 0)
        return active > 0 and int(self.status.get("ready") or 0) >= active

    def indexes(self, field_name: str) -> tuple[int, ...]:
        """Completion indexes that its status lists, such as "0,3-5"."""
        text = self.status.get(field_name) or ""
        return parse_ranks(text) if text else ()


class Pod(Kept):
    """A pod of a transform; its owner is its Job."""

    @property
    def created(self) -> str:
        """When it was created."""
        return str(self.raw["metadata"].get("creationTimestamp", ""))

    @property
    def phase(self) -> str:
        """Pending, Running, Succeeded, Failed or Unknown."""
        return str(self.status.get("phase", "Pending"))

    def waits_since(self, moment: datetime) -> bool:
        """Whether it has a node, was created before, and has not started yet."""
        has_node = self.condition("PodScheduled").get("status") == "True"
        return self.phase == "Pending" and has_node and datetime.fromisoformat(self.created) <= moment

    @property
    def alive(self) -> bool:
        """Whether a process of it may still write."""
        return self.phase not in {"Succeeded", "Failed"}

    @property
    def index(self) -> int:
        """Its completion index."""
        return int(self.annotation("batch.kubernetes.io/job-completion-index") or 0)

    @property
    def node(self) -> str:
        """Where it was put; empty: nowhere yet."""
        return str((self.raw.get("spec") or {}).get("nodeName") or "")

    @property
    def entries(self) -> dict[str, str]:
        """Of its volumes those with entries of a Secret or a ConfigMap: which one, by the volume's name."""
        volumes = (self.raw.get("spec") or {}).get("volumes") or ()
        secrets = {v["name"]: f"Secret {v['secret']['secretName']}" for v in volumes if "secret" in v}
        return secrets | {v["name"]: f"ConfigMap {v['configMap']['name']}" for v in volumes if "configMap" in v}

    @property
    def lost(self) -> bool:
        """Whether it runs as far as is known, and its node has stopped telling: it has no readiness of its own to lose."""
        runs = any("running" in (s.get("state") or {}) for s in self._containers())
        return self.phase == "Running" and runs and self.condition("Ready").get("status") == "False"

    @property
    def waiting(self) -> Object:
        """Why its container does not start, if it does not."""
        return next((s["state"]["waiting"] for s in self._containers() if "waiting" in (s.get("state") or {})), {})

    @property
    def terminated(self) -> Object:
        """How its container ended, if it has."""
        return next((s["state"]["terminated"] for s in self._containers() if "terminated" in (s.get("state") or {})), {})

    def _containers(self) -> list[Object]:
        return [s for s in self.status.get("containerStatuses") or () if s.get("name") == CONTAINER]

    def condition(self, kind: str) -> Object:
        """A condition, whatever it says."""
        return next((c for c in self.status.get("conditions") or () if c["type"] == kind), {})

    def result(self, kind: type[M]) -> M:
        """Its termination message.

        Raises:
            UnreadableMessageError: it has none that can be read.
        """
        return decode_message(str(self.terminated.get("message") or ""), kind)

    def failure(self) -> FailureMessage:
        """Why it has failed, in its own words if it has left any, of whatever version: people read them."""
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
        told: when it was last repeated.
    """

    object_uid: str
    reason: str
    message: str
    told: datetime

    @classmethod
    def parse(cls, event: Object) -> Event:
        """Of what the API server sent."""
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
    """Everything that a decision rests on.

    Attributes:
        jobs: this transform's, of this attempt, by step; of a step that ran several times the last one.
        runs: which run of its step each of them is.
        old_jobs: this transform's, of earlier attempts and runs.
        pods: this transform's: all of plan and commit, of the ranks' some of those that wait, are not ready, or have failed.
        rivals: pods of other transforms with the same target that may still write it, and Jobs of older ones.
        events: warnings about unfinished Jobs and waiting pods.
        now: the operator's clock, in whole seconds.
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
        """With a transform's own Jobs, told apart by their names."""
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
        """The pods of one Job, the newest first."""
        return tuple(sorted((p for p in self.pods if p.owner == job.uid), key=lambda p: p.created, reverse=True))

    def newest_warning(self, uid: str, reasons: set[str]) -> Event | None:
        """The last one with one of these reasons about an object: what an older one names may be mended."""
        found = (event for event in self.events if event.object_uid == uid and event.reason in reasons)
        return max(found, key=lambda event: event.told, default=None)

    def read_result(self, step: str, kind: type[M]) -> M | None:
        """What the pod of a completed step has reported; None if the step is not complete, or its pod is gone.

        Raises:
            UnreadableMessageError: its message cannot be read.
        """
        job = self.jobs.get(step)
        if job is None or not job.complete:
            return None
        succeeded = next((pod for pod in self.pods_of(job) if pod.phase == "Succeeded"), None)
        return succeeded.result(kind) if succeeded is not None else None

    def result(self, step: str, kind: type[M]) -> M | None:
        """The same, without a result if it cannot be read."""
        try:
            return self.read_result(step, kind)
        except UnreadableMessageError:
            return None


def job_name(name: str, uid: str, step: str, attempt: int, run: int = 1) -> str:
    """The name of a step's Job: the same whoever computes it, and short enough for the names of its pods."""
    base = name.replace(".", "-")[:_LONGEST_BASE].rstrip("-")
    return f"{base}-{uid[:8]}-{step}" + (f"-{attempt}" if attempt > 1 else "") + (f"-r{run}" if run > 1 else "")


def ranks_of(spec: TransformSpec, planned: PlanMessage) -> tuple[int, ...]:
    """The target ranks that a transform writes."""
    return () if spec.target.output == "Index" else ranks_to_write(spec.target.ranks, planned.target_ranks)


def as_text(ranks: tuple[int, ...], most: int = 1000) -> str:
    """Ranks for a status, which must stay small."""
    text = format_ranks(ranks)
    return text if len(text) <= most else text[: text.rindex(",", 0, most)] + ",..."
