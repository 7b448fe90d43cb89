"""May a job write to a target, and its beginning there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from reshard.checkpoint.unified import HF_INDEX_NAME, is_own, maps_beside, single_file_of
from reshard.errors import RequestError
from reshard.parallel import parallel
from reshard.target.standing import JobDocument
from reshard.telemetry import durations, phase
from reshard.transform.commit import finish_interrupted, refuse_loss
from reshard.transform.draft import draft_manifest
from reshard.transform.prepare import encode_index

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from reshard.engine.job import Job
    from reshard.progress import Cancellation
    from reshard.target.folder import TargetFolder
    from reshard.target.standing import Standing


@phase("start")
def begin(job: Job, target: TargetFolder, cancellation: Cancellation) -> tuple[JobDocument, Standing]:
    """Note the job down at the target, or find it noted down. To be called with the target's lock held.

    Returns:
        The job as it was begun, and what is at the target now.

    Raises:
        RequestError: it may not be begun: see `refuse`.
    """
    standing = finish_interrupted(target, cancellation)
    state, document = target.job(job.digest), standing.begun(job.digest)
    if document is not None and document.versions != job.versions and not job.planned:
        document = msgspec.structs.replace(document, versions=job.versions)
        state.refresh(document, encode_index(job), draft_manifest(job, durations()))
    elif document is not None:
        state.restore(encode_index(job), draft_manifest(job, durations()))
    else:
        replaces, renames = replaces_other(job, target, standing), target.store.renames
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
        outdated = standing.outdated(job.digest, job.key)
        for other in standing.jobs:
            if other in outdated or (job.stage is not None and _is_same_stage(other, job)):
                target.discard(other, state)
        document = state.begin(document, encode_index(job), draft_manifest(job, durations()))
        standing = target.observe()
    _refuse_other_key(job, target, standing)  # of two that began it at once, one may have another
    return document, standing


def refuse(job: Job, target: TargetFolder, standing: Standing, *, commit: bool) -> None:
    """Refuse to replace what the user has not asked to replace, or by less than it is; or to mix files of two keys.

    Args:
        job: what is to be made.
        target: the target that it is to be written to.
        standing: what is there.
        commit: whether it is to be completed at once, so that all ranks which that takes have to be asked for.

    Raises:
        RequestError: with what is there, and what to do.
    """
    _refuse_other_key(job, target, standing)
    if not standing.committing and replaces_other(job, target, standing) and commit:
        refuse_loss(target, standing, job.scope, job.ranks, job.shape)


def replaces_other(job: Job, target: TargetFolder, standing: Standing) -> bool:
    """Whether something else is at the target that this job would replace.

    Raises:
        RequestError: it is, and the user has not asked for that.
    """
    known = standing.begun(job.digest)
    if known is not None:
        return known.replaces
    if standing.own(job) is not None:
        return False
    siblings, outdated = standing.siblings(job), standing.outdated(job.digest, job.key)
    others = [other for other in standing.jobs if other not in (*outdated, *siblings)]
    replacing = any(sibling.replaces for sibling in siblings)
    if replacing:  # they were asked about all others but what they leave alone
        others = [other for other in others if _is_same_stage(other, job)]
    if siblings and not others:
        return replacing
    manifest, ours = standing.manifest, target.replaced_files(standing, job.digest)
    if manifest is not None:
        what = f"a checkpoint made from another source, strategy or options ({manifest.digest[:12]} instead of {job.digest[:12]})"
        ours |= {*(record.path for record in manifest.listed), *maps_beside(manifest.options)}
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
    """Files that nobody has described are never replaced, nor mixed with ours: they may be the only copy of something.

    Raises:
        RequestError: there are some.
    """
    beside = {*map(job.path, job.scope), *_shadowing(job)}
    entries = target.store.list("")
    paths = [found.name for found in entries if found.name in beside or is_own(found.name)]
    folders = [found.name for found in entries if found.is_folder and found.name.startswith("rank_")]
    for folder, listed in zip(folders, target.store.list_folders(folders), strict=True):
        paths += [f"{folder}/{entry.name}" for entry in listed]
    foreign = next((path for path in paths if path not in ours), None)
    if foreign is not None:
        raise _foreign(foreign, target)


def _refuse_foreign_targets(job: Job, target: TargetFolder, ours: AbstractSet[str]) -> None:
    """The same of those that would be replaced: beside a checkpoint there may lie what is nobody's.

    Raises:
        RequestError: there are some.
    """
    wanted = (*map(job.path, job.scope), *maps_beside(job.key), *_shadowing(job))
    paths = [path for path in wanted if path not in ours]
    for path, found in zip(paths, parallel(target.store.stat, paths), strict=True):
        if found is not None:
            raise _foreign(path, target)


def _shadowing(job: Job) -> tuple[str, ...]:
    """Return what Hugging Face's libraries would read instead of the files that the index lists."""
    return (single_file_of(HF_INDEX_NAME),) if job.request.options.hugging_face_index else ()


def _foreign(path: str, target: TargetFolder) -> RequestError:
    return RequestError(
        "TargetExists",
        f"the target contains {path}, which no manifest describes",
        where=target.store.url,
        fix="choose another target, or move the file away; --overwrite never replaces such files",
    )


def _refuse_other_key(job: Job, target: TargetFolder, standing: Standing) -> None:
    """The files of one checkpoint have one key, which is no part of what identifies it.

    Raises:
        RequestError: what is begun or complete has another, or does not tell which.
    """
    if job.cipher is None:
        return
    for known in (standing.begun(job.digest), standing.own(job)):
        if known is not None and not job.cipher.has_key_of(known.key_check or b""):
            raise RequestError(
                "OtherKey",
                "this transform was started with another encryption key",
                where=target.store.url,
                fix="use that key, or choose another target",
            )


def _is_same_stage(other: JobDocument, job: Job) -> bool:
    return (other.stage, other.whole) == (job.stage, job.whole)
