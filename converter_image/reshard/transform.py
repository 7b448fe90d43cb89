"""The story, top to bottom: request -> job -> each rank's file -> commit."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from reshard.begin import begin, refuse_other_key, replaces_other
from reshard.commit import commit_job, finished, own_manifest, refuse_loss
from reshard.errors import LockedError, MissingInputError, RequestError
from reshard.job import some, summary_of
from reshard.lock import STALE_SECONDS, locked, writer_is_gone, writer_name, writing
from reshard.memory import budget, memory_bytes
from reshard.preflight import check_copy_mode, check_places, check_space
from reshard.prepare import prepare, resume
from reshard.progress import Cancellation, Silent
from reshard.rankfile import Guard, Written, requests_of, write_rank
from reshard.ranks import parse_ranks
from reshard.request import Options
from reshard.storage import open_store
from reshard.target import LOCK, JobDocument, TargetFolder

if TYPE_CHECKING:
    from collections.abc import Callable

    from reshard.access import Access
    from reshard.job import Job
    from reshard.manifest import Manifest
    from reshard.plan import Planner, Summary
    from reshard.progress import Progress
    from reshard.request import Request
    from reshard.target import JobState

# More ranks at a time hardly make one machine faster, and each takes memory.
MOST_WORKERS = 8


@dataclass(frozen=True, slots=True)
class Result:
    """What a transform has done.

    Attributes:
        source_ranks: ranks that the source has.
        target_ranks: ranks that the target has.
        parameters: names that were written.
        bytes_needed: of source tensors, for the ranks that this run wrote.
        bytes_read: of source tensors.
        bytes_written: of files, or of the index.
        seconds: from beginning to end.
        peak_rss_bytes: the most memory that the process had.
        skipped_ranks: ranks that were finished before.
        digest: identifies source, strategies and options.
        complete: whether the manifest is there, with all ranks that were asked for.
        part: the pipeline stage whose part it has made, with the layout Part. The last part completes the checkpoint.
        committed_ranks: those that the manifest lists, such as "0-5"; of a part that is not the last, those that it is made for.
        notes: what the user should know.
    """

    source_ranks: int
    target_ranks: int
    parameters: int
    bytes_needed: int
    bytes_read: int
    bytes_written: int
    seconds: float
    peak_rss_bytes: int
    skipped_ranks: tuple[int, ...]
    digest: str
    complete: bool
    committed_ranks: str
    notes: tuple[str, ...]
    part: int | None = None


@dataclass(frozen=True, slots=True)
class PlanResult:
    """What a transform would do.

    Attributes:
        summary: of all ranks that are asked for.
        memory_bytes: the most memory that the transform will take.
        workers: with how many ranks at a time.
        digest: identifies source, strategies and options.
        format: of the target's files.
        finished_ranks: those that are finished already.
        complete: whether nothing is left to do.
        notes: what the user should know.
        planner: for what the summary does not say: pictures, the plan of a rank.
        rank_requests: to object stores, for the content of one rank, the first that is asked for.
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


def default_workers() -> int:
    """As many ranks at a time as this process may use processors, within reason."""
    return max(1, min(len(os.sched_getaffinity(0)), MOST_WORKERS))


def transform_checkpoint(
    request: Request,
    *,
    workers: int | None = None,
    commit: bool = True,
    owner: str | None = None,
    progress: Progress | None = None,
    cancellation: Cancellation | None = None,
) -> Result:
    """Carry out a transform on this machine.

    Args:
        request: what to do.
        workers: how many ranks at a time.
        commit: whether to complete the checkpoint. Without, the ranks that the request names are written for others to
            complete, beside processes that write other ranks of the same job.
        owner: processes of one owner share the target's lock.
        progress: is told how far it is.
        cancellation: lets it be called off.

    Raises:
        ReshardError: of the kind that fits. Finished ranks are kept for the next try.
    """
    started = time.monotonic()
    workers, progress = workers or default_workers(), progress or Silent()
    check_places(request)
    target = TargetFolder(open_store(request.target, request.access.target), request.options.file_mode)
    check_copy_mode(request, target.store)
    begun = None if commit else resume(request, target)
    job = begun[0] if begun else prepare(request, progress, workers=workers)
    for note in job.notes:
        progress.note(note)
    sizes = job.file_sizes(job.scope)  # what no file can hold is refused now
    state = target.job(job.digest)
    thorough = commit and request.options.overwrite == "Replace"
    refuse_other_key(job, target, state)
    done = finished(job, target, state, thorough=thorough)
    left = tuple(rank for rank in job.scope if rank not in done)
    written: list[Written] = []
    committed: Manifest | None = None
    if left or not _covers(own_manifest(target, job), job):
        if not target.commit_is_interrupted():
            _refuse_loss(job, target, state, commit=commit)  # a refusal leaves no trace
        shared = owner or (None if commit else f"job-{job.digest}")
        with writing(target, job, owner=shared) as check_lock:
            document = begin(job, target, state)
            refuse_other_key(job, target, state)
            if commit and document.replaces:  # once more, now that nobody else writes
                refuse_loss(target, state, job.scope, job.ranks, job.shape)
            if document.in_place and own_manifest(target, job) is None:
                state.retire_old_manifest()
            done = finished(job, target, state, thorough=thorough)  # once more, now that nobody else writes
            left = tuple(rank for rank in job.scope if rank not in done)
            nbytes = sum(sizes[rank] for rank in left)
            check_space(target.store, nbytes)
            state.sweep(set(left), lambda writer, path: _is_left_over(target, writer, path))
            # Nobody else writes here, unless it is of the same owner or another part.
            silent = STALE_SECONDS if shared or job.part is not None else 0.0
            target.drop_unfinished(silent, map(job.path, job.scope))
            progress.begin("Resharding", nbytes, "bytes")
            guard = Guard(lambda: _check_ours(state, check_lock), cancellation or Cancellation(), writer_name())
            written = _write_ranks(job, state, left, document, workers, progress, guard)
            if commit:
                check_lock()
                committed = commit_job(target, state, document, _committed(job, target, state))
    elif commit and (manifest := target.manifest()) is not None and target.has_remains(manifest.jobs):
        with contextlib.suppress(LockedError), locked(target.store, LOCK, owner=None, mode=request.options.file_mode):
            target.forget_jobs()
    manifest = own_manifest(target, job)
    parts_notes = _notes(job, manifest)
    for note in parts_notes:
        progress.note(note)
    index = committed.index if committed is not None else None
    committed = manifest or committed
    return Result(
        source_ranks=job.model.source_ranks,
        target_ranks=job.model.target_ranks,
        parameters=len({p.name for p in job.model.parameters}),
        bytes_needed=sum(w.bytes_needed for w in written),
        bytes_read=sum(w.record.bytes_read for w in written),
        bytes_written=sum(w.record.size for w in written) + (index.size if index is not None else 0),
        seconds=time.monotonic() - started,
        peak_rss_bytes=peak_rss_bytes(),
        skipped_ranks=tuple(rank for rank in job.scope if rank not in left),
        digest=job.digest,
        complete=_covers(manifest, job),
        committed_ranks=committed.ranks if committed is not None else "",
        notes=job.notes + parts_notes,
        part=job.part,
    )


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
    done = finished(job, target, state)
    summary = summary_of(job)
    check_space(target.store, sum(nbytes for rank, nbytes in sizes.items() if rank not in done))
    target.store.check_writable()
    complete = len(done) == len(job.scope) and _covers(own_manifest(target, job), job)
    _refuse_loss(job, target, state, commit=True)
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


def commit_checkpoint(
    target_url: str,
    *,
    ranks: str | None = None,
    finished: bool = False,
    alone: bool = False,
    digest: str | None = None,
    owner: str | None = None,
    access: Access | None = None,
) -> Manifest:
    """Complete the checkpoint whose ranks were written without commit, or the parts of one.

    Args:
        target_url: the target.
        ranks: the target ranks that make it complete, such as "0,2-5"; None: all.
        finished: or those that are finished.
        alone: refuse while others still write ranks of it, instead of sharing the lock with them.
        digest: of the job that is meant; None: the only one that was begun here, or all parts of one checkpoint.
        owner: as it was given to those who wrote the ranks.
        access: how the target is reached, if it is in an object store.

    Returns:
        The manifest of the checkpoint; as long as parts of it are missing, that of a part: see `reshard.parts.is_whole`.

    Raises:
        LockedError: others still write here.
        MissingInputError: a rank is not finished, or nothing was begun here.
        RequestError: several transforms were begun here.
    """
    target = TargetFolder(open_store(target_url, access), Options().file_mode)
    begun = [job for job in target.jobs() if digest in {None, job.digest}]
    manifest = target.manifest()
    if not begun and manifest is not None and (digest is None or digest in manifest.jobs):
        return manifest
    if not begun:
        raise MissingInputError(
            "NothingToCommit", "no transform was begun here", where=target_url, fix="run reshard transform first"
        )
    if len({job.whole or job.digest for job in begun}) > 1:
        raise RequestError(
            "AmbiguousJobs",
            f"{len(begun)} transforms were begun here: {', '.join(job.digest[:12] for job in begun)}",
            where=target_url,
            fix="run reshard transform for the one that is wanted, with --overwrite",
        )
    committed = None
    for job in begun:
        target = replace(target, mode=job.mode)
        with writing(target, job, owner=None if alone else owner or f"job-{job.digest}"):
            state = target.job(job.digest)
            if committed is not None and state.read() is None:  # the part before it was the last to be finished
                break
            wanted = None if ranks is None else parse_ranks(ranks, state.draft().target_ranks)
            if finished:
                known = own_manifest(target, job)
                before = known.files if known is not None else ()
                wanted = tuple(sorted({*state.records(None), *(record.rank for record in before)}))
            committed = commit_job(target, state, job, wanted)
    assert committed is not None  # noqa: S101 - there is at least one
    return committed


def peak_rss_bytes() -> int:
    """The most memory that this process has had so far."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    # Elsewhere than on Linux. It may count what the process was before it became this program.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _check_ours(state: JobState, check_lock: Callable[[], None]) -> None:
    """Make sure that nobody has taken the target over, nor has done so and finished.

    Raises:
        LockedError: somebody has.
    """
    check_lock()
    if state.read() is None:
        raise LockedError(
            "LockLost", "another run has ended this transform", where=state.target.store.url, fix="run it again, if it is wanted"
        )


def _refuse_loss(job: Job, target: TargetFolder, state: JobState, *, commit: bool) -> None:
    """Refuse to replace what the user has not asked to replace, or by less than it is."""
    if replaces_other(job, target, state) and commit:
        refuse_loss(target, state, job.scope, job.ranks, job.shape)


def _is_left_over(target: TargetFolder, writer: str, path: str) -> bool:
    """Whether a temporary is of a process that is gone; this one sweeps before it writes."""
    return writer == writer_name() or writer_is_gone(target.store, writer, path)


def _covers(manifest: Manifest | None, job: Job) -> bool:
    """Whether all ranks are there that are asked for."""
    return manifest is not None and set(job.scope) <= _ranks_in(manifest, job)


def _notes(job: Job, manifest: Manifest | None) -> tuple[str, ...]:
    """What only shows once all parts are there."""
    names = sorted(set(manifest.diverging) - job.model.diverging) if manifest is not None and job.part is not None else ()
    if not names:
        return ()
    return (f"copies of {len(names)} parameters differ between parts, the first part's counts: {some(names)}",)


def _ranks_in(manifest: Manifest, job: Job) -> set[int]:
    """The ranks whose files of this job a manifest lists."""
    return {record.rank for record in manifest.files if record.part == job.part}


def _committed(job: Job, target: TargetFolder, state: JobState) -> tuple[int, ...]:
    """The ranks that a commit covers: those that were asked for, and those that are written already."""
    manifest = own_manifest(target, job)
    before = _ranks_in(manifest, job) if manifest is not None else set()
    return tuple(sorted({*job.scope, *before, *state.records(None)}))


def _write_ranks(
    job: Job,
    state: JobState,
    ranks: tuple[int, ...],
    document: JobDocument,
    workers: int,
    progress: Progress,
    guard: Guard,
) -> list[Written]:
    """Write these ranks, some at a time. The first failure ends all; finished ranks are kept."""
    share = budget(min(workers, max(1, len(ranks))))
    with ThreadPoolExecutor(workers, thread_name_prefix="reshard-rank") as pool:
        futures = [
            pool.submit(write_rank, job, state, rank, staged=document.staged, budget=share, progress=progress, guard=guard)
            for rank in ranks
        ]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            return [future.result() for future in (futures if len(done) == len(futures) else done)]
        except BaseException:
            guard.cancellation.cancel()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
