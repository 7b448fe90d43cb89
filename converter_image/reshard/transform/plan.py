"""What a transform would do, said before the first byte is moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reshard.engine.job import summary_of
from reshard.engine.memory import budget, default_workers, memory_bytes
from reshard.engine.rankfile import requests_of
from reshard.progress import Silent
from reshard.storage import open_store
from reshard.target.folder import TargetFolder
from reshard.target.lock import writing
from reshard.transform.begin import begin, refuse_other_key, refuse_replacement
from reshard.transform.commit import covers, finished, own_manifest
from reshard.transform.preflight import check_copy_mode, check_places, check_space
from reshard.transform.prepare import prepare

if TYPE_CHECKING:
    from reshard.plan import Planner, Summary
    from reshard.progress import Progress
    from reshard.spec.request import Request


@dataclass(frozen=True, slots=True)
class PlanResult:
    """What a transform would do.

    Attributes:
        summary: what all ranks that are asked for read.
        memory_bytes: the most memory that the transform will take.
        workers: the number of ranks at a time that this holds for.
        digest: identifies source, strategies and options.
        format: the format of the target's files.
        finished_ranks: those that are finished already.
        complete: whether nothing is left to do.
        notes: what the user should know.
        planner: what tells all that the summary does not: pictures, the plan of a rank.
        rank_requests: requests to object stores, for the content of one rank, the first that is asked for.
    """

    summary: Summary
    memory_bytes: int
    workers: int
    digest: str
    format: str
    finished_ranks: tuple[int, ...]
    complete: bool
    notes: tuple[str, ...]
    planner: Planner
    rank_requests: int = 0


def plan_transform(
    request: Request,
    *,
    workers: int | None = None,
    write: bool = False,
    owner: str | None = None,
    progress: Progress | None = None,
) -> PlanResult:
    """Say what a transform would do, after all checks that can be made before the first byte is moved.

    Args:
        request: what to do.
        workers: how many ranks at a time.
        write: leave the plan at the target, for processes that then write the ranks without reading all headers again.
        owner: processes of one owner share the target's lock.
        progress: is told how far it is.

    Raises:
        ReshardError: what would go wrong.
    """
    workers, progress = workers or default_workers(), progress or Silent()
    check_places(request)
    target = TargetFolder(open_store(request.target, request.access.target), request.options.file_mode)
    check_copy_mode(request, target.store)
    job = prepare(request, progress, workers=workers)
    for note in job.notes:
        progress.note(note)
    sizes = job.file_sizes(job.scope)
    state = target.job(job.digest)
    refuse_other_key(job, target, state)
    done = finished(job, target, state)
    summary = summary_of(job)
    check_space(target.store, sum(nbytes for rank, nbytes in sizes.items() if rank not in done))
    target.store.check_writable()
    complete = len(done) == len(job.scope) and covers(own_manifest(target, job), job)
    refuse_replacement(job, target, state, commit=True)
    if write and not complete:
        with writing(target, job, owner=owner or f"job-{job.digest}"):
            begin(job, target, state)
    memory = memory_bytes(
        job.model,
        workers,
        job.source,
        target.store,
        sizes.values(),
        decrypts=request.decryption is not None,
        encrypts=request.encryption is not None,
    )
    rank_requests = requests_of(job, target.store, job.scope[0], budget(min(workers, len(job.scope)))) if job.scope else 0
    finished_ranks = tuple(sorted(done))
    return PlanResult(
        summary, memory, workers, job.digest, job.format, finished_ranks, complete, job.notes, job.planner, rank_requests
    )
