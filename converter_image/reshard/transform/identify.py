"""Is a job one that the target knows, although the source's files were copied anew since?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reshard.engine.rankfile import compare
from reshard.errors import BugError
from reshard.parallel import parallel
from reshard.target.standing import JobDocument
from reshard.transform.commit import recorded

if TYPE_CHECKING:
    from reshard.checkpoint.manifest import FileRecord
    from reshard.engine.job import Job
    from reshard.progress import Cancellation
    from reshard.target.folder import TargetFolder
    from reshard.target.standing import Standing


def identify(job: Job, target: TargetFolder, standing: Standing, cancellation: Cancellation, *, workers: int) -> Job:
    """Return the job as the target knows it, or one with an identity of its own if its source is another after all.

    The identity of a source is sampled content. If its files have other versions than when the target's files were written, these
    are compared with the source again, some blocks of every parameter.
    """
    other = job.of_these_versions()
    if standing.begun(other.digest) is not None or standing.own(other) is not None:
        return other
    if standing.versions_of(job) in (None, job.versions):
        return job
    return job if _hold_the_same(job, target, standing, cancellation, workers) else other


def _hold_the_same(job: Job, target: TargetFolder, standing: Standing, cancellation: Cancellation, workers: int) -> bool:
    """Whether all files of a job that are finished still hold what its source does."""
    document = standing.begun(job.digest) or JobDocument(job.digest, job.key, staged=False, part=job.part, whole=job.whole)
    records = recorded(target, document, standing, None, cancellation)
    there = target.job(job.digest).locate(records.values(), staged=document.staged, check=cancellation.check)

    def holds_the_same(record: FileRecord) -> bool:
        plan, path = job.planner.plan(record.rank), there[record.path]
        try:
            compare(job, plan, target.store, path, "Sample", cancellation)
        except BugError:
            return False
        return True

    return all(parallel(holds_the_same, records.values(), at_once=workers, check=cancellation.check))
