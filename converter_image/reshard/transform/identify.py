"""Identify a task in the target although the versions of the source's files changed since, for example by a copy."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

import msgspec

from reshard.engine.rankfile import compare
from reshard.errors import AccessError, BugError, LockedError, OutputError
from reshard.parallel import parallel
from reshard.target.folder import LOCK
from reshard.target.lock import locked
from reshard.target.snapshot import JobDocument
from reshard.transform.commit import recorded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reshard.checkpoint.inventory import Inventory, SourceFile
    from reshard.checkpoint.manifest import FileRecord, Manifest
    from reshard.engine.job import Job
    from reshard.progress import Cancellation, Progress
    from reshard.target.folder import TargetFolder
    from reshard.target.snapshot import TargetSnapshot


def identify(
    job: Job, target: TargetFolder, snapshot: TargetSnapshot, progress: Progress, cancellation: Cancellation, *, workers: int
) -> Job:
    """Return the task that the target contains. If its source has changed, return the task with another identity.

    The identity of a source is sampled content. If a file may have changed since the target's files were written, these are
    compared with the source completely, at any verification level: a sample cannot prove that nothing is to be done.
    """
    known = {each.digest: found for each in job.namesakes if (found := snapshot.versions_of(each)) is not None}
    if known and job.indexed:
        job = _with_current_times(job)
    for each in job.namesakes:
        found = known.get(each.digest)
        if found == job.versions or (found is not None and _is_written(each, target, snapshot, progress, cancellation, workers)):
            return each
    return next((each for each in job.namesakes if each.digest not in known), job)


def _with_current_times(job: Job) -> Job:
    """Return a task whose inventory has the current change times of the source's files, if files that it reads were changed.

    An index contains the times at its creation, which do not show a change since.
    """
    inventory = job.model.inventory
    read = {rank for target_rank in job.scope for rank in job.planner.sources(target_rank)}
    if job.source.remote or _with_times(job, [file for file in inventory.files if file.rank in read]) == inventory:
        return job
    model = dataclasses.replace(job.model, inventory=_with_times(job, inventory.files))
    return dataclasses.replace(job, planner=dataclasses.replace(job.planner, model=model))


def _with_times(job: Job, files: Sequence[SourceFile]) -> Inventory:
    """Return the inventory with the current change times of some files. A file of another version is refused when it is read."""
    found = job.source.stats([file.path for file in files])
    stats = ((file, found.get(file.path)) for file in files)
    changed = {file.rank: stat.changed for file, stat in stats if stat is not None and stat.version == file.version}
    inventory = job.model.inventory
    current = (msgspec.structs.replace(file, changed=changed.get(file.rank, file.changed)) for file in inventory.files)
    return msgspec.structs.replace(inventory, files=tuple(current))


def _is_written(
    job: Job, target: TargetFolder, snapshot: TargetSnapshot, progress: Progress, cancellation: Cancellation, workers: int
) -> bool:
    """Return whether all finished files of a task hold the content of its source."""
    document = snapshot.find_task(job.digest) or JobDocument(job.digest, job.key, staged=False, stage=job.stage, whole=job.whole)
    records = recorded(target, document, snapshot, None, cancellation)
    there = target.job(job.digest).locate(records.values(), staged=document.staged, check=cancellation.check)
    progress.begin("Comparing with the source", sum(record.size for record in records.values()), "bytes")

    def is_equal(record: FileRecord) -> bool:
        plan, path = job.planner.plan(record.rank), there[record.path]
        try:
            compare(job, plan, target.store, path, "Full", cancellation)
        except BugError:
            return False
        progress.advance(record.size)
        return True

    return all(parallel(is_equal, records.values(), at_once=workers, check=cancellation.check))


def record_versions(job: Job, target: TargetFolder, snapshot: TargetSnapshot) -> None:
    """Record in the manifest the current versions of the source's files, so that the next run need not compare them."""
    manifest = snapshot.manifest_for(job)
    if manifest is None or snapshot.versions_of(job) == job.versions:
        return
    with contextlib.suppress(AccessError, LockedError, OutputError), locked(target.store, LOCK, owner=None, mode=target.mode):
        if target.manifest() == manifest:
            target.write_manifest(_with_versions(manifest, job))


def _with_versions(manifest: Manifest, job: Job) -> Manifest:
    """Return the manifest with the versions of a task as the versions of its source, or of the stage's source."""
    replace = msgspec.structs.replace
    if not manifest.stages:
        return replace(manifest, source=replace(manifest.source, versions=job.versions))
    own = (stage for stage in manifest.stages if stage.digest == job.digest)
    renewed = {stage: replace(stage, source=replace(stage.source, versions=job.versions)) for stage in own}
    return replace(manifest, stages=tuple(renewed.get(stage, stage) for stage in manifest.stages))
