"""Copies of one parameter at several source ranks: exactly the differing ones are found."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from math import lcm
from typing import TYPE_CHECKING, Any

import disk
import models
import numpy as np
import pytest
import rawfiles
from definition import Cut, held
from effort import examples
from hypothesis import assume, given
from hypothesis import strategies as st
from memory_store import MemorySource
from memory_tasks import written

from reshard.checkpoint.inventory import Inventory, SourceFile, Structure, TensorEntry
from reshard.engine.task import task_of
from reshard.errors import DataError
from reshard.layout import Layout
from reshard.plan import build_model
from reshard.plan.copies import Copies, most_blocks
from reshard.progress import Silent
from reshard.source.files import Files
from reshard.source.reading import read_inventory
from reshard.spec.ranks import format_ranks, parse_ranks
from reshard.spec.request import Options, Request
from reshard.strategy import Strategy
from reshard.transform.consistency import check_copies

if TYPE_CHECKING:
    from collections.abc import Callable

    from reshard.plan import Model

RANKS = 12
QUIET = examples(60)


def placed(files: list[rawfiles.Tensors], kind: str, before: Strategy, after: Strategy, **how: Any) -> tuple[Model, MemorySource]:
    """The model of a source in memory."""
    store = MemorySource({f"rank_{r}/x.{kind}": rawfiles.write(kind, tensors) for r, tensors in enumerate(files)})
    paths = {r: f"rank_{r}/x.{kind}" for r in range(len(files)) if files[r] or kind == "safetensors"}
    inventory = read_inventory(store, Files(paths), workers=1)
    return build_model(inventory, before, after, incomplete=True, **how), store


def check(model: Model, store: MemorySource, level: str, **options: Any) -> frozenset[str]:
    return check_copies(store, model, Options(verification=level, **options), Silent(), workers=2)


def changed(array: np.ndarray, at: int) -> np.ndarray:
    """A copy in which all bits of one element are others."""
    content = np.array(array, order="C")
    flat = content.reshape(-1).view(np.uint8).reshape(content.size, -1)
    flat[at] ^= 1 if array.dtype == bool else 0xFF
    return content


def refused(call: Callable[[], object]) -> tuple[str, str | None, str]:
    with pytest.raises(DataError) as error:
        call()
    return error.value.reason, error.value.where, error.value.what


def groups(what: str) -> set[tuple[int, ...]]:
    """The groups of ranks that a message says have one value each."""
    return {parse_ranks(found) for found in re.findall(r"on source ranks? ([0-9,-]+[0-9]|[0-9])", what)}


def index_in(what: str) -> tuple[int, ...] | None:
    found = re.search(r"element \[([0-9, ]*)\]", what)
    return tuple(map(int, filter(None, found[1].split(", ")))) if found else None


def elements(model: models.Model, tensor: models.Tensor) -> dict[int, np.ndarray]:
    """Return, by source rank, the flat indexes in the whole tensor of the elements in its file."""
    if tensor.source is None:
        whole = np.arange(int(np.prod(tensor.shape))).reshape(tensor.shape)
        return dict.fromkeys(range(model.source_ranks), whole)
    first = tensor.source_stage * model.source_devices
    return {first + rank: found for rank, found in enumerate(held(tensor.shape, tensor.source))}


@QUIET
@given(models.models(RANKS), st.sampled_from(["ckpt", "safetensors"]), st.data())
def test_one_changed_element_is_found_by_a_full_comparison(model: models.Model, kind: str, data: st.DataObject) -> None:
    model = replace(model, remove_redundancy=False)
    files, (before, after) = [dict(tensors) for tensors in model.source()], disk.strategies(model)
    tensor = data.draw(st.sampled_from(model.tensors))
    by_rank = elements(model, tensor)
    rank = data.draw(st.sampled_from(sorted(by_rank)))
    at = data.draw(st.integers(0, by_rank[rank].size - 1))
    element = int(by_rank[rank].reshape(-1)[at])
    holders = {r for r, found in by_rank.items() if element in found}

    assert check(*placed(files, kind, before, after), "Full") == frozenset()
    files[rank][tensor.name] = changed(files[rank][tensor.name], at)
    found = placed(files, kind, before, after)
    found[1].remote = data.draw(st.booleans())  # reads are prefetched then
    if len(holders) == 1:
        assert check(*found, "Full") == check(*found, "Sample") == frozenset()
        return
    reason, where, what = refused(lambda: check(*found, "Full"))
    assert reason == ("RanksDisagree" if tensor.source is None else "ReplicasDiffer")
    assert where == f"parameter {tensor.name}"
    assert index_in(what) == (np.unravel_index(element, tensor.shape) if np.prod(tensor.shape) > 1 else None)
    assert groups(what) == {(rank,), tuple(sorted(holders - {rank}))}

    accepted = placed(files, kind, before, after, allow_inconsistent=("*",), lowest_replica=True)
    assert check(*accepted, "Full") == {tensor.name}


@QUIET
@given(models.models(RANKS), st.sampled_from(["ckpt", "safetensors"]))
def test_equal_copies_are_never_refused(model: models.Model, kind: str) -> None:
    found = placed(model.source(), kind, *disk.strategies(model))
    for level in ("None", "Sample", "Full"):
        assert check(*found, level) == frozenset()


@QUIET
@given(models.models(RANKS), st.data())
def test_a_sample_finds_a_change_within_its_blocks(model: models.Model, data: st.DataObject) -> None:
    model = replace(model, remove_redundancy=False)
    files, (before, after) = [dict(tensors) for tensors in model.source()], disk.strategies(model)
    tensor = data.draw(st.sampled_from(model.tensors))
    by_rank = elements(model, tensor)
    rank = data.draw(st.sampled_from(sorted(by_rank)))
    shared = [r for r, found in by_rank.items() if r != rank and np.array_equal(found, by_rank[rank])]
    assume(shared)
    content = files[rank][tensor.name]
    assume(content.nbytes <= 16 << 10)  # one block
    files[rank][tensor.name] = changed(content, data.draw(st.integers(0, content.size - 1)))
    found = placed(files, "ckpt", before, after)
    reason, where, what = refused(lambda: check(*found, "Sample"))
    assert (reason, where) == ("RanksDisagree" if tensor.source is None else "ReplicasDiffer", f"parameter {tensor.name}")
    assert (rank,) in groups(what)


@st.composite
def shared_by_two_stages(draw: Callable[..., Any]) -> tuple[tuple[int, ...], Cut, Cut]:
    """The shape of a parameter that two stages hold, and how each cuts it."""
    devices, ndim = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    cuts = draw(models.cuts(devices, ndim)), draw(models.cuts(devices, ndim))
    each = [models.parts(cut, ndim) for cut in cuts]
    return tuple(lcm(a, b) * draw(st.integers(1, 3)) for a, b in zip(*each, strict=True)), *cuts


@QUIET
@given(shared_by_two_stages(), st.data())
def test_stages_may_shard_a_shared_parameter_differently(case: tuple[tuple[int, ...], Cut, Cut], data: st.DataObject) -> None:
    shape, *cuts = case
    devices, whole = cuts[0].devices, np.random.default_rng(0).integers(0, 1 << 30, shape, np.int32)
    slices = [indexes for cut in cuts for indexes in held(shape, cut)]
    files = [{"emb": whole.reshape(-1)[found.reshape(-1)].reshape(found.shape)} for found in slices]
    before = Strategy(tuple({"emb": disk.layout(cut)} for cut in cuts), devices)
    after = Strategy(({"emb": Layout.whole(len(shape))},), 1)

    model, store = placed(files, "ckpt", before, after)
    for level in ("Sample", "Full"):
        assert check(model, store, level) == frozenset()
    made = task_of(Request("memory", "nowhere"), store, model, (before, after))
    assert rawfiles.equal(rawfiles.read("ckpt", written(made, 0))["emb"], whole)

    rank = data.draw(st.integers(0, 2 * devices - 1))
    at = data.draw(st.integers(0, slices[rank].size - 1))
    element = int(slices[rank].reshape(-1)[at])
    files[rank]["emb"] = changed(files[rank]["emb"], at)
    reason, _, what = refused(lambda: check(*placed(files, "ckpt", before, after), "Full"))
    assert reason == "ReplicasDiffer"
    if whole.size > 1:
        assert index_in(what) == np.unravel_index(element, shape)
    others = {r for r, found in enumerate(slices) if element in found} - {rank}
    assert groups(what) == {(rank,), tuple(sorted(others))}

    files[0]["emb"] = np.concatenate([files[0]["emb"]] * 2)
    assert refused(lambda: placed(files, "ckpt", before, after))[0] == "RanksDisagree"


@pytest.mark.parametrize("level", ["Sample", "Full"])
@pytest.mark.parametrize("whole", [False, True], ids=["slices", "whole"])
def test_copies_of_a_stage_whose_strategy_does_not_name_them_are_compared(level: str, *, whole: bool) -> None:
    rows, tensor = Layout((2,), ((0,),)), np.arange(8, dtype=np.int32)
    slices = [{"emb": tensor[:4]}, {"emb": tensor[4:]}]
    files = [*slices, *slices, *([{"emb": tensor}] * 2 if whole else slices)]
    # Only if several stages name the parameter may the shapes of its copies differ.
    before = Strategy(({"emb": rows}, {"emb": rows} if whole else {}, {}), 2)
    after = Strategy(({"emb": Layout((1,), ((),))},), 1)
    assert check(*placed(files, "ckpt", before, after), level) == frozenset()
    files[5] = {"emb": changed(files[5]["emb"], 1)}
    found = placed(files, "ckpt", before, after)
    reason, where, what = refused(lambda: check(*found, level))
    assert (reason, where) == ("ReplicasDiffer", "parameter emb")
    assert (5,) in groups(what)
    assert check(*placed(files, "ckpt", before, after, lowest_replica=True), level) == {"emb"}
    files[5] = {"emb": np.zeros(5, np.int32)}
    assert refused(lambda: placed(files, "ckpt", before, after))[0] == "RanksDisagree"


def test_a_step_that_only_another_stage_names_is_compared() -> None:
    files = [{f"w.{rank}": np.ones(4, np.int8), "global_step": np.array([100 + rank // 2])} for rank in range(4)]
    before = Strategy(({"global_step": Layout((2,), ((),))}, {}), 2)
    found = placed(files, "ckpt", before, Strategy(({"global_step": Layout((1,), ((),))},), 1))
    for level in ("None", "Sample", "Full"):
        reason, where, _ = refused(lambda level=level: check(*found, level))
        assert (reason, where) == ("ReplicasDiffer", "parameter global_step")


@QUIET
@given(models.models(RANKS))
def test_the_lowest_replica_is_one_consistent_set(model: models.Model) -> None:
    """Every copy except the lowest rank's is damaged, and the target is still right."""
    files, (before, after) = [dict(tensors) for tensors in model.source()], disk.strategies(model)
    for tensor in model.tensors:
        seen: set[bytes] = set()
        for rank, found in sorted(elements(model, tensor).items()):
            if tensor.source is not None and tensor.name in files[rank] and found.tobytes() in seen:
                files[rank][tensor.name] = changed(files[rank][tensor.name], 0)
            elif tensor.name in files[rank]:
                seen.add(found.tobytes())
    placed_model, store = placed(files, "safetensors", before, after, lowest_replica=True)
    request = Request("memory", "nowhere", options=Options(format="Safetensors", replicas="LowestRank"))
    made = task_of(request, store, placed_model, (before, after))
    for rank in range(model.target_ranks):
        assert rawfiles.same(rawfiles.read("safetensors", written(made, rank)), model.target(rank))


# ---- Costs


@pytest.mark.parametrize("name", ["global_step", "optimizer.step_num"])
def test_the_step_is_compared_among_any_number_of_small_parameters(name: str) -> None:
    others = [TensorEntry(f"norm.{i}.batches", "Int8", (), ((i, 1),)) for i in range(500)]
    structure = Structure("ckpt", (*others, TensorEntry(name, "Int64", (1,), ((500, 8),))))
    files = tuple(SourceFile(rank, f"rank_{rank}/x.ckpt", 508, "", 0) for rank in range(16))
    source = Strategy(({"weight": Layout((16,), ((0,),))},), 16)
    blocks = Copies(build_model(Inventory(files, (structure,)), source, None)).sample(0, replicas=True)
    assert all(name in {block.parameter.name for block in blocks[rank]} for rank in range(16))


@pytest.mark.parametrize("verification", [False, True])
@pytest.mark.parametrize("name", ["global_step", "optimizer.step_num"])
def test_a_step_that_a_strategy_names_is_compared_on_every_rank(name: str, *, verification: bool) -> None:
    entries = (TensorEntry("weight", "Int8", (8,), ((0, 8),)), TensorEntry(name, "Int64", (1,), ((8, 8),)))
    files = tuple(SourceFile(rank, f"rank_{rank}/x.ckpt", 16, "", 0) for rank in range(16))
    source = Strategy(({"weight": Layout((16,), ((0,),)), name: Layout((16,), ((),))},), 16)
    for most in (0, 256):
        blocks = Copies(build_model(Inventory(files, (Structure("ckpt", entries),)), source, None)).sample(
            most, replicas=verification
        )
        assert all([block.parameter.name for block in blocks[rank]].count(name) == 1 for rank in range(16))


@pytest.mark.parametrize("remote", [False, True])
def test_the_number_of_blocks_follows_from_the_bytes_that_are_written(remote: bool) -> None:
    found = [most_blocks(1 << exponent, remote=remote) for exponent in range(60)]
    assert found == sorted(found)
    assert found[-1] == 1 << 16
    for exponent in range(32, 60):
        assert found[exponent] * (16 << 10) <= 0.02 * (1 << exponent)


@pytest.mark.parametrize("cut", [Layout((32, 16), ((0,),)), Layout((512,), ((0,),)), Layout((32, 16), ((0,),), 16, 8)])
def test_blocks_are_bounded_for_any_number_of_ranks_and_names(cut: Layout) -> None:
    """4,096 ranks of 8 stages, 500 names in each, some of them in no strategy."""
    structures, files, stages = [], [], []
    for stage in range(8):
        names = [f"{stage}.{i}" for i in range(500)]
        entries = [TensorEntry(name, "Float32", (4096,), ((64 * i, 4 * 4096),)) for i, name in enumerate(names)]
        steps = [TensorEntry(name, "Int32", (), ((0, 4),)) for name in ("step", "epoch")]
        loose = [TensorEntry(f"loose.{i}", "Float32", (1 << 20,), ((0, 4 << 20),)) for i in range(100)]
        structures.append(Structure("ckpt", (*entries, *steps, *loose)))
        stages.append(dict.fromkeys(names, cut))
        files += [SourceFile(stage * 512 + r, f"rank_{stage * 512 + r}/x.ckpt", 1 << 30, "", stage) for r in range(512)]
    source = Strategy(tuple(stages), 512)
    copies = Copies(build_model(Inventory(tuple(files), tuple(structures)), source, None))
    began = time.process_time()
    for most in (256, 5000):
        blocks = copies.sample(most, replicas=True)
        small = sum(not block.parameter.shape for found in blocks.values() for block in found)
        assert small == 2 * 4096
        assert sum(map(len, blocks.values())) - small <= most
        assert blocks == copies.sample(most, replicas=True)
    sampled = {block.parameter.name for found in blocks.values() for block in found}
    assert {f"loose.{i}" for i in range(100)} <= sampled
    assert bool(copies.replicas) == (cut.device_matrix != (512,))
    assert any("." in name and name[0].isdigit() for name in sampled) == bool(copies.replicas)
    assert time.process_time() - began < 30
    assert format_ranks(tuple(blocks)) == "0-4095"
