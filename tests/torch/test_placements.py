"""Random DTensors that real torch saved on meshes of one to three dimensions: the product reads what torch gathers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from local_folder import LocalFolder, content_of
from torch_checkpoints import describe, read, transform
from torch_files import sha256_of
from torch_program import run

from reshard.errors import DataError
from reshard.formats.registry import source_format

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


def test_the_content_of_each_tensor_is_found_in_the_files(world: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    folder, expected = world[0] / "boxes", world[1]
    found = source_format("torch-dcp").read(LocalFolder(folder), workers=2)
    held = {each.name: sha256_of(content_of(folder, found, each)) for each in found.tensors}
    assert held == {name: each["sha256"] for name, each in expected.items()}


def test_torch_loads_each_tensor_from_other_ranks_files(world: tuple[Path, dict[str, dict[str, Any]]], tmp_path: Path) -> None:
    source, expected = world[0] / "boxes", world[1]
    five = transform(source, tmp_path / "five", format="TorchDcp", target_ranks=5)
    one = transform(source, tmp_path / "one", format="TorchDcp", target_ranks=1)
    again = transform(one, tmp_path / "again", format="TorchDcp", target_ranks=5)
    assert [len(list(folder.glob("*.distcp"))) for folder in (five, one, again)] == [5, 1, 5]
    before, *after = run("spread", folders=[source, five, one, again], ranks=2)
    assert before["R"] == {name: [each["sha256"]] * 2 for name, each in expected.items()}
    assert after == [before] * 3


def test_placements_are_of_all_kinds(world: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    placements = [each["placements"] for each in world[1].values()]
    assert len(placements) > 0.9 * COUNT
    assert sum(any(text.startswith("_S") for text in of_one) for of_one in placements) > 10
    assert sum("R" in of_one for of_one in placements) > 10
    assert sum(len(of_one) > 1 and "R" not in of_one for of_one in placements) > 30


def test_shards_that_are_not_boxes_are_refused(world: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    with pytest.raises(DataError, match=r"ShardsOverlap|ShardsDoNotCover"):
        read(world[0] / "scattered")
