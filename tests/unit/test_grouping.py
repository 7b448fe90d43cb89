"""The division of target ranks among pods."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from reshard.spec.ranks import Grouping

NUMBERS = st.integers(1, 12)


@given(st.lists(st.integers(0, 1000), unique=True, max_size=200), NUMBERS, NUMBERS, NUMBERS)
def test_every_rank_is_in_one_group(ranks: list[int], run: int, count: int, stride: int) -> None:
    grouping = Grouping(run, count, max(run, stride))
    groups = [grouping.group(ranks, index) for index in range(grouping.groups(len(ranks)))]
    assert all(0 < len(group) <= grouping.size for group in groups)
    assert sorted(rank for group in groups for rank in group) == sorted(ranks)
    assert grouping.group(ranks, len(groups) + grouping.stride) == ()


@given(st.integers(0, 200), NUMBERS)
def test_consecutive_ranks(ranks: int, size: int) -> None:
    grouping = Grouping.consecutive(size)
    groups = [grouping.group(range(ranks), index) for index in range(grouping.groups(ranks))]
    assert groups == [tuple(range(at, min(at + size, ranks))) for at in range(0, ranks, size)]


def test_replicas_of_the_neighbours_in_a_cut() -> None:
    grouping = Grouping(run=2, count=3, stride=4)
    assert [grouping.group(range(24), index) for index in range(grouping.groups(24))] == [
        (0, 1, 4, 5, 8, 9),
        (2, 3, 6, 7, 10, 11),
        (12, 13, 16, 17, 20, 21),
        (14, 15, 18, 19, 22, 23),
    ]
