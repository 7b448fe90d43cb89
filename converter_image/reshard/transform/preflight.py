"""Preflight of a transform: all checks that are possible before data is moved. A plan consists of these checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reshard.transform.checks import bytes_to_write, check_space
from reshard.transform.commit import covers, finished
from reshard.transform.documents import changed_documents, expected_documents, strategy_document
from reshard.transform.draft import draft_manifest
from reshard.transform.identify import identify
from reshard.transform.prepare import prepare, resume
from reshard.transform.start import refuse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reshard.engine.task import Task
    from reshard.progress import Cancellation, Progress
    from reshard.target.folder import TargetFolder
    from reshard.target.snapshot import TargetSnapshot
    from reshard.transform.inputs import Inputs


@dataclass(frozen=True, slots=True)
class Preflight:
    """The result of a preflight.

    Attributes:
        task: task of the transform.
        target: target of the task.
        snapshot: state of the target at one moment.
        sizes: file size of each requested rank in bytes.
        left: ranks that are not finished.
        complete: True if nothing is left to do.
    """

    task: Task
    target: TargetFolder
    snapshot: TargetSnapshot
    sizes: Mapping[int, int]
    left: tuple[int, ...]
    complete: bool


def run_preflight(  # noqa: PLR0913 - what is read, and how
    inputs: Inputs,
    target: TargetFolder,
    progress: Progress,
    *,
    workers: int,
    cancellation: Cancellation,
    commit: bool = True,
    resumable: bool = False,
    thorough: bool = False,
) -> Preflight:
    """Prepare a transform, and run all checks that are possible. No checkpoint data is written.

    Args:
        inputs: inputs of the request.
        target: target of the request.
        progress: receiver of the progress and of notes for the user.
        workers: number of files read at a time.
        cancellation: object that cancels the work from another thread.
        commit: whether the checkpoint will be completed at once.
        resumable: whether to use the task of a plan in the target, which was checked when the plan was written.
        thorough: whether finished files are read again, to find changes since they were written.

    Raises:
        ReshardError: the transform would fail. The error is the one that it would fail with.
    """
    task = None
    if resumable:
        snapshot = target.observe()
        task = resume(inputs, target, snapshot)
    if task is None:
        task = prepare(inputs, progress, workers=workers)
        snapshot = target.observe()  # while the headers were read, other processes of the same task may have written ranks
        task = identify(task, target, snapshot, progress, cancellation, workers=workers)
    cancellation.check()
    for note in task.notes:
        progress.note(note)
    sizes = task.file_sizes(task.scope)  # refuse now what no file can hold
    if task.request.options.write_strategy and not task.planned:
        strategy_document(draft_manifest(task, {}))  # likewise
    refuse(task, target, snapshot, commit=commit)
    left = unfinished(task, target, snapshot, cancellation, thorough=thorough)
    own = snapshot.manifest_for(task)
    complete = not left and own is not None and covers(own, task) and not changed_documents(target.store, expected_documents(own))
    preflight = Preflight(task, target, snapshot, sizes, left, complete)
    if not (task.planned or preflight.complete):
        target.store.check_writable()
        linked = task.request.options.link_replicas != "Never"  # where this is not possible, the space is checked again
        check_space(target.store, bytes_to_write(task, sizes, preflight.left, linked=linked))
    return preflight


def unfinished(
    task: Task, target: TargetFolder, snapshot: TargetSnapshot, cancellation: Cancellation, *, thorough: bool = False
) -> tuple[int, ...]:
    """Return the ranks that are not finished. With `thorough`, the files of the others are read again."""
    done = finished(task, target, snapshot, cancellation, thorough=thorough)
    return tuple(rank for rank in task.scope if rank not in done)
