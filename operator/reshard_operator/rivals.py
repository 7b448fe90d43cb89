"""Jobs of other transforms that write to the same target. The functions perform no I/O."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from reshard_operator.labels import (
    ANNOTATION_CREATED,
    ANNOTATION_TRANSFORM,
    LABEL_QUEUE,
    LABEL_STAGE,
    LABEL_STEP,
    LABEL_TARGET,
    LABEL_TRANSFORM,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reshard.spec.resource import TransformSpec
    from reshard_operator.objects import Job
    from reshard_operator.observation import Observation, Transform

_NO_STAGE = "all"
# The time between the end of a plan and the creation of the Job of the ranks.
_BEGINS_WITHIN = timedelta(seconds=30)


def target_label(spec: TransformSpec) -> str:
    """Return a key that is equal for transforms with the same target."""
    claim, bucket = spec.target.storage.persistent_volume_claim, spec.target.storage.s3
    place = f"{claim.claim_name}\0{claim.path}" if claim is not None else ""
    if bucket is not None:
        place = f"{_server(bucket.endpoint)}\0{bucket.bucket}\0{bucket.prefix}"
    return hashlib.sha256(place.encode()).hexdigest()[:32]


def stage_label(spec: TransformSpec) -> str:
    """Return a label that identifies the stage, for transforms that write the stages of one checkpoint."""
    if not spec.target.kind.one_stage:
        return _NO_STAGE
    return hashlib.sha256(msgspec.json.encode(spec.source, order="deterministic")).hexdigest()[:32]


def selector(spec: TransformSpec) -> str:
    """Return the label selector of conflicting Jobs and pods. Stages of one checkpoint do not conflict with each other."""
    same = f"{LABEL_TARGET}={target_label(spec)}"
    return f"{same},{LABEL_STAGE} in ({_NO_STAGE},{stage_label(spec)})" if spec.target.kind.one_stage else same


def conflicting_jobs(seen: Observation, others: Iterable[Job]) -> tuple[str, ...]:
    """Return descriptions of the Jobs of other transforms that occupy the target of a transform. A dry run occupies none."""
    if seen.transform.spec is None or seen.transform.spec.dry_run:
        return ()
    single = seen.jobs.get("transform")
    writes = single is not None and not single.ended
    return tuple(
        f"CheckpointTransform {job.annotation(ANNOTATION_TRANSFORM)} (Job {job.name})"
        for job in others
        if job.label(LABEL_TARGET) and holds_target(job, seen.transform, seen.now, writes=writes)
    )


def holds_target(job: Job, transform: Transform, now: datetime, *, writes: bool = False) -> bool:
    """Return whether a Job of another transform occupies the target, so that this transform must wait.

    A transform occupies the target from the creation of the Job that writes its ranks until it has ended, even while it is
    suspended. The Job then has a TTL. If two transforms start at the same time, the one that was created first starts, or, if
    this transform already has a Job that `writes`, continues. One that was just planned is about to create its next Job. A Job
    without an owner occupies the target only while it runs: if it is suspended, only a queue resumes it.
    """
    if not job.owner and job.suspended and not job.label(LABEL_QUEUE):
        return False
    underway, plans = bool(job.owner) and "ttlSecondsAfterFinished" not in job.spec, job.label(LABEL_STEP) == "plan"
    if not plans and underway and not writes:
        return True
    older = (job.annotation(ANNOTATION_CREATED), job.label(LABEL_TRANSFORM)) < (transform.created, transform.uid)
    ended = job.status.get("completionTime")
    begins = plans and underway and ended is not None and datetime.fromisoformat(ended) > now - _BEGINS_WITHIN
    return older and (not job.ended or begins)


def _server(endpoint: str | None) -> str:
    """Return the canonical name of a server for any form of its URL."""
    try:
        url = urlsplit(endpoint or "https://s3.amazonaws.com")
        usual = {"http": 80, "https": 443}.get(url.scheme)
        return f"{url.hostname}:{url.port or usual}{url.path.rstrip('/')}"
    except ValueError:  # a malformed IPv6 address, or a port above 65535 that an older CRD allows; pods refuse them
        return str(endpoint)
