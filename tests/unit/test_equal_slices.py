"""Source ranks that must hold different slices but hold equal content are refused, and no others are."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import disk
import models
import numpy as np
import pytest
import rawfiles
from definition import held
from effort import examples
from hypothesis import given
from hypothesis import strategies as st
from memory_store import MemorySource

import reshard
from reshard import mindspore
from reshard.checkpoint.inventory import Inventory, SourceFile, Structure, TensorEntry
from reshard.cli import main
from reshard.errors import DataError, ReshardError
from reshard.layout import Layout
from reshard.plan import build_model
from reshard.plan.slice_blocks import Slices
from reshard.source.files import Files
from reshard.source.reading import read_inventory
from reshard.spec.request import Options
from reshard.strategy import Strategy
from reshard.transform.equal_slices import check_slices

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RANKS = 12
QUIET = examples(60)


def check(files: list[rawfiles.Tensors], sides: tuple[Strategy, Strategy], *, remote: bool, **how: Any) -> MemorySource:
    store = MemorySource({f"rank_{r}/x.ckpt": rawfiles.write("ckpt", tensors) for r, tensors in enumerate(files)})
    paths = {r: f"rank_{r}/x.ckpt" for r, tensors in enumerate(files) if tensors}
    model = build_model(read_inventory(store, Files(paths), workers=1), *sides, incomplete=True)
    store.remote = remote
    check_slices(store, model, Options(**how), workers=2)
    return store


def slices(model: models.Model, tensor: models.Tensor, rank: int) -> bytes | None:
    """Return the elements of a rank's slice, by their indexes in the whole; None: the tensor has no layout there."""
    if tensor.source is None or tensor.source_stage != rank // model.source_devices:
        return None
    return held(tensor.shape, tensor.source)[rank % model.source_devices].tobytes()


def is_evidence(array: np.ndarray) -> bool:
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(array.size, -1)
    distinct = len({element.tobytes() for element in flat})
    return distinct > 1 and distinct * array.itemsize >= 8


@QUIET
@given(models.models(RANKS), st.booleans(), st.data())
def test_slices_with_random_or_constant_content_are_never_refused(
    model: models.Model,
    remote: bool,
    data: st.DataObject,
) -> None:
    files = [dict(tensors) for tensors in model.source()]
    for name in data.draw(st.sets(st.sampled_from([tensor.name for tensor in model.tensors]))):
        for tensors in files:
            if name in tensors:
                tensors[name] = np.zeros_like(tensors[name])
    check(files, disk.strategies(model), remote=remote)


@QUIET
@given(models.models(RANKS), st.booleans(), st.data())
def test_a_copy_of_another_rank_is_refused_where_slices_differ(
    model: models.Model,
    remote: bool,
    data: st.DataObject,
) -> None:
    model = replace(model, remove_redundancy=False)
    files = model.source()
    stage = data.draw(st.integers(0, model.source_stages - 1)) * model.source_devices
    rank, copied = (stage + data.draw(st.integers(0, model.source_devices - 1)) for _ in range(2))
    files[rank] = files[copied]
    shown = any(
        slices(model, tensor, rank) != slices(model, tensor, copied) and is_evidence(files[copied][tensor.name])
        for tensor in model.tensors
    )
    if not shown:
        check(files, disk.strategies(model), remote=remote)
        return
    with pytest.raises(DataError) as error:
        check(files, disk.strategies(model), remote=remote)
    assert error.value.reason == "SlicesEqual"
    check(files, disk.strategies(model), remote=remote, allow_equal_slices=True)


def test_equal_halves_of_one_table_are_not_refused_next_to_weights_that_differ() -> None:
    table = np.sin(np.arange(64, dtype=np.float32)).reshape(8, 8)
    sides = Strategy(({name: Layout((2,), ((0,), ())) for name in ("table", "w")},), 2), Strategy(({},), 1)
    weights = np.random.default_rng(0).random((2, 2, 4), np.float32)
    check([{"table": table, "w": weight} for weight in weights], (sides[0], sides[0]), remote=False)
    with pytest.raises(DataError, match="SlicesEqual"):
        check([{"table": table, "w": weights[0]}] * 2, (sides[0], sides[0]), remote=False)


@pytest.mark.parametrize("axes", [(4096,), (64, 64), (8, 32, 16), (2,) * 12])
def test_the_ranks_that_are_compared_are_few_and_differ_along_each_axis(axes: tuple[int, ...]) -> None:
    total = int(np.prod(axes))
    entry = TensorEntry("w", "Float32", (4096,), ((64, 4 * 4096),))
    files = tuple(SourceFile(rank, f"rank_{rank}/x.ckpt", 1 << 20, "", 0) for rank in range(total))
    for axis in range(len(axes)):
        source = Strategy(({"w": Layout(axes, ((axis,),))},), total)
        found = Slices(build_model(Inventory(files, (Structure("ckpt", (entry,)),)), source, None))
        distinct = found.ranks(total)
        assert len(distinct) == len({found.blocks(rank)[0].cell for rank in distinct}) == axes[-1 - axis]
        assert len(found.ranks(64)) <= 66
        assert found.ranks(total, range(total)) == tuple(range(total))
        ranks = found.ranks(64, range(total))
        assert {0, 1} <= set(ranks)
        assert len(ranks) <= 66
        cells = {found.blocks(rank)[0].cell for rank in ranks}
        assert len(cells) > 1


@pytest.mark.parametrize("replicas", [2, 16])
def test_one_replica_is_read_and_those_that_equal_another_rank(replicas: int) -> None:
    source = Strategy(({"w": Layout((replicas, 2), ((0,),))},), 2 * replicas)
    rng = np.random.default_rng(0)
    halves = [{"w": rng.random(1 << 14, np.float32)} for _ in range(2)]
    for copied in (False, True):
        held = [halves[rank % 2] for rank in range(2 * replicas)]
        held[2 * replicas - 1] = halves[0] if copied else halves[1]
        store = MemorySource({f"rank_{r}/x.ckpt": rawfiles.write("ckpt", tensors) for r, tensors in enumerate(held)})
        inventory = read_inventory(store, Files({r: f"rank_{r}/x.ckpt" for r in range(2 * replicas)}), workers=1)
        store.readers.clear()
        with pytest.raises(DataError, match="SlicesEqual") if copied else nullcontext():
            check_slices(store, build_model(inventory, source, source), Options(), workers=1)
        if not copied:
            assert [reader.name for reader in store.readers] == ["rank_0/x.ckpt", "rank_1/x.ckpt"]


def test_reads_of_one_file_are_bounded() -> None:
    names = [f"w{i}" for i in range(20)]
    source = Strategy(({name: Layout((2,), ((0,),)) for name in names},), 2)
    rng = np.random.default_rng(0)
    files = [{name: rng.random(1 << 14, np.float32) for name in names} for _ in range(2)]
    store = MemorySource({f"rank_{r}/x.ckpt": rawfiles.write("ckpt", tensors) for r, tensors in enumerate(files)})
    model = build_model(read_inventory(store, Files({r: f"rank_{r}/x.ckpt" for r in range(2)}), workers=1), source, source)
    blocks = Slices(model).blocks(1)
    assert [block.name for block in blocks] == sorted(names)[:8]
    assert sum(block.length for block in blocks) == 8 * (4 << 10)
    middle = (1 << 16) // 2
    assert all(block.start < middle < block.start + block.length for block in blocks)


# ---- At the command line


@pytest.fixture
def made(tmp_path: Path) -> disk.Checkpoint:
    return disk.write(tmp_path / "in", disk.example())


def integrate(made: disk.Checkpoint) -> None:
    """Write whole tensors to each rank's file, like MindSpore's integrated_save."""
    whole = {tensor.name: made.model.whole(tensor) for tensor in made.model.tensors}
    for path in made.source.glob("rank_*/*"):
        path.write_bytes(rawfiles.write("ckpt", whole))


@pytest.mark.parametrize("level", ["none", "sample", "full"])
def test_whole_tensors_on_every_rank_are_refused_and_the_remedy_works(
    made: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str], level: str
) -> None:
    integrate(made)
    target = tmp_path / "out"
    said = refused(65, "SlicesEqual", *made.arguments(target, "--verification", level))
    assert "parameter w: " in said
    assert "ranks 0-3, " in said
    assert "one rank's folder as the source with --allow-single-rank and without --source-strategy" in said
    assert not target.exists()
    one = ["transform", "--source", str(made.source / "rank_2"), "--target-strategy", str(made.target_strategy)]
    assert main([*one, "--allow-single-rank", "--target", str(target)]) == 0
    assert disk.differences(made.model, target, "ckpt") == []


def test_whole_tensors_of_a_pipeline_have_another_remedy(tmp_path: Path, refused: Callable[..., str]) -> None:
    model = disk.example()
    first = tuple(tensor for tensor in model.tensors if tensor.source is not None)
    second = tuple(replace(tensor, name=f"{tensor.name}2", source_stage=1) for tensor in first)
    made = disk.write(tmp_path / "in", replace(model, source_stages=2, tensors=(*first, *second)))
    for rank in range(8):
        whole = {tensor.name: made.model.whole(tensor) for tensor in (second if rank >= 4 else first)}
        (made.source / f"rank_{rank}" / "net-1_100.ckpt").write_bytes(rawfiles.write("ckpt", whole))
    said = refused(65, "SlicesEqual", *made.arguments(tmp_path / "out"))
    assert "save them again with integrated_save=False" in said


@pytest.mark.parametrize("kind", ["copy", "link", "hard link"])
def test_a_file_of_another_rank_is_refused(made: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str], kind: str) -> None:
    one, other = (made.source / f"rank_{rank}" / "net-1_100.ckpt" for rank in (0, 2))
    other.unlink()
    if kind == "copy":
        shutil.copyfile(one, other)
    elif kind == "link":
        other.symlink_to(one)
    else:
        other.hardlink_to(one)
    said = refused(65, "SlicesEqual", *made.arguments(tmp_path / "out"))
    assert "ranks 0,2, " in said
    refused(65, "SlicesEqual", *made.arguments(tmp_path / "out", "--replicas", "lowest-rank"))
    unified = ["--source", str(made.source), "--source-strategy", str(made.source_strategy), "--output", "unified"]
    refused(65, "SlicesEqual", "transform", *unified, "--target", str(tmp_path / "out"))


def test_a_checkpoint_of_constants_is_not_refused(made: disk.Checkpoint, tmp_path: Path) -> None:
    for path in made.source.glob("rank_*/*"):
        tensors = rawfiles.read("ckpt", path.read_bytes())
        path.write_bytes(rawfiles.write("ckpt", {name: np.zeros_like(array) for name, array in tensors.items()}))
    assert main(made.arguments(tmp_path / "out")) == 0


def test_equal_slices_are_read_if_the_user_accepts_them(
    made: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str]
) -> None:
    integrate(made)
    target, index = tmp_path / "out", tmp_path / "index"
    assert main(made.arguments(target, "--allow-equal-slices")) == 0
    assert json.loads((target / "reshard-manifest.json").read_text())["options"]["allowEqualSlices"] is True
    assert main(made.arguments(index, "--output", "index", "--allow-equal-slices")) == 0
    by_index = ["transform", "--source", str(made.source), "--index", str(index), "--target", str(tmp_path / "again")]
    refused(2, "InvalidOption", *by_index, "--allow-equal-slices")
    assert main(by_index) == 0
    assert disk.contents(tmp_path / "again") == disk.contents(target)


def test_a_resource_accepts_equal_slices_too(made: disk.Checkpoint, tmp_path: Path) -> None:
    integrate(made)
    claim = {"claimName": "data"}
    source = {
        "storage": {"persistentVolumeClaim": {**claim, "path": "in/src"}},
        "strategy": {"path": "in/source.ckpt"},
        "allowEqualSlices": True,
    }
    target = {"storage": {"persistentVolumeClaim": {**claim, "path": "out"}}, "strategy": {"path": "in/target.ckpt"}}
    document = {"apiVersion": "reshard.dev/v1alpha1", "kind": "CheckpointTransform", "spec": {"source": source, "target": target}}
    (tmp_path / "transform.yaml").write_text(json.dumps(document))
    assert main(["run", str(tmp_path / "transform.yaml"), "--volume", f"data={tmp_path}"]) == 0


def test_functions_refuse_equal_slices(made: disk.Checkpoint, tmp_path: Path) -> None:
    integrate(made)
    sides = (str(made.source), str(made.source_strategy), str(made.target_strategy))
    with pytest.raises(ReshardError, match="SlicesEqual"):
        reshard.load(*sides, rank=0)
    assert reshard.load(*sides, rank=0, allow_equal_slices=True)
    with pytest.raises(ValueError, match="different slices"):
        mindspore.transform_checkpoints(
            str(made.source), str(tmp_path / "out"), "checkpoint_", str(made.source_strategy), str(made.target_strategy)
        )
    files = {rank: str(made.source / f"rank_{rank}" / "net-1_100.ckpt") for rank in range(4)}
    with pytest.raises(ValueError, match="different slices"):
        mindspore.transform_checkpoint_by_rank(
            0, files, str(tmp_path / "one.ckpt"), str(made.source_strategy), str(made.target_strategy)
        )
