"""Execute a transform: request, task, file of each rank, commit."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from reshard.checkpoint.manifest import MANIFEST_NAME
from reshard.engine.memory import default_workers, peak_rss_bytes
from reshard.engine.rankfile import Run, content_of
from reshard.errors import AccessError, DataError, LockedError, MissingInputError, RequestError, listed
from reshard.formats.registry import document_names
from reshard.plan import bytes_needed
from reshard.progress import Cancellation, Silent
from reshard.source.described import files_there, unlisted
from reshard.source.listing import preview
from reshard.storage.cancellable import cancelled_by
from reshard.storage.traffic import metered
from reshard.target.documents import LOCK
from reshard.target.lock import STALE_SECONDS, live_writers, locked, writing
from reshard.target.parts import final_notes, is_whole
from reshard.target.process import this_process
from reshard.telemetry import durations, operation, phase
from reshard.transform.checks import bytes_to_write, check_space, open_target, with_output
from reshard.transform.commit import commit_task, covers, refuse_loss, written_ranks
from reshard.transform.documents import documents_of
from reshard.transform.identify import record_versions
from reshard.transform.inputs import Inputs
from reshard.transform.preflight import run_preflight, unfinished
from reshard.transform.ranks import write_ranks
from reshard.transform.start import start
from reshard.transform.unchanged import find_complete

if TYPE_CHECKING:
    from collections.abc import Callable

    from reshard.checkpoint.manifest import Manifest
    from reshard.engine.rankfile import Written
    from reshard.engine.task import Task
    from reshard.progress import Progress
    from reshard.spec.request import Request
    from reshard.storage.protocol import Store
    from reshard.storage.traffic import Meter
    from reshard.target.folder import TargetFolder
    from reshard.target.snapshot import TargetSnapshot, TaskRecord
    from reshard.target.task import TaskState
    from reshard.telemetry import Phase
    from reshard.transform.preflight import Preflight
    from reshard.transform.unchanged import Complete

_TRANSFORM_AGAIN = (
    "wait until training has finished writing, then retry without --no-commit; on a cluster, increase spec.execution.attempt"
)


@dataclass(frozen=True, slots=True)
class RankResult:
    """Throughput of one target rank.

    Attributes:
        rank: number of the target rank.
        bytes_needed: number of bytes of source tensors that it requires.
        bytes_fetched: number of bytes of the source that were fetched for its tensors.
        requests: number of requests that fetched them.
        bytes_written: number of bytes that were written to its file. 0: the file is a link to that of another rank.
        seconds: duration of writing and verifying the file.
    """

    rank: int
    bytes_needed: int
    bytes_fetched: int
    requests: int
    bytes_written: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a transform.

    Attributes:
        source_ranks: number of source ranks.
        target_ranks: number of target ranks.
        parameters: number of written parameters.
        bytes_needed: number of bytes of source tensors that the ranks written in this run require. What several of them require
            counts for each.
        bytes_distinct: number of bytes of source tensors that any of these ranks requires, each counted once.
        bytes_fetched: number of bytes of the source that were fetched for the tensors of these ranks.
        requests: number of requests that fetched them, see `reshard.storage.traffic.Traffic`.
        bytes_copied: number of bytes of the source that the object store copied to the target.
        other_bytes_fetched: number of bytes that were fetched for everything else: headers, strategies, samples, comparisons,
            verification, the state of the target, and ranks that failed.
        other_requests: number of requests that fetched them.
        bytes_written: number of bytes written to files. If no file was written: of the index files.
        seconds: duration in seconds.
        peak_rss_bytes: peak memory of the process.
        skipped_ranks: ranks that were already finished.
        digest: digest of source, strategies and options.
        complete: whether the manifest exists and lists all requested ranks.
        stage: pipeline stage that was written, with output Stage. The last stage completes the checkpoint.
        committed_ranks: ranks in the manifest, such as "0-5". For a stage that is not the last: the ranks that it is written for.
        notes: messages for the user.
        durations: seconds of each phase, see `reshard.telemetry.durations`.
        ranks: throughput of the ranks written in this run.
        source_unit: unit of `source_ranks`: "ranks" or "files".
    """

    source_ranks: int
    target_ranks: int
    parameters: int
    bytes_needed: int
    bytes_distinct: int
    bytes_fetched: int
    requests: int
    bytes_copied: int
    other_bytes_fetched: int
    other_requests: int
    bytes_written: int
    seconds: float
    peak_rss_bytes: int
    skipped_ranks: tuple[int, ...]
    digest: str
    complete: bool
    committed_ranks: str
    notes: tuple[str, ...]
    stage: int | None = None
    durations: dict[str, float] = field(default_factory=dict)
    ranks: tuple[RankResult, ...] = ()
    source_unit: str = "ranks"


def transform_checkpoint(
    request: Request,
    *,
    workers: int | None = None,
    commit: bool = True,
    owner: str | None = None,
    progress: Progress | None = None,
    cancellation: Cancellation | None = None,
) -> Result:
    """Execute a transform on this machine.

    Args:
        request: request of the transform.
        workers: number of concurrent ranks.
        commit: whether to complete the checkpoint. If it is false, other processes can write other ranks of the task in parallel,
            and one process completes the checkpoint afterwards.
        owner: owner of the target's lock, shared by processes with the same owner.
        progress: receiver of the progress.
        cancellation: object that cancels the work from another thread.

    Raises:
        ReshardError: the transform failed, see docs/errors.md for all reasons. Finished ranks are kept for the next attempt.
    """
    request, workers, progress = with_output(request), workers or default_workers(), progress or Silent()
    thorough = commit and request.options.overwrite == "Replace"
    cancellation = cancellation or Cancellation()

    def prepared(inputs: Inputs, target: TargetFolder, *, resumable: bool) -> Preflight:
        with phase("plan"):
            return run_preflight(
                inputs,
                target,
                progress,
                workers=workers,
                cancellation=cancellation,
                commit=commit,
                resumable=resumable,
                thorough=thorough,
            )

    def carry_out(preflight: Preflight) -> tuple[list[Written], Manifest | None]:
        if not preflight.complete:
            return _carry_out(preflight, workers, progress, cancellation, commit=commit, owner=owner, thorough=thorough)
        if commit:
            record_versions(preflight.task, preflight.target, preflight.snapshot)
            _tidy(preflight.target, preflight.snapshot)
        return [], preflight.snapshot.manifest_for(preflight.task)

    with operation("transform_checkpoint") as measured, metered() as meter, cancelled_by(cancellation.check):
        inputs = Inputs(request, cancellation)
        target = open_target(inputs)
        if commit:
            with phase("check_target"):
                found = find_complete(inputs, target, cancellation, thorough=thorough)
            if found is not None:
                return _nothing_to_do(found, progress, measured, meter)
        preflight = prepared(inputs, target, resumable=not commit)
        try:
            written, manifest = carry_out(preflight)
        except DataError as error:
            if not (preflight.task.planned and error.reason == "SourceChanged"):
                raise
            # The source has changed, so everything is read again.
            preflight = _prepared_again(preflight, error, partial(prepared, Inputs(request, cancellation), target))
            written, manifest = carry_out(preflight)
        return _result(preflight, written, manifest, progress, measured, meter)


def _result(
    preflight: Preflight,
    written: list[Written],
    manifest: Manifest | None,
    progress: Progress,
    measured: Phase,
    meter: Meter,
) -> Result:
    """Return the result of a run that wrote ranks."""
    task = preflight.task
    whole = manifest if manifest is not None and is_whole(manifest) else None
    notes = (*_notes(task, whole), *_notes_on_files(preflight.target.store, whole), *preflight.target.store.notes)
    for note in notes:
        progress.note(note)
    index_bytes = 0
    if manifest is not None and not preflight.complete:
        index_bytes += manifest.index.size if manifest.index is not None else 0
        index_bytes += 0 if written else sum(map(len, documents_of(manifest).values()))
    records = [each.record for each in written]
    total, content = meter.traffic, content_of(records)
    bytes_written = sum(record.bytes_written for record in records) + index_bytes
    measured.measure(digest=task.digest, bytes_fetched=content.nbytes, requests=content.requests, bytes_written=bytes_written)
    return Result(
        source_ranks=task.model.source_ranks,
        target_ranks=task.model.target_ranks,
        parameters=task.model.distinct_names,
        bytes_needed=sum(w.bytes_needed for w in written),
        bytes_distinct=bytes_needed(task.planner, [record.rank for record in records]).distinct,
        bytes_fetched=content.nbytes,
        requests=content.requests,
        bytes_copied=content.copied,
        other_bytes_fetched=total.nbytes - content.nbytes,
        other_requests=total.requests - content.requests,
        bytes_written=bytes_written,
        seconds=measured.seconds,
        peak_rss_bytes=peak_rss_bytes(),
        skipped_ranks=tuple(sorted({*task.scope} - {record.rank for record in records})),
        digest=task.digest,
        complete=covers(whole, task),
        committed_ranks=manifest.ranks if manifest is not None else "",
        notes=task.notes + notes,
        stage=task.stage,
        durations=durations(),
        source_unit=task.model.source_unit,
        ranks=tuple(
            RankResult(r.rank, each.bytes_needed, r.bytes_fetched, r.requests, r.bytes_written, r.seconds)
            for each in written
            for r in (each.record,)
        ),
    )


def _prepared_again(planned: Preflight, change: DataError, prepared: Callable[..., Preflight]) -> Preflight:
    """Prepare a transform again if a file changed since its plan was written. A copy of a file counts as the same source.

    Raises:
        DataError: the source is another one, or does not exist.
    """
    now = ""
    try:
        preflight = prepared(resumable=False)
        if preflight.task.digest == planned.task.digest:
            return preflight
    except (AccessError, DataError, MissingInputError, RequestError) as error:
        now = f" (now: {error.reason}: {f'{error.where}: ' if error.where else ''}{error.what})"
    raise DataError(change.reason, f"{change.what}{now}", where=change.where, fix=_TRANSFORM_AGAIN) from change


def _carry_out(
    preflight: Preflight,
    workers: int,
    progress: Progress,
    cancellation: Cancellation,
    *,
    commit: bool,
    owner: str | None,
    thorough: bool,
) -> tuple[list[Written], Manifest | None]:
    """Write the unfinished ranks, and complete the checkpoint.

    Returns:
        The written ranks, and the manifest of the checkpoint, or of the stage if it is not the last.
    """
    task, target = preflight.task, preflight.target
    shared = owner or (None if commit else f"task-{task.digest}")
    with writing(target, task, owner=shared) as target:
        state, alone = target.task(task.digest), shared is None and task.stage is None
        made = (*map(task.path, task.scope), *document_names(task.key), MANIFEST_NAME)
        target.store.abort_stale_uploads(made, silent=0.0 if alone else STALE_SECONDS)  # a paused process could complete them
        document, snapshot = start(task, target, cancellation)
        if commit and document.replaces:  # repeat the check, now that no other process writes
            refuse_loss(target, snapshot, task.scope, task.ranks, task.shape)
        now = unfinished(task, target, snapshot, cancellation)
        left = tuple(sorted({*now, *preflight.left})) if thorough else now
        _make_room(preflight, state, document, snapshot, left)
        progress.begin("Resharding", sum(preflight.sizes[rank] for rank in left), "bytes")
        # A failed rank cancels the others, but not the caller's cancellation, so that the caller can try again with it.
        run = Run(
            task,
            state,
            staged=document.staged,
            writer=str(this_process()),
            check_lock=lambda: _check_ours(state),
            cancellation=Cancellation(cancellation),
            progress=progress,
        )
        with phase("write_ranks", ranks=len(left)) as measured:
            written = write_ranks(run, left, workers)
            records = [each.record for each in written]
            content = content_of(records)
            bytes_written = sum(record.bytes_written for record in records)
            measured.measure(bytes_fetched=content.nbytes, requests=content.requests, bytes_written=bytes_written)
        task.release()
        if not commit:
            return written, snapshot.manifest_for(task)
        target.check_lock()
        snapshot = target.observe()  # ranks were written, by other processes too
        ranks = tuple(sorted({*task.scope, *written_ranks(task, target, snapshot)}))
        return written, commit_task(target, document, snapshot, ranks, cancellation)


def _nothing_to_do(found: Complete, progress: Progress, measured: Phase, meter: Meter) -> Result:
    """Return the result of a run that found everything finished."""
    _tidy(found.target, found.snapshot)
    manifest = found.manifest
    store = found.target.store
    notes = (*manifest.notes, *final_notes(manifest), *_notes_on_files(store, manifest), *store.notes)
    for note in notes:
        progress.note(note)
    return Result(
        source_ranks=manifest.source.ranks,
        target_ranks=manifest.target_ranks,
        parameters=len({p.name for p in manifest.parameters.records}),
        bytes_needed=0,
        bytes_distinct=0,
        bytes_fetched=0,
        requests=0,
        bytes_copied=0,
        other_bytes_fetched=meter.traffic.nbytes,
        other_requests=meter.traffic.requests,
        bytes_written=0,
        seconds=measured.seconds,
        peak_rss_bytes=peak_rss_bytes(),
        skipped_ranks=found.ranks,
        digest=manifest.digest,
        complete=True,
        committed_ranks=manifest.ranks,
        notes=notes,
        durations=durations(),
    )


def _tidy(target: TargetFolder, snapshot: TargetSnapshot) -> None:
    """Remove the files of a process that was killed just before the end."""
    if snapshot.manifest is not None and snapshot.is_left_over(snapshot.manifest.tasks):
        with contextlib.suppress(LockedError), locked(target.store, LOCK, owner=None, mode=target.mode) as held:
            target, snapshot = replace(target, check_lock=held.check), target.observe()  # another run may have started
            if snapshot.manifest is not None and snapshot.is_left_over(snapshot.manifest.tasks):
                target.forget_tasks(snapshot.manifest.tasks, (record.path for record in snapshot.manifest.files))


def _make_room(
    preflight: Preflight, state: TaskState, document: TaskRecord, snapshot: TargetSnapshot, left: tuple[int, ...]
) -> None:
    """Remove files that prevent the writing of these ranks: those of killed processes, and the manifest of another checkpoint."""
    task, target = preflight.task, state.target
    state.sweep(set(left), live_writers(target.store) - {str(this_process())})  # this process has not written yet
    how = task.request.options.link_replicas
    linked = how != "Never" and target.store.can_link(state.folder, how)
    check_space(target.store, bytes_to_write(task, preflight.sizes, left, linked=linked))
    if document.in_place and snapshot.manifest_for(task) is None:
        state.retire_old_manifest()


def _check_ours(state: TaskState) -> None:
    """Check that no other process has taken over the target in the meantime.

    Raises:
        LockedError: another process has taken over the target.
    """
    state.target.check_lock()
    if state.read() is None:
        raise LockedError(
            "LockLost",
            "another run has deleted the state of this transform",
            where=state.target.store.url,
            fix="run the transform again",
        )


def _notes(task: Task, manifest: Manifest | None) -> tuple[str, ...]:
    """Return the notes that are only known once all ranks and stages are finished."""
    if manifest is None:
        return ()
    if task.stage is None:
        return final_notes(manifest)
    names = sorted(set(manifest.inconsistent_replicas) - task.model.inconsistent_replicas)
    inconsistent = f"copies of these parameters differ between stages; those of the first stage are used: {listed(names)}"
    return (*final_notes(manifest), *([inconsistent] if names else []))


def _notes_on_files(store: Store, manifest: Manifest | None) -> tuple[str, ...]:
    """Return a note about checkpoint files that do not belong to a complete target, unless it takes requests to find them."""
    if manifest is None or manifest.index is not None or store.remote:
        return ()
    others = unlisted(manifest, files_there(store, manifest, store.list("")))
    return (f"these files do not belong to the checkpoint; move them to another folder: {preview(others)}",) if others else ()
