"""Check that a task may write to the target, and record its start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from reshard.checkpoint.unified import is_own
from reshard.errors import RequestError
from reshard.formats.registry import document_names
from reshard.parallel import parallel
from reshard.target.snapshot import JobDocument
from reshard.telemetry import durations, phase
from reshard.transform.commit import finish_interrupted, refuse_loss
from reshard.transform.draft import draft_manifest
from reshard.transform.prepare import encode_index

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from reshard.engine.job import Job
    from reshard.progress import Cancellation
    from reshard.target.folder import TargetFolder
    from reshard.target.snapshot import TargetSnapshot


@phase("start")
def start(job: Job, target: TargetFolder, cancellation: Cancellation) -> tuple[JobDocument, TargetSnapshot]:
    """Record the task in the target, or find its record. The target's lock must be held.

    Returns:
        The record of the task, and a snapshot of the target since the lock is held.

    Raises:
        RequestError: the task may not be started, see `refuse`.
    """
    snapshot = finish_interrupted(target, cancellation)
    state, document = target.job(job.digest), snapshot.find_task(job.digest)
    if document is not None and document.versions != job.versions and not job.planned:
        document = msgspec.structs.replace(document, versions=job.versions)
        state.refresh(document, encode_index(job), draft_manifest(job, durations()), job.carried)
    elif document is not None:
        state.restore(encode_index(job), draft_manifest(job, durations()), job.carried)
    else:
        replaces, renames = replaces_other(job, target, snapshot), target.store.renames
        document = JobDocument(
            job.digest,
            job.key,
            staged=replaces and renames,
            mode=target.mode,
            in_place=replaces and not renames,
            stage=job.stage,
            whole=job.whole,
            key_check=job.cipher.key_check() if job.cipher is not None else None,
            versions=job.versions,
        )
        outdated = snapshot.outdated(job.digest, job.key)
        discarded = [
            other for other in snapshot.jobs if other in outdated or (job.stage is not None and _is_same_stage(other, job))
        ]
        for other in discarded:
            target.discard(other, state)
        document = state.begin(document, encode_index(job), draft_manifest(job, durations()), job.carried)
        snapshot = snapshot.started(document, discarded)
    _refuse_other_key(job, target, snapshot)  # of two processes that start it concurrently, one may have another key
    return document, snapshot


def refuse(job: Job, target: TargetFolder, snapshot: TargetSnapshot, *, commit: bool) -> None:
    """Refuse to replace a checkpoint without permission or with fewer ranks, and to mix files encrypted with different keys.

    Args:
        job: task to start.
        target: target of the task.
        snapshot: state of the target at one moment.
        commit: whether the task will be committed at once, so that all ranks that this requires must be requested.

    Raises:
        RequestError: the target contains something that the task may not replace or extend. The message contains the remedy.
    """
    _refuse_other_key(job, target, snapshot)
    if not snapshot.committing and replaces_other(job, target, snapshot) and commit:
        refuse_loss(target, snapshot, job.scope, job.ranks, job.shape)


def replaces_other(job: Job, target: TargetFolder, snapshot: TargetSnapshot) -> bool:
    """Return whether the task would replace something else in the target.

    Raises:
        RequestError: it would, and the request does not allow that.
    """
    known = snapshot.find_task(job.digest)
    if known is not None:
        return known.replaces
    if snapshot.manifest_for(job) is not None:
        return False
    siblings, outdated = snapshot.siblings(job), snapshot.outdated(job.digest, job.key)
    others = [other for other in snapshot.jobs if other not in (*outdated, *siblings)]
    replacing = any(sibling.replaces for sibling in siblings)
    if replacing:  # the other stages were checked against all others, except tasks of this stage
        others = [other for other in others if _is_same_stage(other, job)]
    if siblings and not others:
        return replacing
    manifest, ours = snapshot.manifest, target.replaced_files(snapshot, job.digest)
    if manifest is not None:
        digests = f"{manifest.digest[:12]} instead of {job.digest[:12]}"
        what = f"a checkpoint that was created from another source, strategy or options ({digests})"
        ours |= {*(record.path for record in manifest.listed), *document_names(manifest.options)}
    elif others:
        what = f"an unfinished transform of another source, strategy or options ({others[0].digest[:12]})"
    else:
        _refuse_foreign_files(job, target, ours)
        return False
    _refuse_foreign_targets(job, target, ours)
    if job.request.options.overwrite == "Never":
        fix = "choose another target, or replace it with --overwrite (spec.overwrite: Replace)"
        raise RequestError("TargetExists", f"the target contains {what}", where=target.store.url, fix=fix)
    return True


def _refuse_foreign_files(job: Job, target: TargetFolder, ours: AbstractSet[str]) -> None:
    """Refuse files that no document lists. They are never replaced or mixed with others: they may be the only copy.

    Raises:
        RequestError: the target contains such files.
    """
    wanted = {*map(job.path, job.scope), *_carried(job), *job.output.conflicting(job.model.target_ranks)}
    entries = target.store.list("")
    if job.output.names_files:  # programs would read files of another checkpoint together with these
        suffixes = tuple({f".{path.rpartition('.')[2]}" for path in map(job.path, job.scope)})
        wanted |= {*document_names(job.key), *(found.name for found in entries if found.name.endswith(suffixes))}
    paths = [found.name for found in entries if found.name in wanted or is_own(found.name)]
    folders = [found.name for found in entries if found.is_folder and found.name.startswith("rank_")]
    for folder, listed in zip(folders, target.store.list_folders(folders), strict=True):
        paths += [f"{folder}/{entry.name}" for entry in listed]
    foreign = next((path for path in paths if path not in ours), None)
    if foreign is not None:
        raise _foreign(foreign, target)


def _refuse_foreign_targets(job: Job, target: TargetFolder, ours: AbstractSet[str]) -> None:
    """Refuse files that no document lists and that would be replaced, next to a checkpoint.

    Raises:
        RequestError: the target contains such files.
    """
    documents = (*document_names(job.key), *_carried(job), *job.output.conflicting(job.model.target_ranks))
    wanted = (*map(job.path, job.scope), *documents)
    paths = [path for path in wanted if path not in ours]
    for path, found in zip(paths, parallel(target.store.stat, paths), strict=True):
        if found is not None:
            raise _foreign(path, target)


def _carried(job: Job) -> tuple[str, ...]:
    return tuple(file.path for file in job.model.inventory.carried)


def _foreign(path: str, target: TargetFolder) -> RequestError:
    return RequestError(
        "TargetExists",
        f"the target contains {path}, which no manifest describes",
        where=target.store.url,
        fix="choose another target, or move the file to another folder; --overwrite never replaces such files",
    )


def _refuse_other_key(job: Job, target: TargetFolder, snapshot: TargetSnapshot) -> None:
    """Refuse a key that differs from the key of the target's files. The key is not part of a checkpoint's identity.

    Raises:
        RequestError: the unfinished or complete checkpoint has another key, or does not identify its key.
    """
    if job.cipher is None:
        return
    for known in (snapshot.find_task(job.digest), snapshot.manifest_for(job)):
        if known is not None and not job.cipher.has_key_of(known.key_check or b""):
            raise RequestError(
                "OtherKey",
                "this transform was started with another encryption key",
                where=target.store.url,
                fix="use that key, or choose another target",
            )


def _is_same_stage(other: JobDocument, job: Job) -> bool:
    return (other.stage, other.whole) == (job.stage, job.whole)
