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


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


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
        tensors = {f"only.{number}": np.arange(number, dtype=np.int64), "both": np.full((), number, np.float16)}
        (tmp_path / f"x_part{number}.{kind}").write_bytes(rawfiles.write(kind, tensors))
    assert {name: array.tolist() for name, array in load_segmented_checkpoints(str(tmp_path)).items()} == {
        "only.2": [0, 1],
        "only.10": [*range(10)],
        "both": 2.0,
    }


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
