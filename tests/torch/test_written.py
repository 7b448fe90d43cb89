"""Checkpoints written without torch: torch, Megatron-core and safetensors load each tensor as it was."""

from __future__ import annotations

import json
import shutil
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy
from local_folder import LocalFolder
from output_files import recut, shard, write_checkpoint
from torch_files import DATA
from torch_program import run

from reshard.checkpoint.dtypes import BY_TORCH_NAME
from reshard.formats.registry import output_format, source_format
from reshard.spec.request import Options, Request
from reshard.transform.run import transform_checkpoint

if TYPE_CHECKING:
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
        write_checkpoint(output_format("torch-dcp"), folder, cut(name, ranks))
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
    write_checkpoint(output_format("torch-dcp"), tmp_path, [contents])
    assert run("reload", kind="resave", folder=tmp_path) == []


def transform(source: Path, target: Path, **options: Any) -> Path:
    transform_checkpoint(Request(str(source), str(target), options=Options(**options, verification="Full")), workers=1)
    return target


def test_nested_values_are_nested_again(tmp_path: Path) -> None:
    shutil.copytree(DATA / "fsdp2", tmp_path / "before")
    transform(DATA / "fsdp2", tmp_path / "after", format="TorchDcp", target_ranks=3)
    before, after = run("reload", kind="nest", folders=[tmp_path / "before", tmp_path / "after"])
    assert before == after
    assert isinstance(after["optim"]["param_groups"], list)


def test_training_resumes_with_another_number_of_ranks(tmp_path: Path) -> None:
    """The checkpoint of 4 ranks, and what a transform makes of it for 3 ranks and for 2, give 3 ranks the same state."""
    folders = [transform(DATA / "fsdp2", tmp_path / str(ranks), format="TorchDcp", target_ranks=ranks) for ranks in (2, 3)]
    of_four, *others = run("resume", folders=[DATA / "fsdp2", *folders], ranks=3)
    assert others == [of_four, of_four]
    assert of_four["a.weight"] != expected("fsdp2")["model.a.weight"]  # a step has been trained


def test_torch_loads_shards_from_safetensors(tmp_path: Path) -> None:
    output = output_format("torch-safetensors")
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
    output = output_format("huggingface")
    for files, target in ((1, one), (3, three)):
        write_checkpoint(output, target, [contents[i::files] for i in range(files)])
        for name in output.carried([path.name for path in source.iterdir()], "source", settings=True):
            shutil.copy(source / name, target / name)
    assert run("reload", kind="load_models", folders=[one, three]) == [before, before]


def test_megatron_loads_each_tensor_as_it_was(tmp_path: Path) -> None:
    found = run("reload", kind="megatron", folder=transform(DATA / "megatron", tmp_path, format="Megatron", target_ranks=3))
    assert {name: found[name] for name in expected("megatron")} == expected("megatron")
    assert found["iteration"] == "7"
