"""Boxes, layouts and tiles: the arithmetic under everything, against numpy."""

from __future__ import annotations

import time
from math import prod
from typing import TYPE_CHECKING

import models
import numpy as np
import pytest
from definition import held
from disk import layout
from effort import examples
from hypothesis import given
from hypothesis import strategies as st

from reshard.errors import BugError, DataError
from reshard.layout import Layout, cell_box
from reshard.layout.box import Box, contiguous_runs
from reshard.layout.tiles import flat_span, next_tile
from reshard.plan.geometry import Geometry, Overlap, geometry, prove
from reshard.plan.replicas import choose

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPES = st.lists(st.integers(1, 6), max_size=4).map(tuple)


@st.composite
def boxes(draw: Callable[..., int], shape: tuple[int, ...]) -> Box:
    start = tuple(draw(st.integers(0, n - 1)) for n in shape)
    return Box(start, tuple(draw(st.integers(1, n - a)) for a, n in zip(start, shape, strict=True)))


@given(SHAPES.flatmap(lambda s: st.tuples(st.just(s), boxes(s), boxes(s))))
def test_boxes_equal_numpys_slices(case: tuple[tuple[int, ...], Box, Box]) -> None:
    shape, a, b = case
    whole = np.arange(prod(shape)).reshape(shape)
    common = a.intersect(b)
    both = np.intersect1d(whole[a.slices()], whole[b.slices()])
    assert (whole[common.slices()].ravel().tolist() if common else []) == both.tolist()
    length, starts = contiguous_runs(shape, a)
    assert [start + i for start in starts for i in range(length)] == whole[a.slices()].ravel().tolist()
    first, end = flat_span(shape, a)
    assert (first, end - 1) == (whole[a.slices()].min(), whole[a.slices()].max())


@given(SHAPES, st.integers(1, 50))
def test_tiles_follow_each_other_without_gaps(shape: tuple[int, ...], most: int) -> None:
    whole = np.arange(prod(shape)).reshape(shape)
    position, seen = 0, []
    while position < prod(shape):
        tile = next_tile(shape, position, most)
        assert 1 <= tile.size <= most
        seen += whole[tile.slices()].ravel().tolist()
        position += tile.size
    assert seen == list(range(prod(shape)))


@examples(300)
@given(st.integers(1, 32).flatmap(lambda n: st.tuples(models.cuts(n, 2), models.cuts(n, 0), models.cuts(n, 3))))
def test_a_rank_holds_the_slice_that_numpy_splits_off(found: tuple[models.Cut, ...]) -> None:
    for cut in found:
        made = layout(cut)
        shape = tuple(made.parts)
        for rank, indexes in enumerate(held(shape, cut)):
            box = made.box(shape, rank)
            assert np.arange(prod(shape)).reshape(shape)[box.slices()].tolist() == indexes.tolist()


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (Layout((), ()), "LayoutInvalid"),
        (Layout((0,), ((),)), "LayoutInvalid"),
        (Layout((-2,), ((),)), "LayoutInvalid"),
        (Layout((1 << 31, 1 << 31), ((),)), "LayoutInvalid"),
        (Layout((2,), ((1,),)), "LayoutInvalid"),
        (Layout((2,), ((-2,),)), "LayoutInvalid"),
        (Layout((2, 2), ((0,), (0,))), "LayoutInvalid"),
        (Layout((2, 2), ((0, 0),)), "LayoutInvalid"),
        (Layout((4,), ((),), 1, 3), "OptimizerShardInvalid"),
        (Layout((4,), ((),), 1, 8), "OptimizerShardInvalid"),
        (Layout((4,), ((),), 1, -2), "OptimizerShardInvalid"),
        (Layout((4,), ((),), 2, 4), "OptimizerShardInvalid"),
        (Layout((2,), (), 1, 2), "LayoutInvalid"),
    ],
)
def test_a_layout_that_contradicts_itself_is_refused(made: Layout, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        _ = made.parts
    assert caught.value.reason == reason


def test_an_uneven_split_is_refused_with_its_dimension() -> None:
    with pytest.raises(DataError, match=r"LayoutDoesNotDivide: dimension 1 of length 10 cannot be divided into 4 equal slices"):
        Layout((4,), ((), (0,))).box((8, 10), 0)
    with pytest.raises(DataError, match="LayoutRankMismatch"):
        Layout((4,), ((), (0,))).box((8,), 0)


@given(st.tuples(st.integers(1, 6), st.integers(1, 6)), st.tuples(st.integers(1, 6), st.integers(1, 6)))
def test_a_geometry_is_exact(before: tuple[int, int], after: tuple[int, int]) -> None:
    shape = (before[0] * after[0], before[1] * after[1])
    whole = np.arange(prod(shape)).reshape(shape)
    found = geometry(shape, before, cell_box(shape, after, (after[0] - 1, 0)))
    prove(found)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reshard.plan.geometry._MOST_COMPARED", 0)
        prove(found)
    filled = np.full(found.box.shape, -1)
    for cell, overlap in zip(found.cells, found.overlaps, strict=True):
        start = tuple(c * n for c, n in zip(cell, overlap.source_shape, strict=True))
        filled[overlap.target.slices()] = whole[Box(start, overlap.source_shape).slices()][overlap.source.slices()]
    assert filled.tolist() == whole[found.box.slices()].tolist()


def overlap(source: int, target: int, n: int) -> Overlap:
    return Overlap(Box((source,), (n,)), Box((target,), (n,)), target, target + n, (4,))


@pytest.mark.parametrize(
    "overlaps",
    [
        (overlap(0, 0, 3),),
        (overlap(0, 0, 3), overlap(0, 2, 2)),
        (overlap(0, 0, 3), overlap(4, 3, 1)),
        (overlap(0, 0, 5),),
        (overlap(0, 0, 2), overlap(0, 0, 2)),
    ],
)
@pytest.mark.parametrize("most_compared", [256, 1])
def test_an_inexact_geometry_is_refused(
    overlaps: tuple[Overlap, ...], most_compared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reshard.plan.geometry._MOST_COMPARED", most_compared)
    with pytest.raises(BugError, match="PlanNotExact"):
        prove(Geometry(Box((0,), (4,)), ((0,),) * len(overlaps), overlaps))


@given(st.lists(st.sets(st.integers(0, 15), min_size=1, max_size=5), min_size=1, max_size=6), st.integers(0, 15))
def test_few_replicas_are_chosen_and_each_has_its_slices(groups: list[set[int]], pivot: int) -> None:
    asked = frozenset(tuple(sorted(group)) for group in groups)
    chosen = choose(asked, pivot, 16)
    assert chosen.keys() == asked
    assert all(rank in group for group, rank in chosen.items())
    fewest = min(n for n in range(1, 7) if _coverable(asked, n))
    assert len(set(chosen.values())) == fewest


def test_a_choice_among_thousands_of_replicas_is_fast() -> None:
    cells = 6000
    began = time.monotonic()
    chosen = choose(frozenset((cell, cell + cells) for cell in range(cells)), cells, 2 * cells)
    assert set(chosen.values()) == set(range(cells, 2 * cells))
    assert time.monotonic() - began < 5


def _coverable(groups: frozenset[tuple[int, ...]], n: int, taken: frozenset[int] = frozenset()) -> bool:
    left = [group for group in groups if taken.isdisjoint(group)]
    return not left or (n > 0 and any(_coverable(groups, n - 1, taken | {rank}) for rank in left[0]))
