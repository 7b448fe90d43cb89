"""The memory of a commit is within the bound that plans state, however many fingerprints of slices the records contain."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import disk
import models
import numpy as np
import pytest

from reshard.checkpoint.inventory import Inventory
from reshard.checkpoint.manifest import FileRecord, Loss
from reshard.checkpoint.output import digest_of_tensors
from reshard.engine.memory import commit_bytes, memory_bytes
from reshard.formats.registry import output_format
from reshard.layout import Layout
from reshard.layout.box import Box
from reshard.plan import Kind, Model, Parameter, Role
from reshard.progress import Silent
from reshard.spec.request import Options, Request
from reshard.spec.rules import CastRule
from reshard.storage import open_store
from reshard.storage.local import LocalStore
from reshard.target.cast_losses import CastLosses
from reshard.target.fingerprint_sums import FingerprintSums, SliceFingerprints
from reshard.target.folder import TargetFolder
from reshard.transform.complete import commit_checkpoint
from reshard.transform.inputs import Inputs
from reshard.transform.plan import plan_transform
from reshard.transform.prepare import prepare

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

NAMES = 600
FEW, MANY = 32, 160


def peak_of_commit(folder: Path, ranks: int, form: str, *, cast: bool) -> int:
    """The memory of a commit of this number of ranks, whose records another process may have written."""
    layouts = disk.Cut((1,), ((),)), 0, disk.Cut((ranks,), ((0,),)), 0
    tensors = tuple(models.Tensor(f"layers.{n}.weight", "Float32", (ranks,), *layouts) for n in range(NAMES))
    made = disk.write(folder, models.Model(1, 1, ranks, 1, tensors, 1, remove_redundancy=False), "safetensors")
    options = Options(format=form, verification="None", cast=(CastRule("*", "BFloat16"),) if cast else ())
    request = Request(str(made.source), str(folder / "target"), None, str(made.target_strategy), options=options)
    digest = plan_transform(request, write=True).digest
    task = prepare(Inputs(request), Silent(), workers=1)
    state = TargetFolder(open_store(request.target), None).task(digest)
    rng = np.random.default_rng(0)
    losses = CastLosses.of({number: Loss(1000 + number, number) for number in range(NAMES)} if cast else {})
    for rank in range(ranks):
        path = folder / "target" / output_format(form).path(rank, ranks, f"rank_{rank}/checkpoint_{rank}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        name, described = path.relative_to(folder / "target").as_posix(), task.tensors(rank)
        record = FileRecord(
            rank,
            name,
            1,
            "xxh3-128:" + "0" * 32,
            1,
            1,
            0,
            "None",
            rounded=int(cast),
            tensors="" if form == "Safetensors" else digest_of_tensors(described),
        )
        sums = rng.integers(1 << 63, size=NAMES).astype(np.uint64)
        state.record(record, losses, (SliceFingerprints.of(Box((rank,), (1,)), np.arange(NAMES), sums),))
    tracemalloc.start()
    try:
        manifest = commit_checkpoint(request.target, digest=digest)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    for number, found in enumerate(manifest.parameters.records):
        assert found.fingerprint is not None
        assert found.loss == (Loss(ranks * (1000 + number), ranks * number) if cast else None)
    return peak


@pytest.mark.parametrize(("form", "slices", "cast"), [("Safetensors", 0, True), ("TorchDcp", NAMES, False)])
def test_each_rank_takes_no_more_than_the_bound(tmp_path: Path, form: str, slices: int, cast: bool) -> None:
    """The documents of a distributed checkpoint contain the location of each slice."""
    few, many = (FEW, MANY) if not slices else (FEW // 8, FEW)
    peaks = [peak_of_commit(tmp_path / str(ranks), ranks, form, cast=cast) for ranks in (few, many)]
    bounds = [commit_bytes(ranks, NAMES, 1, ranks * slices) for ranks in (few, many)]
    assert peaks[1] - peaks[0] < bounds[1] - bounds[0]


def test_few_records_are_in_memory_at_a_time(tmp_path: Path) -> None:
    names, ranks = 20_000, 32
    state = TargetFolder(open_store(str(tmp_path)), None).task("0" * 64)
    losses = CastLosses.of(dict.fromkeys(range(names), Loss(1 << 40, 2)))
    fingerprints = SliceFingerprints.of(Box((0,), (1,)), np.arange(names), np.arange(names, dtype=np.uint64))
    for rank in range(ranks):
        state.record(FileRecord(rank, f"rank_{rank}/x", 1, "xxh3-128:0", 1, 1, 0, "Full"), losses, (fingerprints,))
    tracemalloc.start()
    try:
        assert len(state.records(None, add=lambda _: None)) == len(state.records(None)) == ranks
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < commit_bytes(ranks, names, 1)


def test_each_shape_takes_no_more_than_the_bound() -> None:
    """Every parameter has a shape and a layout of its own, so that nothing is shared."""
    shapes, ranks = 250, 16

    def slices(rank: int) -> list[SliceFingerprints]:
        one = np.ones(1, np.uint64)
        return [SliceFingerprints.of(Box((rank, 0), (1, 3 + n)), np.array([n]), one) for n in range(shapes)]

    records = [slices(rank) for rank in range(ranks)]
    found = FingerprintSums([(ranks, 3 + n) for n in range(shapes)], range(shapes), records.__getitem__)
    found.add(0, records[0])
    tracemalloc.start()
    try:
        for rank in range(1, ranks):
            found.add(rank, records[rank])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.whole()[1].all()
    assert peak < commit_bytes(ranks, shapes, shapes) - commit_bytes(0, 0, 0)


def test_kinds_that_differ_only_in_the_source_count_once() -> None:
    """The shards of each parameter of a distributed checkpoint have locations of their own."""
    layouts = Layout((8,), ((0,),)), Layout((8,), ((),))
    distinct = [((8,), layouts[0], (0,)), ((16,), layouts[0], (0,)), ((8,), layouts[1], (0,)), ((8,), layouts[0], (1,))]

    def bound(kinds: Iterable[tuple[tuple[int, ...], Layout, tuple[int, ...]]]) -> int:
        each = (Kind("Float32", shape, Role.CUT, None, (0,), target, stages, ()) for shape, target, stages in kinds)
        parameters = tuple(Parameter("n", "n", kind) for kind in each)
        model = Model(Inventory((), ()), 1, 1, 1 << 15, 2, parameters)
        return memory_bytes(model, 1, LocalStore("/"), LocalStore("/"), ())

    one_bit_each = 200 * (1 << 16)
    assert bound(distinct * 50) - bound(distinct) < one_bit_each < bound(distinct) - bound(distinct[:3])
