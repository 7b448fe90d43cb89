"""Grids and irregular boxes of the model, compared with numpy: coverage is proved, and lookups equal those in an array."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np
import pytest
from boxes_format import arrays, tilings
from effort import examples
from hypothesis import given
from hypothesis import strategies as st

from reshard.errors import DataError
from reshard.layout.box import Box
from reshard.model import Boxes, Grid, divide, gather_shards

if TYPE_CHECKING:
    from reshard.model.tiling import Numbers


def divided(shape: tuple[int, ...], boxes: list[Box]) -> tuple[Grid | Boxes, list[int]]:
    tiling, tiles = divide(shape, *arrays(shape, boxes), "w")
    return tiling, tiles.tolist()


def counts(shape: tuple[int, ...], boxes: list[Box]) -> Numbers:
    found = np.zeros(shape, np.int64)
    for box in boxes:
        found[box.slices()] += 1
    return found


@examples(400)
@given(tilings(), st.data())
def test_a_tiling_finds_the_elements_that_numpy_finds(case: tuple[tuple[int, ...], list[Box]], data: st.DataObject) -> None:
    shape, boxes = case
    tiling, tiles = divided(shape, boxes)
    assert all((tile >= 0) == (box.size > 0) for tile, box in zip(tiles, boxes, strict=True))
    assert all(tiling.box(tile) == box for tile, box in zip(tiles, boxes, strict=True) if tile >= 0)
    assert sorted(tile for tile in tiles if tile >= 0) == list(range(len(tiling)))
    each = [tiling.box(tile) for tile in range(len(tiling))]
    assert [Box(tuple(a), tuple(n)) for a, n in zip(*(found.tolist() for found in tiling.all_boxes()), strict=True)] == each
    owners = np.zeros(shape, np.int64)
    for tile in range(len(tiling)):
        owners[tiling.box(tile).slices()] = tile
    queries = data.draw(st.lists(st.tuples(*(st.tuples(st.integers(0, n), st.integers(0, n)) for n in shape)), max_size=5))
    asked = [Box(tuple(min(p) for p in q), tuple(abs(a - b) for a, b in q)) for q in queries]
    expected = [sorted(set(owners[box.slices()].ravel().tolist())) for box in asked]
    assert [tiling.intersecting(box) for box in asked] == expected
    starts, lengths = arrays(shape, asked)
    found, met = tiling.join(starts, starts + lengths)
    assert [sorted(met[found == i].tolist()) for i in range(len(asked))] == expected
    assert (np.diff(found) >= 0).all()


@examples(400)
@given(tilings(), st.data())
def test_a_set_with_a_missing_or_duplicate_element_is_refused_by_element(
    case: tuple[tuple[int, ...], list[Box]], data: st.DataObject
) -> None:
    shape, boxes = case
    for _ in range(data.draw(st.integers(1, 3))):
        if data.draw(st.booleans()) and boxes:
            boxes.pop(data.draw(st.integers(0, len(boxes) - 1)))
        else:
            box = data.draw(st.tuples(*(st.tuples(st.integers(0, n - 1), st.integers(1, n)) for n in shape)))
            boxes.append(Box(tuple(a for a, _ in box), tuple(min(n, m - a) for (a, n), m in zip(box, shape, strict=True))))
    distinct = list(dict.fromkeys(box for box in boxes if box.size))
    held = counts(shape, distinct)
    if (held == 1).all():
        assert len(divided(shape, boxes)[0]) == len(distinct)
        return
    with pytest.raises(DataError) as caught:
        divided(shape, boxes)
    first = tuple(int(i) for i in np.argwhere(held != 1)[0])
    assert caught.value.reason == ("ShardsOverlap" if held[first] else "ShardsDoNotCover")
    assert str(list(first)) in caught.value.what
    if held[first]:
        assert f"in {held[first]} shards" in caught.value.what


def test_equal_uneven_and_strided_cuts_are_grids() -> None:
    equal, _ = divided((8, 2), [Box((a, 0), (2, 2)) for a in (4, 0, 2, 6)])
    assert equal == Grid.equal((8, 2), (4, 1))
    assert divided((8, 2), [Box((a, 0), (2, 2)) for a in (4, 0, 2, 6)])[1] == [2, 0, 1, 3]
    # FSDP2 with TP cuts 10 rows at 0, 3, 5, 8, not in the order of ranks; an empty shard is at the end.
    uneven, tiles = divided((10,), [Box((0,), (3,)), Box((5,), (3,)), Box((3,), (2,)), Box((8,), (2,)), Box((10,), (0,))])
    assert uneven == Grid(((0, 3, 5, 8, 10),))
    assert tiles == [0, 2, 1, 3, -1]


def test_a_windmill_is_a_tiling_but_not_a_grid() -> None:
    windmill = [Box((0, 0), (1, 2)), Box((0, 2), (2, 1)), Box((2, 1), (1, 2)), Box((1, 0), (2, 1)), Box((1, 1), (1, 1))]
    tiling, _ = divided((3, 3), windmill)
    assert isinstance(tiling, Boxes)
    with pytest.raises(DataError, match=r"ShardsDoNotCover: tensor w: element \[1, 1\] is in no shard"):
        divided((3, 3), windmill[:4])
    # A hole and an overlap of one size do not make up for each other.
    with pytest.raises(DataError, match=r"ShardsDoNotCover: tensor w: element \[0, 2\]"):
        divided((3, 3), [*windmill[:1], Box((1, 1), (2, 1)), *windmill[2:]])


def test_tensors_without_dimensions_or_elements() -> None:
    scalar, tiles = divided((), [Box((), ()), Box((), ())])
    assert (len(scalar), tiles, scalar.box(0), scalar.intersecting(Box((), ()))) == (1, [0, 0], Box((), ()), [0])
    empty, tiles = divided((0, 4), [Box((0, 0), (0, 4))])
    assert (len(empty), tiles, empty.intersecting(Box((0, 0), (0, 4)))) == (0, [-1], [])
    assert len(Grid.equal((0, 4), (1, 2))) == 0
    with pytest.raises(DataError, match="ShardsDoNotCover"):
        divided((), [])
    with pytest.raises(DataError, match="ShardsDoNotCover"):
        divided((2, 3), [Box((2, 0), (0, 3))])


@pytest.mark.parametrize(
    "box", [((-1, 0), (3, 3)), ((0, 0), (4, 3)), ((3, 3), (1, 0)), ((0, 0), (-1, 3)), ((1, 0), (1 << 62, 3))]
)
def test_a_shard_outside_the_tensor_is_refused(box: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(DataError, match="ShardOutside"):
        divided((3, 2), [Box(*box)])


def test_shards_cut_irregularly_along_many_dimensions() -> None:
    shape = (1 << 40,) * 7  # too many points for one machine word, so that coordinates are ranked
    halves = [Box.whole(shape)]
    for axis in range(6):
        box = halves.pop()
        for a in (0, 1 << 39):
            start, lengths = list(box.start), list(box.shape)
            start[axis], lengths[axis] = a, 1 << 39
            halves.append(Box(tuple(start), tuple(lengths)))
    assert isinstance(divided(shape, halves)[0], Boxes)
    with pytest.raises(DataError, match="ShardsDoNotCover"):
        divided(shape, halves[1:])
    with pytest.raises(DataError, match="ShardsTooIrregular"):
        divided(shape, [*halves[:-1], Box(halves[-1].start, (*halves[-1].shape[:6], 1))])


def test_copies_of_a_tile_are_all_kept() -> None:
    boxes = [Box((2,), (2,)), Box((0,), (2,)), Box((4,), (0,)), Box((0,), (2,))]
    tiling, tiles = divide((4,), *arrays((4,), boxes), "w")
    numbers = np.arange(4)
    shards = gather_shards(tiling, tiles, (numbers, numbers * 10, numbers + 100), "w")
    assert [[(p.file, p.offset, p.length) for p in shards.places(t)] for t in range(2)] == [
        [(1, 10, 101), (3, 30, 103)],
        [(0, 0, 100)],
    ]


def million(side: int, seed: int) -> tuple[Numbers, Numbers]:
    """side * side boxes of a square, each pair of neighbours joined and cut at random the other way: no grid."""
    random = np.random.default_rng(seed)
    rows, columns = (found.ravel() for found in np.mgrid[0:side, 0 : side // 2])
    at = random.integers(1, 20, len(rows))
    first = np.stack([rows * 10, columns * 20], 1)
    second = np.stack([rows * 10, columns * 20 + at], 1)
    starts = np.concatenate([first, second])
    ends = np.concatenate([np.stack([rows * 10 + 10, columns * 20 + at], 1), np.stack([rows * 10 + 10, columns * 20 + 20], 1)])
    return starts, ends - starts


def test_large_irregular_sets_meet_each_other_in_each_element() -> None:
    shape = (1000, 1000)
    starts, lengths = million(100, 1)
    tiling, tiles = divide(shape, starts, lengths, "w")
    assert isinstance(tiling, Boxes)
    others, extents = million(100, 2)
    boxes, met = tiling.join(others, others + extents)
    low = np.maximum(others[boxes], tiling.starts.T[met])
    high = np.minimum((others + extents)[boxes], tiling.ends.T[met])
    assert (low < high).all()
    assert (high - low).prod(axis=1).sum() == prod(shape)
    assert sorted(tiles.tolist()) == list(range(len(starts)))
