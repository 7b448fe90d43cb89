"""Identify a task in the target although the versions of the source's files changed since, for example by a copy."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

import msgspec

from reshard.engine.rankfile import compare
from reshard.errors import AccessError, BugError, LockedError, OutputError
from reshard.parallel import parallel
from reshard.source.changed import source_changed
from reshard.source.reading import has_same_header
from reshard.target.documents import LOCK
from reshard.target.lock import locked
from reshard.target.snapshot import TaskRecord
from reshard.transform.commit import recorded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reshard.checkpoint.inventory import Inventory, SourceFile
    from reshard.checkpoint.manifest import FileRecord, Manifest
    from reshard.engine.task import Task
    from reshard.progress import Cancellation, Progress
    from reshard.target.folder import TargetFolder
    from reshard.target.snapshot import TargetSnapshot


def identify(
    task: Task, target: TargetFolder, snapshot: TargetSnapshot, progress: Progress, cancellation: Cancellation, *, workers: int
) -> Task:
    """Return the task that the target contains. If its source has changed, return the task with another identity.

    The identity of a source is sampled content. If a file may have changed since the target's files were written, these are
    compared with the source completely, at any verification level: a sample cannot prove that nothing is to be done.
    """
    known = {each.digest: found for each in task.namesakes if (found := snapshot.versions_of(each)) is not None}
    if known and task.indexed:
        task = _with_current_times(task)
    for each in task.namesakes:
        found = known.get(each.digest)
        if found == task.versions or (found is not None and _is_written(each, target, snapshot, progress, cancellation, workers)):
            return each
    return next((each for each in task.namesakes if each.digest not in known), task)


def _with_current_times(task: Task) -> Task:
    """Return a task whose inventory has the current change times of the source's files, if files that it reads were changed.

    An index contains the times at its creation, which do not show a change since.

    Raises:
        DataError: the header of such a file is another one.
    """
    inventory = task.model.inventory
    read = {rank for target_rank in task.scope for rank in task.planner.sources(target_rank)}
    current = _with_times(task, [file for file in inventory.files if file.rank in read])
    if task.source.remote or current == inventory:
        return task
    for before, now in zip(inventory.files, current.files, strict=True):
        if before != now and not has_same_header(task.source, inventory, before):
            raise source_changed(before.path, indexed=True)
    model = dataclasses.replace(task.model, inventory=_with_times(task, inventory.files))
    return dataclasses.replace(task, planner=dataclasses.replace(task.planner, model=model))


def _with_times(task: Task, files: Sequence[SourceFile]) -> Inventory:
    """Return the inventory with the current change times of some files. A file of another version is refused when it is read."""
    found = task.source.stats([file.path for file in files])
    stats = ((file, found.get(file.path)) for file in files)
    changed = {file.rank: stat.changed for file, stat in stats if stat is not None and stat.version == file.version}
    inventory = task.model.inventory
    current = (msgspec.structs.replace(file, changed=changed.get(file.rank, file.changed)) for file in inventory.files)
    return msgspec.structs.replace(inventory, files=tuple(current))


def _is_written(
    task: Task, target: TargetFolder, snapshot: TargetSnapshot, progress: Progress, cancellation: Cancellation, workers: int
) -> bool:
    """Return whether all finished files of a task hold the content of its source."""
    document = snapshot.find_task(task.digest) or TaskRecord(
        task.digest, task.key, staged=False, stage=task.stage, whole=task.whole
    )
    records = recorded(target, document, snapshot, None, cancellation)
    there = target.task(task.digest).locate(records.values(), staged=document.staged, check=cancellation.check)
    progress.begin("Comparing with the source", sum(record.size for record in records.values()), "bytes")

    def is_equal(record: FileRecord) -> bool:
        plan, path = task.planner.plan(record.rank), there[record.path]
        try:
            compare(task, plan, target.store, path, "Full", cancellation)
        except BugError:
            return False
        progress.advance(record.size)
        return True

    return all(parallel(is_equal, records.values(), at_once=workers, check=cancellation.check))


def record_versions(task: Task, target: TargetFolder, snapshot: TargetSnapshot) -> None:
    """Record in the manifest the current versions of the source's files, so that the next run need not compare them."""
    manifest = snapshot.manifest_for(task)
    if manifest is None or snapshot.versions_of(task) == task.versions:
        return
    with (
        contextlib.suppress(AccessError, LockedError, OutputError),
        locked(target.store, LOCK, owner=None, mode=target.mode) as held,
    ):
        if target.manifest() == manifest:
            dataclasses.replace(target, check_lock=held.check).write_manifest(_with_versions(manifest, task))


def _with_versions(manifest: Manifest, task: Task) -> Manifest:
    """Return the manifest with the versions of a task as the versions of its source, or of the stage's source."""
    replace = msgspec.structs.replace
    if not manifest.stages:
        return replace(manifest, source=replace(manifest.source, versions=task.versions))
    own = (stage for stage in manifest.stages if stage.digest == task.digest)
    renewed = {stage: replace(stage, source=replace(stage.source, versions=task.versions)) for stage in own}
    return replace(manifest, stages=tuple(renewed.get(stage, stage) for stage in manifest.stages))
