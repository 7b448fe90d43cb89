"""Checkpoints written without torch: torch, Megatron-core and safetensors load each tensor as it was."""

from __future__ import annotations

import json
import shutil
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors.numpy
from local_folder import LocalFolder
from output_files import recut, shard, write_checkpoint
from torch_checkpoints import transform
from torch_files import DATA
from torch_program import run

from reshard.checkpoint.dtypes import BY_TORCH_NAME
from reshard.formats.registry import output_format, source_format
from reshard.transform.diff import diff_checkpoints

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from output_files import Content

RECORDED = ("placements", "items", "per_rank", "fsdp2", "fsdp2_tp")
RANKS = (1, 3, 5)
STRIDED = "column_major"
SHAPES = ((), (1,), (0,), (2, 0, 3), (300,), (70_000,), (2, 3), (2, 3, 1, 2), (1, 2, 3, 1, 2, 1))


def cut(name: str, ranks: int) -> list[list[Content]]:
    folder = LocalFolder(DATA / name)
    return recut(folder.path, source_format("torch-dcp").read(folder, wanted=lambda each: each != STRIDED), ranks)


def expected(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DATA / name / "expected.json").read_text())
    found.pop(STRIDED, None)
    return found


def test_torch_loads_each_tensor_as_it_was(tmp_path: Path) -> None:
    cases = [(name, ranks) for name in RECORDED for ranks in RANKS]
    folders = [tmp_path / f"{name}-{ranks}" for name, ranks in cases]
    for (name, ranks), folder in zip(cases, folders, strict=True):
        write_checkpoint(output_format("TorchDcp"), folder, cut(name, ranks))
    for (name, ranks), loaded in zip(cases, run("load", folders=folders), strict=True):
        assert loaded == expected(name), (name, ranks)


def test_archives_equal_those_of_torch(tmp_path: Path) -> None:
    contents = []
    rng = np.random.default_rng(0)
    for name, dtype in BY_TORCH_NAME.items():
        for shape in SHAPES:
            content = bytes(prod(shape)) if name == "bool" else rng.bytes(prod(shape) * dtype.itemsize)
            whole = np.frombuffer(content, f"V{dtype.itemsize}").reshape(shape)
            contents.append(shard(f"{name}{list(shape)}", whole, (0,) * len(shape), shape, dtype.name))
    write_checkpoint(output_format("TorchDcp"), tmp_path, [contents])
    assert run("reload", kind="resave", folder=tmp_path) == []


@pytest.fixture
def trained(written: Callable[..., tuple[Path, Any]], tmp_path: Path) -> tuple[Path, Path]:
    """A model and AdamW that torch trained and saved with 4 ranks, and what a transform makes of it for 3 ranks."""
    folder, _ = written("trained", "resume", kind="train", ranks=4)
    return folder, transform(folder, tmp_path / "three", format="TorchDcp", target_ranks=3)


def test_a_checkpoint_equals_its_conversions(trained: tuple[Path, Path], tmp_path: Path) -> None:
    source, three = trained
    stacked = transform(source, tmp_path / "safetensors", format="TorchSafetensors", target_ranks=2)
    for target in (three, stacked):
        found = diff_checkpoints(str(source), str(target))
        assert (found.differences, found.by_fingerprint) == ((), 0)
        assert found.equal > 0
    (path, *_) = sorted(stacked.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (stacked / "reshard-manifest.json").unlink()  # it would show the change
    (difference,) = diff_checkpoints(str(source), str(stacked)).differences
    assert (difference.difference, difference.elements) == ("Content", 1)
    assert difference.b is not None
    assert difference.b.place is not None
    assert difference.b.place.path == path.name


def test_training_resumes_with_another_number_of_ranks(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """Three ranks train the same from the checkpoint of 4 ranks, which torch reshards, as from those for 3 ranks and for 2."""
    two = transform(trained[1], tmp_path / "two", format="TorchDcp", target_ranks=2)
    of_four, *others = run("resume", kind="resume", folders=[*trained, two], ranks=3)
    assert others == [of_four, of_four]
    assert of_four["scheduler"]["last_epoch"] == "5"  # three steps before the checkpoint, two after it
    assert [group["betas"] for group in of_four["optim"]["param_groups"]] == [["0.9", "0.999"], ["0.8", "0.95"]]


def test_ranks_get_the_shards_that_torch_saved(trained: tuple[Path, Path], tmp_path: Path) -> None:
    one = transform(trained[1], tmp_path / "one", format="TorchDcp", target_ranks=1)
    four = transform(one, tmp_path / "four", format="TorchDcp", target_ranks=4)
    assert shards_of(four) == shards_of(trained[0])


def shards_of(folder: Path) -> set[tuple[str, str, str]]:
    """Name, file and box of each shard. Scalars are left out: any rank can save them."""
    found = source_format("torch-dcp").read(LocalFolder(folder))
    return {
        (tensor.name, found.files[place.file], str(tensor.shards.tiling.box(tile)))
        for tensor in found.tensors
        if tensor.shape
        for tile in range(len(tensor.shards.tiling))
        for place in tensor.shards.places(tile)
    }


def test_nested_values_are_nested_again(trained: tuple[Path, Path]) -> None:
    before, after = run("reload", kind="nest", folders=trained)
    assert before == after
    assert [group["weight_decay"] for group in after["optim"]["param_groups"]] == ["0.1", "0.01"]
    assert [part["last_epoch"] for part in after["scheduler"]["_schedulers"]] == ["1", "1"]


def test_torch_loads_shards_from_safetensors(tmp_path: Path) -> None:
    output = output_format("TorchSafetensors")
    held = [
        [each for each in contents if each[0].name != "float8" and output.can_hold(each[0])] for contents in cut("placements", 3)
    ]
    write_checkpoint(output, tmp_path, held)
    expecting = {name: tensor for name, tensor in expected("placements").items() if name != "float8"}
    assert run("reload", kind="shards", folder=tmp_path) == expecting


def test_transformers_loads_the_same_model(tmp_path: Path) -> None:
    source, one, three = tmp_path / "source", tmp_path / "one", tmp_path / "three"
    before = run("reload", kind="save_model", folder=source)
    tensors = safetensors.numpy.load_file(source / "model.safetensors")
    contents = [shard(name, whole, (0,) * whole.ndim, whole.shape, "Float32") for name, whole in tensors.items()]
    output = output_format("HuggingFace")
    for files, target in ((1, one), (3, three)):
        write_checkpoint(output, target, [contents[i::files] for i in range(files)])
        for name in output.carried([path.name for path in source.iterdir()], "source", settings=True):
            shutil.copy(source / name, target / name)
    assert run("reload", kind="load_models", folders=[one, three]) == [before, before]


def test_megatron_loads_each_tensor_as_it_was(tmp_path: Path) -> None:
    found = run("reload", kind="megatron", folder=transform(DATA / "megatron", tmp_path, format="Megatron", target_ranks=3))
    assert {name: found[name] for name in expected("megatron")} == expected("megatron")
    assert [found[f"rng{place}"] for place in ([0, 0], [0, 1], [1, 0], [1, 1])] == [f"{{'seed': {rank}}}" for rank in range(4)]
    assert found["iteration"] == "7"
