"""What can be said, and refused, before the first byte is moved: the beginning of every transform, and all of a plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reshard.storage import open_store
from reshard.target.folder import TargetFolder
from reshard.transform.begin import refuse
from reshard.transform.commit import covers, finished
from reshard.transform.identify import identify
from reshard.transform.preflight import check_copy_mode, check_places, check_space
from reshard.transform.prepare import prepare, resume

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reshard.engine.job import Job
    from reshard.progress import Cancellation, Progress
    from reshard.spec.request import Request
    from reshard.target.standing import Standing


@dataclass(frozen=True, slots=True)
class Opened:
    """A transform about to begin.

    Attributes:
        job: what is to be done.
        target: the target that it is written to.
        standing: what is there.
        sizes: bytes of the file of each rank that was asked for.
        left: the ranks that are not finished.
    """

    job: Job
    target: TargetFolder
    standing: Standing
    sizes: Mapping[int, int]
    left: tuple[int, ...]

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return not self.left and covers(self.standing.own(self.job), self.job)


def open_transform(
    request: Request,
    progress: Progress,
    *,
    workers: int,
    cancellation: Cancellation,
    commit: bool = True,
    resumable: bool = False,
    thorough: bool = False,
) -> Opened:
    """Prepare a transform, and check all that can be checked. Nothing is left at the target.

    Args:
        request: what to do.
        progress: is told how far it is, and what the user should know.
        workers: how many files to read at a time.
        cancellation: cancels it.
        commit: whether the checkpoint is to be completed at once.
        resumable: whether the job may be one that a plan has left at the target, which was checked then.
        thorough: whether to read the finished files again, to find what has changed since.

    Raises:
        ReshardError: what would go wrong.
    """
    check_places(request)
    target = TargetFolder(open_store(request.target, request.access.target), request.options.file_mode)
    check_copy_mode(request, target.store)
    standing = target.observe()
    job = resume(request, target, standing, cancellation) if resumable else None
    if job is None:
        job, standing = prepare(request, progress, workers=workers, cancellation=cancellation), target.observe()
        job = identify(job, target, standing, progress, cancellation, workers=workers)
    cancellation.check()
    for note in job.notes:
        progress.note(note)
    sizes = job.file_sizes(job.scope)  # what no file can hold is refused now
    refuse(job, target, standing, commit=commit)
    left = unfinished(job, target, standing, cancellation, thorough=thorough)
    opened = Opened(job, target, standing, sizes, left)
    if not (job.planned or opened.complete):
        target.store.check_writable()
        check_space(target.store, sum(sizes[rank] for rank in opened.left))
    return opened


def unfinished(
    job: Job, target: TargetFolder, standing: Standing, cancellation: Cancellation, *, thorough: bool = False
) -> tuple[int, ...]:
    """The ranks that are still to be written; `thorough` reads the others' files again."""
    done = finished(job, target, standing, cancellation, thorough=thorough)
    return tuple(rank for rank in job.scope if rank not in done)
