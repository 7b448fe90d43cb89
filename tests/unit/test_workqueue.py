"""The operator's queue: the same results as a linear search through all keys, without its cost."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from reshard_operator.workqueue import WorkQueue

KEYS = st.sampled_from("abcd")
STEPS = st.one_of(
    st.tuples(st.just("add"), KEYS, st.integers(0, 9)),
    st.tuples(st.just("pop"), st.integers(0, 9)),
    st.tuples(st.just("done"), KEYS),
)


@given(st.lists(STEPS, max_size=40))
def test_it_pops_the_key_that_a_linear_search_finds(steps: list[tuple[Any, ...]]) -> None:
    queue: WorkQueue[str] = WorkQueue()
    due: dict[str, float] = {}
    busy: set[str] = set()
    for step, *arguments in steps:
        if step == "add":
            key, when = arguments
            queue.add(key, when)
            due[key] = min(when, due.get(key, when))
        elif step == "pop":
            (now,) = arguments
            free = [(when, key) for key, when in due.items() if key not in busy]
            expected = min(free)[1] if free and min(free)[0] <= now else None
            assert queue.pop(now) == expected
            if expected is not None:
                del due[expected]
                busy.add(expected)
        elif arguments[0] in busy:
            queue.done(arguments[0])
            busy.discard(arguments[0])
        assert queue.next_due() == min((when for key, when in due.items() if key not in busy), default=None)


class Compared(float):
    """A due time that counts how often it is compared."""

    count = 0

    def __lt__(self, other: float) -> bool:
        Compared.count += 1
        return float(self) < float(other)


def test_a_pop_does_not_look_at_every_key() -> None:
    queue: WorkQueue[int] = WorkQueue()
    keys = 4096
    for key in range(keys):
        queue.add(key, Compared(key * 7919 % keys))
    Compared.count = 0
    assert [queue.pop(keys) is not None for _ in range(keys)] == [True] * keys
    assert Compared.count < keys * 40
