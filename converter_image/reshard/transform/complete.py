"""Completing a checkpoint whose ranks were written by processes of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from reshard.errors import LockedError, MissingInputError, RequestError
from reshard.progress import Cancellation
from reshard.spec.ranks import parse_ranks
from reshard.spec.request import Options
from reshard.storage import open_store
from reshard.target.folder import TargetFolder
from reshard.target.lock import writing
from reshard.telemetry import operation
from reshard.transform.commit import commit_job, ranks_of, recorded, shape_of, would_lose

if TYPE_CHECKING:
    from reshard.checkpoint.manifest import Manifest
    from reshard.spec.access import Access
    from reshard.target.standing import Standing


@operation("commit_checkpoint")
def commit_checkpoint(
    target_url: str,
    *,
    ranks: str | None = None,
    digest: str | None = None,
    owner: str | None = None,
    access: Access | None = None,
    cancellation: Cancellation | None = None,
) -> Manifest:
    """Complete the checkpoint whose ranks were written without commit, or the parts of one.

    Args:
        target_url: the target.
        ranks: the target ranks that make it complete, such as "0,2-5"; None: all.
        digest: the digest of the job that is meant; None: the only one that was begun here, or all parts of one checkpoint.
        owner: the owner that was given to those who wrote the ranks.
        access: the way to the target, if it is in an object store.
        cancellation: cancels it.

    Returns:
        The manifest of the checkpoint; as long as parts of it are missing, that of a part: see `reshard.target.parts.is_whole`.

    Raises:
        LockedError: others still write here.
        MissingInputError: a rank is not finished, or nothing was begun here.
        RequestError: several transforms were begun here.
    """
    cancellation = cancellation or Cancellation()
    target = TargetFolder(open_store(target_url, access), Options().file_mode)
    standing = target.observe()
    begun = [job for job in standing.jobs if digest in {None, job.digest}]
    if not begun and (manifest := _completed(standing, digest)) is not None:
        return manifest
    if not begun:
        raise MissingInputError(
            "NothingToCommit", "no transform was started here", where=target_url, fix="run `reshard transform` first"
        )
    if len({job.whole or job.digest for job in begun}) > 1:
        raise RequestError(
            "AmbiguousJobs",
            f"{len(begun)} transforms were started here: {', '.join(job.digest[:12] for job in begun)}",
            where=target_url,
            fix="run `reshard transform --overwrite` for the one to keep",
        )
    committed = None
    for job in begun:
        target = replace(target, mode=job.mode)
        with writing(target, job, owner=owner or f"job-{job.digest}"):
            state = target.job(job.digest)
            if committed is not None and state.read() is None:  # the part before it was the last to be finished
                break
            wanted = None if ranks is None else parse_ranks(ranks, state.draft().target_ranks)
            committed = commit_job(target, job, wanted, cancellation)
    assert committed is not None  # noqa: S101 - there is at least one
    return committed


@operation("commit_checkpoint")
def commit_if_complete(target_url: str, digest: str, *, all_ranks: bool = True, access: Access | None = None) -> Manifest | None:
    """Complete the checkpoint of a job of which others may still write ranks: of all who are done, the last finds nobody writing.

    Args:
        target_url: the target.
        digest: the digest of the job.
        all_ranks: whether all ranks make it complete; else those that are finished do.
        access: the way to the target, if it is in an object store.

    Returns:
        The manifest; None: others still write here, a rank is missing, or what is finished is less than what it would replace.
    """
    target = TargetFolder(open_store(target_url, access), Options().file_mode)
    standing = target.observe()
    if (job := standing.begun(digest)) is None:  # another was the last
        return _completed(standing, digest)
    target = replace(target, mode=job.mode)
    try:
        with writing(target, job, owner=None):
            standing = target.observe()
            if standing.begun(digest) is None:
                return _completed(standing, digest)
            cancellation = Cancellation()
            draft, done = target.job(digest).draft(), tuple(sorted(recorded(target, job, standing, None, cancellation)))
            every = ranks_of(draft)
            ranks = every if all_ranks else done
            if not set(done) >= set(ranks) or (job.replaces and would_lose(target, standing, ranks, every, shape_of(draft))):
                return None
            return commit_job(target, job, ranks, cancellation)
    except LockedError:
        return None


def _completed(standing: Standing, digest: str | None) -> Manifest | None:
    """The manifest at the target, if this job has a part in the checkpoint (None: whichever has)."""
    manifest = standing.manifest
    return manifest if manifest is not None and (digest is None or digest in manifest.jobs) else None
