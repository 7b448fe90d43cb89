"""Random DTensors that real torch saved on meshes of one to three dimensions: the product reads what torch gathers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from torch_checkpoints import describe, read

from reshard.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WORLDS = {8: [[8], [2, 4], [4, 2], [2, 2, 2]], 6: [[6], [2, 3], [3, 2]]}
COUNT = 250


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest, written: Callable[..., tuple[Path, Any]]) -> tuple[Path, dict[str, dict[str, Any]]]:
    ranks = request.param
    return written(f"placements-{ranks}", "placements", ranks=ranks, meshes=WORLDS[ranks], count=COUNT, seed=ranks)


def test_each_tensor_equals_the_one_that_torch_loads(world: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    folder, expected = world[0] / "boxes", world[1]
    found = describe(folder, read(folder))
    assert found.keys() == expected.keys()
    for name, described in found.items():
        assert described == {key: expected[name][key] for key in described}, expected[name]


def test_placements_are_of_all_kinds(world: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    placements = [each["placements"] for each in world[1].values()]
    assert len(placements) > 0.9 * COUNT
    assert sum(any(text.startswith("_S") for text in of_one) for of_one in placements) > 10
    assert sum("R" in of_one for of_one in placements) > 10
    assert sum(len(of_one) > 1 and "R" not in of_one for of_one in placements) > 30


def test_shards_that_are_not_boxes_are_refused(world: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    with pytest.raises(DataError, match=r"ShardsOverlap|ShardsDoNotCover"):
        read(world[0] / "scattered")
