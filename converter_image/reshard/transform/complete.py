"""Completing a checkpoint whose ranks were written by processes of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from reshard.errors import MissingInputError, RequestError
from reshard.spec.ranks import parse_ranks
from reshard.spec.request import Options
from reshard.storage import open_store
from reshard.target.folder import TargetFolder
from reshard.target.lock import writing
from reshard.transform.commit import commit_job, own_manifest

if TYPE_CHECKING:
    from reshard.checkpoint.manifest import Manifest
    from reshard.spec.access import Access


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
        The manifest of the checkpoint; as long as parts of it are missing, that of a part: see `reshard.target.parts.is_whole`.

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
