"""Parts of ranks' files, loaded as one by MindSpore's function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import disk
import numpy as np
import pytest
import rawfiles
from pipelines import Pipeline, pipeline, write
from rawfiles import same

from reshard.errors import ReshardError
from reshard.mindspore import load_segmented_checkpoints, transform_checkpoints

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def made(tmp_path: Path) -> Pipeline:
    return write(tmp_path / "made", pipeline())


def test_mindspores_functions_by_stage(made: Pipeline, target: Path) -> None:
    for stage in range(2):
        transform_checkpoints(str(made.made.source), str(target), "x", str(made.strategy(stage)), str(made.made.target_strategy))
    for rank in range(4):
        assert same(load_segmented_checkpoints(str(target / f"rank_{rank}")), made.made.model.target(rank))


def test_mindspores_functions_for_a_whole_checkpoint(tmp_path: Path, target: Path) -> None:
    """The strategy of the only stage does not make it a part, whatever the target names."""
    made = disk.write(tmp_path / "made", disk.example())
    transform_checkpoints(str(made.source), str(target), "checkpoint_", str(made.source_strategy), str(made.target_strategy))
    assert disk.differences(made.model, target, "ckpt") == []


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_segments_are_read_in_the_order_of_their_numbers(tmp_path: Path, kind: str) -> None:
    for number in (10, 2):
        tensors = {"both": np.full(5000, number, np.float16), f"only.{number}": np.arange(number, dtype=np.int64)}
        (tmp_path / f"x_part{number}.{kind}").write_bytes(rawfiles.write(kind, tensors))
    found = load_segmented_checkpoints(str(tmp_path))
    assert found.keys() == {"both", "only.2", "only.10"}
    assert set(found["both"].tolist()) == {2.0}
    assert found["only.10"].tolist() == [*range(10)]


@pytest.mark.parametrize(
    ("how", "names"),
    [
        ({"specify_prefix": "a."}, {"a.x", "a.y"}),
        ({"filter_prefix": ["a.x", "b"]}, {"a.y"}),
        ({"specify_prefix": ("a.", "b."), "filter_prefix": "a.x"}, {"a.y", "b.x"}),
        ({"choice_func": lambda name: name.endswith(".x")}, {"a.x", "b.x"}),
        ({"choice_func": lambda _: False, "specify_prefix": "b"}, {"b.x"}),  # as with MindSpore
    ],
)
def test_a_subset_of_segments(tmp_path: Path, how: dict[str, Any], names: set[str]) -> None:
    tensors = {name: np.zeros(2, np.float32) for name in ("a.x", "a.y", "b.x")}
    (tmp_path / "x_part0.ckpt").write_bytes(rawfiles.write("ckpt", tensors))
    assert load_segmented_checkpoints(str(tmp_path), **how).keys() == names


@pytest.mark.parametrize(
    ("files", "how", "reason"),
    [
        ([], {}, "SourceMissing"),
        (["a.ckpt", "b.safetensors"], {}, "MixedFormats"),
        (["a.ckpt"], {"dec_key": b"0" * 16}, "NotEncrypted"),
        (["a.ckpt"], {"specify_prefix": "z"}, "NothingToLoad"),
        (["a.ckpt"], {"filter_prefix": ""}, "InvalidOption"),
    ],
)
def test_segments_that_cannot_be_loaded(tmp_path: Path, files: list[str], how: dict[str, Any], reason: str) -> None:
    for name in files:
        (tmp_path / name).write_bytes(rawfiles.write(name.rpartition(".")[2], {"a": np.zeros(2, np.float32)}))
    with pytest.raises(ReshardError) as found:
        load_segmented_checkpoints(str(tmp_path), **how)
    assert found.value.reason == reason


@pytest.mark.parametrize("names", [("net-1_10.ckpt", "net-1_20.ckpt"), ("x0_part0.ckpt", "net-1_20.ckpt")])
def test_files_of_several_steps_are_not_parts_of_one(tmp_path: Path, names: tuple[str, ...]) -> None:
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(rawfiles.ckpt({"w": np.full(2, number, np.float32)}))
    with pytest.raises(ReshardError, match=r"AmbiguousFiles: .* 2 training steps"):
        load_segmented_checkpoints(str(tmp_path))


@pytest.mark.parametrize("only", [None, "x"])
def test_copies_of_small_parameters_in_segments_must_be_equal(tmp_path: Path, only: str | None) -> None:
    def write_parts(*steps: int) -> None:
        for number, step in enumerate(steps):
            tensors = {f"x{number}": np.ones(3, np.float32), "global_step": np.array([step], np.int32)}
            (tmp_path / f"a_part{number}.ckpt").write_bytes(rawfiles.ckpt(tensors))

    write_parts(5, 5)
    found = load_segmented_checkpoints(str(tmp_path), specify_prefix=only)
    assert found.keys() == ({"x0", "x1"} if only else {"x0", "x1", "global_step"})
    write_parts(5, 6)
    with pytest.raises(ReshardError, match=r"RanksDisagree: .*global_step differs between a_part0.ckpt and a_part1.ckpt"):
        load_segmented_checkpoints(str(tmp_path), specify_prefix=only)


def test_segments_that_a_manifest_lists_may_differ_and_must_exist(made: Pipeline, target: Path) -> None:
    for path in made.made.source.glob("rank_[23]/*"):
        tensors = rawfiles.read("ckpt", path.read_bytes())
        path.write_bytes(rawfiles.ckpt(tensors | {"step": tensors["step"] + 1}))
    expected = made.made.model.target(0)
    for number, outcome in enumerate((0, 65)):
        assert made.run(number, target) == outcome
    with pytest.raises(ReshardError, match=r"RanksDisagree: .*step differs"):
        load_segmented_checkpoints(str(target / "rank_0"))
    for number in range(2):
        assert made.run(number, target, "--allow-inconsistent", "step", "--overwrite") == 0
    assert same(load_segmented_checkpoints(str(target / "rank_0")), expected)
    (target / "rank_0" / "checkpoint_0_part1.ckpt").unlink()
    with pytest.raises(ReshardError, match=r"FileMissing: .*checkpoint_0_part1.ckpt"):
        load_segmented_checkpoints(str(target / "rank_0"))
