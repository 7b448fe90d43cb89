"""Process items concurrently, for work that mostly waits for a store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")
R = TypeVar("R")

_AT_ONCE = 32


def parallel(
    work: Callable[[T], R], items: Iterable[T], *, at_once: int = _AT_ONCE, check: Callable[[], None] = lambda: None
) -> Iterator[R]:
    """Yield `work(item)` for each item, in order.

    Args:
        work: function that is called from several threads, with the context variables of the caller. After a failure, it is not
            called for other items.
        items: items to process.
        at_once: maximum number of items processed at a time.
        check: function that is called before each item, and raises to cancel the rest.
    """

    def checked(item: T) -> R:
        check()
        return work(item)

    waiting = list(items)
    if len(waiting) < 2 or at_once < 2:
        yield from map(checked, waiting)
        return
    with ThreadPoolExecutor(min(at_once, len(waiting)), thread_name_prefix="reshard-parallel") as pool:
        context = copy_context()
        yield from pool.map(lambda item: context.copy().run(checked, item), waiting)
