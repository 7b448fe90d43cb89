"""The observed state of one transform and its objects, as frozen data. This module parses the resource of the user."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from reshard.errors import ReshardError
from reshard.spec.messages import CommitMessage, PlanMessage, TransformMessage, UnreadableMessageError
from reshard.spec.ranks import format_ranks, ranks_to_write
from reshard.spec.resource import TransformSpec, parse_spec
from reshard_operator.labels import LABEL_QUEUE

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from reshard.spec.messages import M
    from reshard_operator.objects import Event, Job, Object, Pod

STEPS = ("plan", "ranks", "commit", "transform")
# Number of runs of a step whose result cannot be read.
MOST_RUNS = 3
_LONGEST_BASE = 34


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

    @property
    def planned(self) -> PlanMessage | None:
        """The result of the plan in the status, or None if it is not there or incomplete."""
        try:
            return msgspec.convert(self.status_of_attempt.get("plan"), PlanMessage)
        except msgspec.ValidationError:
            return None

    def knows(self, step: str) -> bool:
        """Return whether the status of this attempt already contains the result of a step."""
        return "manifest" in self.status_of_attempt if step == "commit" else self.planned is not None

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
            queue=metadata.get("labels", {}).get(LABEL_QUEUE, ""),
            spec=spec,
            problem=problem,
            attempt=_attempt(resource),
            status=resource.get("status") or {},
        )


def is_settled(resource: Object) -> bool:
    """Return whether the status of a CheckpointTransform is final, and belongs to its current spec."""
    status, generation = resource.get("status") or {}, resource["metadata"].get("generation", 1)
    is_current = (status.get("attempt", 1), status.get("observedGeneration")) == (_attempt(resource), generation)
    return is_current and "completionTime" in status


def _attempt(resource: Object) -> int:
    """Return the number of the attempt, even if the rest of the spec is invalid."""
    try:
        return int(resource["spec"]["execution"]["attempt"])
    except (KeyError, TypeError, ValueError):
        return 1


@dataclass(frozen=True)
class Observation:
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
    def of(cls, transform: Transform, now: datetime, own: Iterable[Job]) -> Observation:
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
