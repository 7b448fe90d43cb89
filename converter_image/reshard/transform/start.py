"""Check that a task may write to the target, and record its start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from reshard.checkpoint.unified import is_own
from reshard.errors import LockedError, RequestError
from reshard.formats.registry import document_names
from reshard.parallel import parallel
from reshard.target.snapshot import TaskRecord
from reshard.telemetry import durations, phase
from reshard.transform.commit import finish_interrupted, refuse_loss
from reshard.transform.draft import draft_manifest
from reshard.transform.fingerprint_check import expected_fingerprints
from reshard.transform.prepare import encode_index

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from reshard.checkpoint.manifest import Manifest
    from reshard.engine.task import Task
    from reshard.progress import Cancellation
    from reshard.target.folder import TargetFolder
    from reshard.target.snapshot import TargetSnapshot


@phase("start")
def start(task: Task, target: TargetFolder, cancellation: Cancellation) -> tuple[TaskRecord, TargetSnapshot]:
    """Record the task in the target, or find its record. The target's lock must be held.

    Returns:
        The record of the task, and a snapshot of the target since the lock is held.

    Raises:
        RequestError: the task may not be started, see `refuse`.
        LockedError: a task that this one replaces has been completed in the meantime.
    """
    snapshot = finish_interrupted(target, cancellation)
    if snapshot.stale:
        target.forget_tasks([stale.digest for stale in snapshot.stale])
        snapshot = target.observe()
    state, document = target.task(task.digest), snapshot.find_task(task.digest)
    if document is not None and (document.versions, document.request) != (task.versions, task.key) and not task.planned:
        document = msgspec.structs.replace(document, versions=task.versions, request=task.key)
        state.refresh(document, encode_index(task), _draft(task), task.carried)
    elif document is not None:
        state.restore(encode_index(task), lambda: _draft(task), task.carried, stage=task.stage is not None)
    else:
        replaces, renames = replaces_other(task, target, snapshot), target.store.renames
        document = TaskRecord(
            task.digest,
            task.key,
            staged=replaces and renames,
            mode=target.mode,
            in_place=replaces and not renames,
            stage=task.stage,
            whole=task.whole,
            key_check=task.cipher.key_check() if task.cipher is not None else None,
            versions=task.versions,
        )
        document = state.begin(document, encode_index(task), _draft(task), task.carried)
        snapshot = snapshot.started(document)
    ended = _replaced(task, document, snapshot)
    for other in ended:
        target.discard(other, state)
        snapshot = snapshot.discarded(other, task.digest)
    if ended and snapshot.manifest is None and target.manifest() is not None:
        raise LockedError(
            "TargetLocked",
            "another run has completed this target at this moment",
            where=target.store.url,
            fix="retry",
        )
    _refuse_other_key(task, target, snapshot)  # of two processes that start it concurrently, one may have another key
    return document, snapshot


def _draft(task: Task) -> Manifest:
    return draft_manifest(task, durations(), expected_fingerprints(task))


def _replaced(task: Task, document: TaskRecord, snapshot: TargetSnapshot) -> list[TaskRecord]:
    """Return the tasks that a task replaces. They end now, so that processes of theirs that resume later change nothing."""
    siblings, outdated = snapshot.siblings(task), snapshot.outdated(task.digest, task.key)
    others = [other for other in snapshot.tasks if other.digest != task.digest and other not in siblings]
    return [
        other
        for other in others
        if document.replaces or other in outdated or (task.stage is not None and _is_same_stage(other, task))
    ]


def refuse(task: Task, target: TargetFolder, snapshot: TargetSnapshot, *, commit: bool) -> None:
    """Refuse to replace a checkpoint without permission or with fewer ranks, and to mix files encrypted with different keys.

    Args:
        task: task to start.
        target: target of the task.
        snapshot: state of the target at one moment.
        commit: whether the task will be committed at once, so that all ranks that this requires must be requested.

    Raises:
        RequestError: the target contains something that the task may not replace or extend. The message contains the remedy.
    """
    _refuse_other_key(task, target, snapshot)
    if not snapshot.committing and replaces_other(task, target, snapshot) and commit:
        refuse_loss(target, snapshot, task.scope, task.ranks, task.shape)


def replaces_other(task: Task, target: TargetFolder, snapshot: TargetSnapshot) -> bool:
    """Return whether the task would replace something else in the target.

    Raises:
        RequestError: it would, and the request does not allow that.
    """
    known = snapshot.find_task(task.digest)
    if known is not None:
        return known.replaces
    if snapshot.manifest_for(task) is not None:
        return False
    siblings, outdated = snapshot.siblings(task), snapshot.outdated(task.digest, task.key)
    others = [other for other in snapshot.tasks if other not in (*outdated, *siblings)]
    replacing = any(sibling.replaces for sibling in siblings)
    if replacing:  # the other stages were checked against all others, except tasks of this stage
        others = [other for other in others if _is_same_stage(other, task)]
    if siblings and not others:
        return replacing
    manifest, ours = snapshot.manifest, target.replaced_files(snapshot, task.digest)
    if manifest is not None:
        digests = f"{manifest.digest[:12]} instead of {task.digest[:12]}"
        what = f"a checkpoint that was created from another source, strategy or options ({digests})"
        ours |= {*(record.path for record in manifest.listed), *document_names(manifest.options)}
    elif others:
        what = f"an unfinished transform of another source, strategy or options ({others[0].digest[:12]})"
    else:
        _refuse_foreign_files(task, target, ours)
        return False
    _refuse_foreign_targets(task, target, ours)
    if task.request.options.overwrite == "Never":
        fix = "choose another target, or replace it with --overwrite (spec.overwrite: Replace)"
        raise RequestError("TargetExists", f"the target contains {what}", where=target.store.url, fix=fix)
    return True


def _refuse_foreign_files(task: Task, target: TargetFolder, ours: AbstractSet[str]) -> None:
    """Refuse files that no document lists. They are never replaced or mixed with others: they may be the only copy.

    Raises:
        RequestError: the target contains such files.
    """
    wanted = {*map(task.path, task.scope), *document_names(task.key), *_carried(task)}
    wanted |= {*task.output.conflicting(task.model.target_ranks)}
    entries = target.store.list("")
    if task.output.names_files:  # programs would read files of another checkpoint together with these
        suffixes = tuple({f".{path.rpartition('.')[2]}" for path in map(task.path, task.scope)})
        wanted |= {found.name for found in entries if found.name.endswith(suffixes)}
    paths = [found.name for found in entries if found.name in wanted or is_own(found.name)]
    folders = [found.name for found in entries if found.is_folder and found.name.startswith("rank_")]
    for folder, listed in zip(folders, target.store.list_folders(folders), strict=True):
        paths += [f"{folder}/{entry.name}" for entry in listed]
    foreign = next((path for path in paths if path not in ours), None)
    if foreign is not None:
        raise _foreign(foreign, target)


def _refuse_foreign_targets(task: Task, target: TargetFolder, ours: AbstractSet[str]) -> None:
    """Refuse files that no document lists and that would be replaced, next to a checkpoint.

    Raises:
        RequestError: the target contains such files.
    """
    documents = (*document_names(task.key), *_carried(task), *task.output.conflicting(task.model.target_ranks))
    wanted = (*map(task.path, task.scope), *documents)
    paths = [path for path in wanted if path not in ours]
    for path, found in zip(paths, parallel(target.store.stat, paths), strict=True):
        if found is not None:
            raise _foreign(path, target)


def _carried(task: Task) -> tuple[str, ...]:
    return tuple(file.path for file in task.model.inventory.carried)


def _foreign(path: str, target: TargetFolder) -> RequestError:
    return RequestError(
        "TargetExists",
        f"the target contains {path}, which no manifest describes",
        where=target.store.url,
        fix="choose another target, or move the file to another folder; --overwrite never replaces such files",
    )


def _refuse_other_key(task: Task, target: TargetFolder, snapshot: TargetSnapshot) -> None:
    """Refuse a key that differs from the key of the target's files. The key is not part of a checkpoint's identity.

    Raises:
        RequestError: the unfinished or complete checkpoint has another key, or does not identify its key.
    """
    if task.cipher is None:
        return
    for known in (snapshot.find_task(task.digest), snapshot.manifest_for(task)):
        if known is not None and not task.cipher.has_key_of(known.key_check or b""):
            raise RequestError(
                "OtherKey",
                "this transform was started with another encryption key",
                where=target.store.url,
                fix="use that key, or choose another target",
            )


def _is_same_stage(other: TaskRecord, task: Task) -> bool:
    return (other.stage, other.whole) == (task.stage, task.whole)
