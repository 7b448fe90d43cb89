"""Checkpoints with one copy of each slice in a replica group: read, and written."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import disk
import models
import numpy as np
import pytest
import rawfiles
from definition import Cut, held
from effort import examples
from hypothesis import assume, given
from hypothesis import strategies as st
from memory_store import MemoryReader
from memory_tasks import task, written

import reshard
from reshard.checkpoint.manifest import Manifest, decode
from reshard.cli import main
from reshard.engine.gather import SourceFiles
from reshard.engine.verify import check_file
from reshard.layout import Layout
from reshard.plan import Kind, Parameter, Role
from reshard.plan.balance import shares

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from reshard.engine.task import Task

FORMATS = st.sampled_from(["ckpt", "safetensors"])
EVERYWHERE = ("accu_grads.c", "layer.expert_load")


@examples(150)
@given(models.models(16), FORMATS, FORMATS)
def test_each_slice_is_written_once(model: models.Model, source: str, target: str) -> None:
    assume(model.target_ranks > 1)
    made, store = task(model, source, target, remove_redundancy=True)
    files: list[rawfiles.Tensors] = []
    for rank in range(model.target_ranks):
        content = written(made, rank)
        reader, sources = MemoryReader(f"y.{target}", content), SourceFiles(store, made.model.inventory)
        described = made.output.entries(reader, made.tensors(rank))
        check_file(reader, made.planner.plan(rank), made.model, sources, "Full", described)
        files.append(rawfiles.read(target, content))
    for tensor in model.tensors:
        holders: dict[bytes, list[int]] = defaultdict(list)
        for rank in range(model.target_ranks):
            if tensor.name in model.target(rank):
                cut = tensor.target
                elements = held(tensor.shape, cut)[rank % model.target_devices].tobytes() if cut else b""
                holders[elements].append(rank)
        for ranks in holders.values():
            found = [rank for rank in ranks if tensor.name in files[rank]]
            everywhere = tensor.target is None or tensor.name in EVERYWHERE
            assert len(found) == (len(ranks) if everywhere else 1)
            for rank in found:
                assert files[rank][tensor.name].tobytes() == model.target(rank)[tensor.name].tobytes()
    assert all(content.keys() <= model.target(rank).keys() for rank, content in enumerate(files))


def parameter(name: str, rows: int, target: Layout, role: Role = Role.CUT) -> Parameter:
    return Parameter(name, name, Kind("Int8", (rows,), role, Layout.whole(1), (0,), target, (0,), (0,)))


@given(st.lists(st.integers(1, 1 << 20), min_size=1, max_size=60), st.integers(2, 16))
def test_ranks_differ_by_no_more_than_one_slice(sizes: list[int], devices: int) -> None:
    found = shares([parameter(f"p{i}", n, Layout.whole(1, devices)) for i, n in enumerate(sizes)], devices)
    assert (found.sum(axis=0) == 1).all()
    nbytes = found @ np.array(sizes)
    assert nbytes.max() - nbytes.min() <= max(sizes)


def test_parameters_required_on_some_ranks_are_balanced_by_the_others() -> None:
    halves, sharded = Layout((2, 2), ((0,),)), Layout((4,), ((),), 1, 4)
    layouts = {"a": (8, halves), "b": (4, sharded), "c": (1, Layout.whole(1, 4)), "d": (1, Layout.whole(1, 4))}
    found = shares([parameter(name, rows, layout) for name, (rows, layout) in layouts.items()], 4)
    assert found.tolist() == [
        [True, True, False, False],
        [True, True, False, False],
        [False, True, True, False],
        [False, True, False, True],
    ]
    assert [p.slice_nbytes for p in (parameter("a", 8, halves), parameter("b", 4, sharded))] == [4, 1]


@pytest.mark.parametrize(
    ("name", "role"), [("step", Role.REPLICATED), ("moment", Role.KEPT), *((name, Role.CUT) for name in EVERYWHERE)]
)
def test_parameters_that_the_loader_does_not_broadcast_are_written_by_all(name: str, role: Role) -> None:
    assert shares([parameter(name, 4, Layout.whole(1, 3), role)], 3).all()


def read_all(target: Path, kind: str, ranks: int) -> list[rawfiles.Tensors]:
    return [rawfiles.read(kind, (target / f"rank_{r}" / f"checkpoint_{r}.{kind}").read_bytes()) for r in range(ranks)]


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_removed_by_the_command_line_and_read_back(tmp_path: Path, kind: str) -> None:
    made = disk.write(tmp_path, disk.example(), kind)
    thin, back = tmp_path / "thin", tmp_path / "back"
    assert main(made.arguments(thin, "--remove-redundancy", "--verification", "full")) == 0
    assert decode((thin / "reshard-manifest.json").read_bytes(), Manifest, "x").options["removeRedundancy"] is True
    if kind == "safetensors":
        assert b'"remove_redundancy":"True"' in (thin / "rank_0" / f"checkpoint_0.{kind}").read_bytes()
    files = read_all(thin, kind, 6)
    assert [sum(name in content for content in files) for name in ("w", "m", "b", "step")] == [6, 6, 3, 6]
    assert main(["verify", str(thin)]) == 0
    again = [
        "--source",
        str(thin),
        "--source-strategy",
        str(made.target_strategy),
        "--target-strategy",
        str(made.target_strategy),
    ]
    assert main(["transform", *again, "--target", str(back), "--verification", "full"]) == 0
    assert disk.differences(made.model, back, kind) == []
    if kind == "safetensors":
        assert b'"remove_redundancy":"False"' in (back / "rank_0" / f"checkpoint_0.{kind}").read_bytes()


def test_removal_of_redundancy_is_part_of_the_task(tmp_path: Path, refused: Callable[..., str]) -> None:
    made = disk.write(tmp_path, disk.example())
    assert main(made.arguments(tmp_path / "out")) == 0
    refused(78, "TargetExists", *made.arguments(tmp_path / "out", "--remove-redundancy"))
    assert main(made.arguments(tmp_path / "out", "--remove-redundancy", "--overwrite")) == 0


def whole(rows: int, name: str = "a") -> models.Tensor:
    return models.Tensor(name, "Float32", (rows,), Cut((3,), ((),)), 0, Cut((3,), ((),)), 0)


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
@pytest.mark.parametrize("crc", [False, True])
def test_a_rank_without_parameters(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, *, crc: bool) -> None:
    model = models.Model(3, 1, 3, 1, (whole(4), whole(8, "b")), 1, remove_redundancy=False)
    made = disk.write(tmp_path, model, kind)
    thin, back = tmp_path / "thin", tmp_path / "back"
    more = ["--crc"] if crc else []
    assert main(made.arguments(thin, "--remove-redundancy", "--verification", "full", *more)) == 0
    assert "target ranks 2 hold no parameters" in capsys.readouterr().err
    assert [sorted(content) for content in read_all(thin, kind, 3)] == [["b"], ["a"], []]
    assert main(["verify", str(thin)]) == 0
    made.source.rename(tmp_path / "before")
    thin.rename(made.source)
    assert main(made.arguments(back)) == 0
    assert f"unless redundancy was removed, restore them: rank_2/checkpoint_2.{kind}" in capsys.readouterr().err
    assert disk.differences(model, back, kind) == []


def test_whole_files_have_nothing_redundant(tmp_path: Path, refused: Callable[..., str]) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(rawfiles.ckpt({"a": np.zeros(4, np.float32)}))
    arguments = ["--source", str(path), "--target", str(tmp_path / "out"), "--remove-redundancy"]
    for more in ([], ["--output", "unified", "--max-file-size-bytes", "1024"]):
        refused(78, "NoReplicas", "plan", *arguments, *more)
        refused(78, "NoReplicas", "transform", *arguments, *more)
    path.write_bytes(b"")
    refused(65, "Empty", "plan", "--source", str(path), "--target", str(tmp_path / "out"))


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_a_slice_without_a_holder_is_named(tmp_path: Path, kind: str, refused: Callable[..., str]) -> None:
    halves = Cut((2, 2), ((0,),))
    tensors = tuple(models.Tensor(name, "Float32", (8,), halves, 0, halves, 0) for name in ("a", "b"))
    made = disk.write(tmp_path, models.Model(4, 1, 4, 1, tensors, 1, remove_redundancy=True), kind)
    for rank in (1, 3):
        path = made.source / f"rank_{rank}" / f"net-1_100.{kind}"
        content = rawfiles.read(kind, path.read_bytes())
        content.pop("b", None)
        path.write_bytes(rawfiles.write(kind, content))
    for output in ("per-rank", "index"):
        line = refused(66, "ShardMissing", *made.arguments(tmp_path / "out"), "--output", output)
        assert "parameter b" in line
        assert "no file contains slice [1] of the grid [2], which rank 1, 3 should hold" in line
    loaded = {"source_strategy": str(made.source_strategy), "target_strategy": str(made.target_strategy)}
    assert reshard.load(str(made.source), **loaded, rank=0).keys() == {"a", "b"}


def sizes(made: Task) -> set[int]:
    return set(made.file_sizes(range(made.model.target_ranks)).values())


def test_files_of_one_stage_differ_in_size() -> None:
    model = disk.example()
    assert len(sizes(task(model, "ckpt", "ckpt")[0])) == 1
    assert len(sizes(task(model, "ckpt", "ckpt", remove_redundancy=True)[0])) > 1
