"""Identify a job that the target knows although the source's files have other versions since, as after a copy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reshard.engine.rankfile import compare
from reshard.errors import BugError
from reshard.parallel import parallel
from reshard.target.standing import JobDocument
from reshard.transform.commit import recorded

if TYPE_CHECKING:
    from reshard.checkpoint.manifest import FileRecord, Verified
    from reshard.engine.job import Job
    from reshard.progress import Cancellation
    from reshard.target.folder import TargetFolder
    from reshard.target.standing import Standing


def identify(job: Job, target: TargetFolder, standing: Standing, cancellation: Cancellation, *, workers: int) -> Job:
    """Return the job as the target knows it; if its source has changed, return the job with another identity.

    The identity of a source is sampled content. If its files have other versions than when the target's files were written, these
    are compared with the source again: some blocks of every parameter, or everything with `verification: Full`.
    """
    other = job.of_these_versions()
    if standing.begun(other.digest) is not None or standing.own(other) is not None:
        return other
    if standing.versions_of(job) in (None, job.versions):
        return job
    return job if _hold_the_same(job, target, standing, cancellation, workers) else other


def _hold_the_same(job: Job, target: TargetFolder, standing: Standing, cancellation: Cancellation, workers: int) -> bool:
    """Whether all finished files of a job still hold the content of its source."""
    document = standing.begun(job.digest) or JobDocument(job.digest, job.key, staged=False, stage=job.stage, whole=job.whole)
    records = recorded(target, document, standing, None, cancellation)
    there = target.job(job.digest).locate(records.values(), staged=document.staged, check=cancellation.check)
    level: Verified = "Full" if job.request.options.verification == "Full" else "Sample"

    def holds_the_same(record: FileRecord) -> bool:
        plan, path = job.planner.plan(record.rank), there[record.path]
        try:
            compare(job, plan, target.store, path, level, cancellation)
        except BugError:
            return False
        return True

    return all(parallel(holds_the_same, records.values(), at_once=workers, check=cancellation.check))
