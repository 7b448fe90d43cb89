"""Plan a transform before data is moved."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from reshard.engine.content import requests_of
from reshard.engine.memory import budget, default_workers
from reshard.engine.task import summary_of
from reshard.progress import Cancellation, Silent
from reshard.target.lock import writing
from reshard.telemetry import durations, operation, phase
from reshard.transform.checks import open_target, with_output
from reshard.transform.inputs import Inputs
from reshard.transform.pods import memory_of, options_of
from reshard.transform.preflight import run_preflight
from reshard.transform.ranks import passes_of
from reshard.transform.start import start

if TYPE_CHECKING:
    from reshard.plan import Planner, Summary
    from reshard.progress import Progress
    from reshard.spec.request import Request
    from reshard.transform.pods import Pods, PodsOption


@dataclass(frozen=True, slots=True)
class PlanResult:
    """The plan of a transform.

    Attributes:
        summary: summary of what all requested ranks read.
        memory_bytes: maximum memory of the transform.
        workers: number of concurrent ranks that `memory_bytes` assumes.
        digest: digest of source, strategies and options.
        format: format of the target's files.
        finished_ranks: ranks that are already finished.
        complete: whether nothing is left to do.
        notes: messages for the user.
        planner: planner of all target ranks, for details such as the plan of one rank.
        rank_requests: number of requests to object stores for the content of the first requested rank.
        pods: compared ways to divide the ranks among pods, smallest groups first.
        durations: seconds of each phase, see `reshard.telemetry.durations`.
    """

    summary: Summary
    memory_bytes: int
    workers: int
    digest: str
    format: str
    finished_ranks: tuple[int, ...]
    complete: bool
    notes: tuple[str, ...]
    planner: Planner
    rank_requests: int = 0
    pods: tuple[PodsOption, ...] = ()
    durations: dict[str, float] = field(default_factory=dict)


def plan_transform(
    request: Request,
    *,
    workers: int | None = None,
    pods: Pods | None = None,
    write: bool = False,
    owner: str | None = None,
    progress: Progress | None = None,
    cancellation: Cancellation | None = None,
) -> PlanResult:
    """Plan a transform, after all checks that can be made before data is moved.

    Args:
        request: request of the transform.
        workers: number of concurrent ranks.
        pods: pods that will write the ranks, instead of one process.
        write: whether to write the plan to the target, for processes that then write the ranks without reading all headers again.
        owner: owner of the target's lock, shared by processes with the same owner.
        progress: receiver of the progress.
        cancellation: object that cancels the work from another thread.

    Raises:
        ReshardError: the transform would fail. The error is the one that it would fail with.
    """
    request, cancellation = with_output(request), cancellation or Cancellation()
    workers, progress = workers or default_workers(), progress or Silent()
    with operation("plan_transform"):
        with phase("plan"):
            inputs = Inputs(request, cancellation)
            target = open_target(inputs)
            preflight = run_preflight(inputs, target, progress, workers=workers, cancellation=cancellation)
        task = preflight.task
        if write and not preflight.complete:
            with writing(target, task, owner=owner or f"task-{task.digest}"):
                start(task, target, cancellation)
        taken = durations()
    summary = summary_of(task)
    memory = memory_of(preflight, summary, workers, passes_of(task, target.store, task.scope), parses=not task.indexed)
    rank_requests = requests_of(task, target.store, task.scope[0], budget(min(workers, len(task.scope)))) if task.scope else 0
    finished_ranks = tuple(rank for rank in task.scope if rank not in preflight.left)
    return PlanResult(
        summary=summary,
        memory_bytes=memory,
        workers=workers,
        digest=task.digest,
        format=task.output.name,
        finished_ranks=finished_ranks,
        complete=preflight.complete,
        notes=task.notes,
        planner=task.planner,
        rank_requests=rank_requests,
        pods=options_of(preflight, summary, pods) if pods is not None else (),
        durations=taken,
    )
