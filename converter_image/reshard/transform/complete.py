"""Complete a checkpoint whose ranks were written by separate processes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from reshard.errors import DataError, LockedError, MissingInputError, RequestError
from reshard.progress import Cancellation
from reshard.source.listing import preview
from reshard.spec.ranks import parse_ranks
from reshard.spec.request import Options
from reshard.storage import open_store
from reshard.target.folder import TargetFolder
from reshard.target.lock import dismiss_writers, writing
from reshard.telemetry import operation
from reshard.transform.commit import commit_task, ranks_of, ranks_unfinished, shape_of, would_lose, written_ranks
from reshard.transform.documents import changed_documents, check_exists, expected_documents

if TYPE_CHECKING:
    from collections.abc import Collection

    from reshard.checkpoint.manifest import Manifest
    from reshard.spec.request import Verification
    from reshard.spec.storage_options import StorageOptions
    from reshard.target.snapshot import TargetSnapshot, TaskRecord


@operation("commit_checkpoint")
def commit_checkpoint(
    target_url: str,
    *,
    ranks: str | None = None,
    digest: str | None = None,
    owner: str | None = None,
    storage_options: StorageOptions | None = None,
    cancellation: Cancellation | None = None,
) -> Manifest:
    """Complete a checkpoint whose ranks, or stages, were written without commit.

    Args:
        target_url: URL or path of the target.
        ranks: target ranks that make the checkpoint complete, such as "0,2-5". None means all.
        digest: digest of the task. None means the only task that was started in the target, or all stages of one checkpoint.
        owner: owner that was passed to the processes that wrote the ranks.
        storage_options: options of the object store, if the target is in one.
        cancellation: object that cancels the commit from another thread.

    Returns:
        The manifest of the checkpoint. While stages are missing: the manifest of a stage, see `reshard.target.parts.is_whole`.

    Raises:
        LockedError: other processes still write to the target.
        DataError: the checkpoint is complete already, and a file has another size.
        MissingInputError: a rank is not finished, no task was started in the target, or a file does not exist.
        RequestError: several transforms were started in the target.
    """
    cancellation = cancellation or Cancellation()
    target = TargetFolder(open_store(target_url, storage_options), Options().file_mode)
    snapshot = target.observe()
    started = [task for task in snapshot.tasks if digest in {None, task.digest}]
    if not started and (manifest := _completed(snapshot, digest)) is not None:
        _check_complete(target, manifest, ranks)
        return manifest
    if not started:
        raise MissingInputError(
            "NothingToCommit", "no transform was started in this target", where=target_url, fix="run `reshard transform` first"
        )
    if len({task.whole or task.digest for task in started}) > 1:
        raise RequestError(
            "AmbiguousTransforms",
            f"{len(started)} transforms were started in this target: {', '.join(task.digest[:12] for task in started)}",
            where=target_url,
            fix="rerun, with --overwrite, the transform that you want to keep; this deletes the state of the others",
        )
    committed = None
    for task in started:
        target = replace(target, mode=task.mode)
        writer = owner or f"task-{task.digest}"
        with writing(target, task, owner=writer) as held:
            state = held.task(task.digest)
            if committed is not None and state.read() is None:  # the previous stage was the last one to be finished
                break
            wanted = None if ranks is None else parse_ranks(ranks, state.draft().target_ranks)
            committed = commit_task(held, task, held.observe(), wanted, cancellation)
            dismiss_writers(held, task, writer)
    assert committed is not None  # noqa: S101 - at least one task was started
    return committed


@operation("commit_checkpoint")
def commit_if_complete(
    target_url: str,
    digest: str,
    *,
    ranks: Collection[int] | None = None,
    verification: Verification = "None",
    storage_options: StorageOptions | None = None,
    cancellation: Cancellation | None = None,
) -> Manifest | None:
    """Complete the checkpoint of a task unless other processes still write ranks. The last process to finish finds no other.

    A process calls this function after it has released the lock under which it wrote its ranks. Of several processes that finish
    at the same time, one commits.

    Args:
        target_url: URL or path of the target.
        digest: digest of the task.
        ranks: target ranks that make the checkpoint complete. None means the finished ones.
        verification: ranks that an earlier run verified less than this are not finished. Another process writes them again.
        storage_options: options of the object store, if the target is in one.
        cancellation: object that cancels the commit from another thread.

    Returns:
        The manifest, or None if other processes still write to the target, a rank is missing, or ranks of another checkpoint
        would be lost.

    Raises:
        MissingInputError: a file of a finished rank was deleted, has changed, or is not verified.
    """
    cancellation = cancellation or Cancellation()
    target = TargetFolder(open_store(target_url, storage_options), Options().file_mode)
    snapshot = target.observe()
    if (task := snapshot.find_task(digest)) is None:  # another process was the last
        return _completed(snapshot, digest)
    if _finished(target, task, snapshot, ranks) is None:  # do not keep out processes that are about to start
        return None
    target = replace(target, mode=task.mode)
    try:
        with writing(target, task, owner=None) as held:
            return _commit_alone(held, digest, ranks, verification, cancellation)
    except LockedError:
        return None


def _commit_alone(
    target: TargetFolder, digest: str, ranks: Collection[int] | None, verification: Verification, cancellation: Cancellation
) -> Manifest | None:
    """Complete the checkpoint of a task whose lock only this process holds. See `commit_if_complete`."""
    snapshot = target.observe()  # others may have written before this process held the lock
    if (task := snapshot.find_task(digest)) is None:
        return _completed(snapshot, digest)
    if (finished := _finished(target, task, snapshot, ranks)) is None:
        return None
    draft = target.task(digest).draft()
    if task.replaces and would_lose(target, snapshot, finished, ranks_of(draft), shape_of(draft)):
        return None
    return commit_task(target, task, snapshot, finished, cancellation, verification=verification)


def _finished(
    target: TargetFolder, task: TaskRecord, snapshot: TargetSnapshot, ranks: Collection[int] | None
) -> tuple[int, ...] | None:
    """Return those of the ranks that get a file (None means the recorded ones), or None if one of them is not recorded."""
    done = written_ranks(task, target, snapshot)
    wanted = {*(done if ranks is None else ranks)}
    if task.stage is not None:
        wanted &= {*ranks_of(target.task(task.digest).draft())}
    return tuple(sorted(wanted)) if wanted <= done else None


def _completed(snapshot: TargetSnapshot, digest: str | None) -> Manifest | None:
    """Return the manifest of the target if this task (None means any task) wrote the checkpoint or a stage of it."""
    manifest = snapshot.manifest
    return manifest if manifest is not None and (digest is None or digest in manifest.tasks) else None


def _check_complete(target: TargetFolder, manifest: Manifest, ranks: str | None) -> None:
    """Check that the files of a complete checkpoint exist, with their sizes, and that it has these ranks (None means any).

    Raises:
        DataError: a file has another size, or an index file another content.
        MissingInputError: a file does not exist, or the checkpoint lacks a rank.
    """
    documents = expected_documents(manifest)
    there = check_exists(target.store, manifest, documents)
    resized = (record.path for record in manifest.files if there[record.path].size != record.size)
    if changed := [*resized, *changed_documents(target.store, documents)]:
        raise DataError(
            "ContentChanged",
            f"the content of {preview(changed)} has changed",
            where=target.store.url,
            fix="restore the file, or run the same transform again with --overwrite to rewrite changed files",
        )
    wanted = parse_ranks(ranks, manifest.target_ranks) if ranks is not None and manifest.index is None else ()
    there_ranks = parse_ranks(manifest.ranks) if manifest.ranks else ()
    if missing := tuple(rank for rank in wanted if rank not in there_ranks):
        raise ranks_unfinished(target, wanted, missing)
