"""May a job write to a target, and its beginning there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reshard.checkpoint.unified import is_own, maps_beside
from reshard.errors import RequestError
from reshard.target.folder import JobDocument
from reshard.transform.commit import finish_interrupted, own_manifest, refuse_loss
from reshard.transform.draft import draft_manifest
from reshard.transform.prepare import encode_index

if TYPE_CHECKING:
    from reshard.checkpoint.manifest import Manifest
    from reshard.engine.job import Job
    from reshard.target.folder import JobState, TargetFolder


def begin(job: Job, target: TargetFolder, state: JobState) -> JobDocument:
    """Note the job down at the target, or find it noted down.

    Raises:
        RequestError: it has been begun with another key.
    """
    finish_interrupted(target)
    document = state.read()
    if document is not None:
        state.restore(encode_index(job), draft_manifest(job))
    else:
        replaces, renames = replaces_other(job, target, state), target.store.renames
        document = JobDocument(
            job.digest,
            job.key,
            staged=replaces and renames,
            mode=target.mode,
            in_place=replaces and not renames,
            part=job.part,
            whole=job.whole,
            key_check=job.cipher.key_check() if job.cipher is not None else None,
        )
        outdated = target.outdated(job.digest, job.key)
        for other in target.jobs():
            if other in outdated or (job.part is not None and _is_same_part(other, job)):
                target.discard(other, state)
        document = state.begin(document, encode_index(job), draft_manifest(job))
    refuse_other_key(job, target, state)  # of two that began it at once, one may have another
    return document


def refuse_replacement(job: Job, target: TargetFolder, state: JobState, *, commit: bool) -> None:
    """Refuse to replace what the user has not asked to replace, or by less than it is."""
    if replaces_other(job, target, state) and commit:
        refuse_loss(target, state, job.scope, job.ranks, job.shape)


def replaces_other(job: Job, target: TargetFolder, state: JobState) -> bool:
    """Whether something else is at the target that this job would replace.

    Raises:
        RequestError: it is, and the user has not asked for that.
    """
    known = state.read()
    if known is not None:
        return known.replaces
    if own_manifest(target, job) is not None:
        return False
    siblings, outdated = target.siblings(job.whole, job.part), target.outdated(job.digest, job.key)
    others = [other for other in target.jobs() if other.digest != job.digest and other not in (*outdated, *siblings)]
    replacing = any(sibling.replaces for sibling in siblings)
    if replacing:  # they were asked about all others but what they leave alone
        others = [other for other in others if _is_same_part(other, job)]
    if siblings and not others:
        return replacing
    manifest = target.manifest()
    what = None
    fix = "choose another target, or replace it with --overwrite (spec.overwrite: Replace)"
    if manifest is not None:
        what = f"a checkpoint of another source, layout or options ({manifest.digest[:12]} instead of {job.digest[:12]})"
    elif others:
        what = f"an unfinished transform of another source, layout or options ({others[0].digest[:12]})"
    else:
        _refuse_foreign_files(job, target, _described(None, state))
    if what is None:
        return False
    _refuse_foreign_targets(job, target, _described(manifest, state))
    if job.request.options.overwrite == "Never":
        raise RequestError("TargetExists", f"there is {what}", where=target.store.url, fix=fix)
    return True


def _refuse_foreign_files(job: Job, target: TargetFolder, ours: set[str]) -> None:
    """Files that nobody has described are never replaced, nor mixed with ours: they may be the only copy of something.

    Raises:
        RequestError: there are some.
    """
    beside = {job.path(rank) for rank in job.scope}
    for found in target.store.list(""):
        paths = [found.name] if found.name in beside or is_own(found.name) else []
        if found.is_folder and found.name.startswith("rank_"):
            paths = [f"{found.name}/{entry.name}" for entry in target.store.list(found.name)]
        for path in paths:
            if path not in ours:
                raise _foreign(path, target)


def refuse_other_key(job: Job, target: TargetFolder, state: JobState) -> None:
    """The files of one checkpoint have one key, which is no part of what identifies it.

    Raises:
        RequestError: what is begun or complete has another, or does not tell which.
    """
    if job.cipher is None:
        return
    for known in (state.read(), own_manifest(target, job)):
        if known is not None and not job.cipher.has_key_of(known.key_check or b""):
            raise RequestError(
                "OtherKey",
                "this transform was begun there with another key",
                where=target.store.url,
                fix="give that key, or choose another target",
            )


def _described(manifest: Manifest | None, state: JobState) -> set[str]:
    """The files that belong to the checkpoint that is here, and to unfinished ones."""
    found = set(state.replaced_files())
    if manifest is not None:
        found.update((record.path for record in manifest.listed), maps_beside(manifest.options))
    return found


def _refuse_foreign_targets(job: Job, target: TargetFolder, ours: set[str]) -> None:
    """The same of those that would be replaced: beside a checkpoint there may lie what is nobody's.

    Raises:
        RequestError: there are some.
    """
    for path in (*map(job.path, job.scope), *maps_beside(job.key)):
        if path not in ours and target.store.stat(path) is not None:
            raise _foreign(path, target)


def _foreign(path: str, target: TargetFolder) -> RequestError:
    return RequestError(
        "TargetExists",
        f"there is {path}, which no manifest describes",
        where=target.store.url,
        fix="choose another target, or move it away; such files are never overwritten",
    )


def _is_same_part(other: JobDocument, job: Job) -> bool:
    return (other.part, other.whole) == (job.part, job.whole)
