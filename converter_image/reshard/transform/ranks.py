"""Write several ranks: those that need the same bytes in one pass over the source, and the others one by one."""

from __future__ import annotations

from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextvars import copy_context
from functools import partial
from threading import Semaphore
from typing import TYPE_CHECKING

from reshard.engine.memory import budget, pass_budget, pass_limits
from reshard.engine.rankfile import write_rank
from reshard.engine.together import write_together
from reshard.plan.passes import equal_targets, passes
from reshard.storage.cancellable import cancelled_by

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from reshard.engine.rankfile import Run, Written
    from reshard.engine.task import Task
    from reshard.spec.storage_options import Link
    from reshard.storage.protocol import Store


def passes_of(task: Task, target: Store, ranks: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Divide target ranks among passes over the source. Those that share nothing have a pass of their own."""
    if len(ranks) < 2 or task.request.options.copy_mode == "Server":
        return tuple((rank,) for rank in ranks)
    sizes = task.file_sizes(ranks)
    limits = pass_limits(task.source, target, max(sizes.values()), encrypts=task.cipher is not None)
    return passes(task.planner, ranks, limits)


def most_files(task: Task, target: Store, passes: Iterable[Sequence[int]]) -> int:
    """Return the largest number of files in a pass. Equal files count as one, unless each is encrypted or buffered separately."""
    return max((_files(target, _contents(task, some)) for some in passes if len(some) > 1), default=0)


def _contents(task: Task, ranks: Sequence[int]) -> Sequence[tuple[int, ...]]:
    """Divide the ranks of a pass into those whose files have the same content. Encrypted files never have."""
    return equal_targets(task.planner, ranks) if task.cipher is None else [(rank,) for rank in ranks]


def _files(target: Store, contents: Iterable[Sequence[int]]) -> int:
    return sum(len(ranks) if target.remote else 1 for ranks in contents)


def write_ranks(run: Run, ranks: Sequence[int], workers: int) -> list[Written]:
    """Write these ranks. The first failure cancels the others. Finished ranks are kept."""
    found = passes_of(run.task, run.state.target.store, ranks)
    together, alone = [each for each in found if len(each) > 1], [rank for rank, *others in found if not others]
    try:
        written = list["Written"]()
        with cancelled_by(run.cancellation.check):
            for some in together:
                contents = _contents(run.task, some)
                store = run.state.target.store
                budget_of_pass = pass_budget(_files(store, contents), workers, run.task.source, store)
                written += write_together(run, contents, budget_of_pass, _link(run, contents))
            written += _write_alone(run, alone, workers)
    except BaseException:
        run.cancellation.cancel()
        raise
    return sorted(written, key=lambda each: each.record.rank)


def _link(run: Run, contents: Iterable[Sequence[int]]) -> Link | None:
    """Return how equal files are created from the first of them, or None if they are written."""
    how = run.task.request.options.link_replicas
    if how == "Never" or all(len(ranks) == 1 for ranks in contents):
        return None
    return how if run.state.target.store.can_link(run.state.folder, how) else None


def _write_alone(run: Run, ranks: Sequence[int], workers: int) -> list[Written]:
    """Write these ranks one by one: `workers` at a time, and another one is verified meanwhile."""
    share, slots = budget(min(workers, max(1, len(ranks)))), Semaphore(workers)
    with ThreadPoolExecutor(workers + 1, thread_name_prefix="reshard-rank") as pool:
        futures = [
            pool.submit(copy_context().run, partial(write_rank, run, rank, share, slots))  # the context of this operation
            for rank in ranks
        ]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            return [future.result() for future in (futures if len(done) == len(futures) else done)]
        except BaseException:
            run.cancellation.cancel()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
