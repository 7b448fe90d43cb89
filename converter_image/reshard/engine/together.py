"""Write the files of several target ranks in one pass over the source. The content of equal files is produced once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager
from contextvars import copy_context
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from reshard.engine.content import Content, Shared, produce_together
from reshard.engine.memory import Budget
from reshard.engine.rankfile import RankFile
from reshard.storage.traffic import Meter, Traffic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Executor
    from contextlib import AbstractContextManager
    from types import TracebackType

    from reshard.engine.content import Conditions
    from reshard.engine.gather import SourceFiles
    from reshard.engine.memory import PassBudget
    from reshard.engine.rankfile import Run, Written
    from reshard.spec.storage_options import Link
    from reshard.storage.protocol import Writer


def write_together(run: Run, contents: Sequence[tuple[int, ...]], budget: PassBudget, link: Link | None = None) -> list[Written]:
    """Write, verify and record the files of several target ranks in one pass over the source.

    Args:
        run: run that writes the files.
        contents: the ranks, divided into those whose files have the same content.
        budget: memory and threads of the pass.
        link: method of creating equal files from the first of them. None: they are written.

    Raises:
        BugError: a file differs from the source. It is kept for inspection.
        ReshardError: a file cannot be written or compared. Ranks that were recorded before remain.
    """
    task, made, shared = run.task, list[RankFile](), list[Shared]()
    ranks = sorted(chain.from_iterable(contents))
    plans = {plan.rank: plan for plan in task.planner.plans(ranks)}
    content = Meter()
    shares = _Shares(content, ranks)
    with (
        closing(task.source_files(content)) as source,
        ThreadPoolExecutor(budget.equal, thread_name_prefix="reshard-equal") as pool,
    ):
        for equal in contents:
            conditions = run.conditions(plans[equal[0]], Budget())
            files = [RankFile(run, plans[r], conditions, partial(shares.take, r), budget.upload) for r in equal]
            made += files
            # In the context of this operation: the threads of the pass have none.
            opened = [_Apart(file.opened()) for file in (files if link is None else files[:1])]
            links = [partial(copy_context().run, file.link_to, files[0], link) for file in files[1:]] if link is not None else []
            produced = _produced(run, files, opened, links, conditions, source, pool)
            shared.append(
                Shared(plans[equal[0]], produced, conditions.losses, conditions.fingerprints, partial(shares.add, equal))
            )
        produce_together(task, shared, source, run.cancellation, budget)
    return [file.written for file in made]


@contextmanager
def _produced(
    run: Run,
    files: Sequence[RankFile],
    opened: Sequence[_Apart],
    links: Sequence[Callable[[], None]],
    conditions: Conditions,
    source: SourceFiles,
    pool: Executor,
) -> Iterator[Content]:
    """Create equal files in a context that yields their content. At its end, complete them.

    The first file is compared with the source before the others are completed. The threads of the pool share the work for the
    others, which are opened too, or linked.
    """
    first, *others = opened
    with ExitStack() as stack:
        writers = [stack.enter_context(each) for each in others]
        with first as writer:
            content = Content(run.task, [writer, *writers], conditions, partial(_call_at_once, pool))
            yield content
            digest = content.finish()
            source.check_unchanged()
            for file in files:
                file.digest = digest
        for file in files[1:]:
            file.compared = True
        stack.pop_all()
        _call_at_once(pool, [*links, *(partial(each.__exit__, None, None, None) for each in others)])


def _call_at_once(pool: Executor, functions: Sequence[Callable[[], object]]) -> None:
    """Call functions in several threads, and in this one. Return after all of them.

    Raises:
        Exception: a function failed. The others were called too.
    """
    if not functions:
        return
    first, *others = functions
    futures = [pool.submit(each) for each in others]
    try:
        first()
    finally:
        wait(futures)
    for future in futures:
        future.result()


class _Apart:
    """A context in a copy of the context variables, which may overlap with others in any order and in any thread."""

    def __init__(self, inner: AbstractContextManager[Writer]) -> None:
        self._inner, self._variables = inner, copy_context()

    def __enter__(self) -> Writer:
        return self._variables.run(self._inner.__enter__)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return self._variables.run(self._inner.__exit__, kind, error, traceback)


class _Shares:
    """Divides what a pass fetches among its ranks, in the same way in every run."""

    def __init__(self, content: Meter, ranks: Sequence[int]) -> None:
        self._content, self._left = content, {rank: Traffic() for rank in ranks}
        self._taken = Traffic()
        self._lock = threading.Lock()

    def add(self, ranks: Sequence[int], fetched: Traffic) -> None:
        """Add what will be fetched for ranks whose files are equal."""
        with self._lock:
            for rank, share in zip(ranks, fetched.divided([1] * len(ranks)), strict=True):
                self._left[rank] = Traffic.sum([self._left[rank], share])

    def take(self, rank: int) -> Traffic:
        """Return the share of a rank that has been produced. The last one gets what was fetched in addition, as by retries."""
        with self._lock:
            share = self._left.pop(rank)
            if not self._left:
                share = Traffic(*(a - b for a, b in zip(self._content.traffic, self._taken, strict=True)))
            self._taken = Traffic.sum([self._taken, share])
            return share
