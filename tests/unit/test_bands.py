"""One pass over the source for several ranks, against numpy slices of the whole tensor."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from threading import Thread
from typing import TYPE_CHECKING

import models
import numpy as np
import pytest
import rawfiles
from effort import examples
from hypothesis import given
from hypothesis import strategies as st
from memory_store import MemoryReader
from memory_tasks import task, together

from reshard.engine.bands import batches
from reshard.engine.gather import Gatherer
from reshard.engine.moves import FileMoves
from reshard.engine.passes import _Queue
from reshard.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from reshard.engine.gather import OpenFiles
    from reshard.engine.task import Task

FORMATS = ["ckpt", "safetensors"]


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("target", FORMATS)
@examples(300)
@given(model=models.models(), data=st.data())
def test_a_pass_gives_every_rank_exactly_its_slices(source: str, target: str, model: models.Model, data: st.DataObject) -> None:
    made, _ = task(model, source, target)
    ranks = data.draw(st.lists(st.integers(0, model.target_ranks - 1), min_size=1, max_size=8, unique=True))
    ranks = [rank for rank in ranks if target == "safetensors" or model.target(rank)]
    batch, tile = data.draw(st.sampled_from([4096, 40000, 1 << 20])), data.draw(st.sampled_from([256, 4096, 1 << 20]))
    for rank, content in zip(ranks, together(made, ranks, batch=batch, tile=tile), strict=True):
        found, expected = rawfiles.read(target, content), model.target(rank)
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            assert found[name].shape == array.shape
            assert found[name].dtype == array.dtype
            assert found[name].tobytes() == np.ascontiguousarray(array).tobytes()


def shared() -> Task:
    """Return a task of which 8 target ranks share a pass with several batches."""
    cut = models.Cut((4,), ((0,), ()))
    tensors = (models.Tensor("w", "Float32", (64, 4096), cut, 0, models.Cut((4, 2), ((0,), ())), 0),)
    return task(models.Model(4, 1, 8, 1, tensors, 1, remove_redundancy=False), "ckpt", "ckpt")[0]


def test_a_batch_has_room_for_different_copies_of_each_file() -> None:
    tensors = (
        models.Tensor("w", "Float32", (64, 64), models.Cut((16,), ((0,), ())), 0, models.Cut((16,), ((), ())), 0),
        models.Tensor("own", "Float32", (64, 1024), None, 0, None, 0),
    )
    made, _ = task(models.Model(16, 1, 16, 1, tensors, 1, remove_redundancy=False), "safetensors", "safetensors")
    parameters = [each.of_kind(replace(each.kind, per_rank=each.name == "own")) for each in made.model.parameters]
    planner = replace(made.planner, model=replace(made.model, parameters=tuple(parameters)))
    files = [FileMoves(plan, made.pieces(plan.rank), 4096) for plan in planner.plans(range(16))]
    lengths = [sum(each.end - each.start for each in batch.ranges) for batch in batches(files, parameters, 1 << 18, 0)]
    assert sum(lengths) == 16 * 64 * 1024 * 4 + 64 * 64 * 4
    assert max(lengths) <= 1 << 18


def test_a_batch_has_room_for_the_gaps_between_tiny_tensors() -> None:
    whole = models.Cut((2,), ((), ()))
    tensors = [models.Tensor("w", "Float32", (64, 64), models.Cut((2,), ((0,), ())), 0, whole, 0)]
    for i in range(300):
        tensors.append(models.Tensor(f"{i:03}.bias", "Float32", (1000,), None, 0, None, 0))
        tensors.append(models.Tensor(f"{i:03}.scale", "Float32", (1,), None, 0, None, 0))
    model = models.Model(2, 1, 2, 1, tuple(tensors), 1, remove_redundancy=False)
    made, _ = task(model, "safetensors", "safetensors", include=("w", "*.scale"))
    files = [FileMoves(plan, made.pieces(plan.rank), 4096) for plan in made.planner.plans(range(2))]
    found = list(batches(files, made.model.parameters, 1 << 18, 0))
    assert sum(each.end - each.start for batch in found for each in batch.ranges) > 1 << 20
    assert max(sum(each.end - each.start for each in batch.ranges) for batch in found) <= 1 << 18


def test_files_that_are_in_memory_need_no_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    usual, gatherers = Gatherer.__init__, list[Gatherer]()

    def created(self: Gatherer, files: OpenFiles, tile_bytes: int) -> None:
        gatherers.append(self)
        usual(self, files, tile_bytes)

    monkeypatch.setattr(Gatherer, "__init__", created)
    together(shared(), range(8), batch=40000, tile=4096)
    assert len(gatherers) == 8
    assert not any(isinstance(held, bytearray) for each in gatherers for held in vars(each).values())


def test_a_failure_to_fetch_ends_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    made = shared()

    def fails(self: MemoryReader, view: memoryview, offset: int) -> None:
        del view, offset
        raise StorageError("ReadFailed", "broken", where=self.name)

    monkeypatch.setattr(MemoryReader, "read_into", fails)
    with pytest.raises(StorageError, match="broken"):
        together(made, range(8), batch=40000, tile=4096)


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", [1, 2, 9])
def test_a_pass_that_cannot_start_a_batch_ends(monkeypatch: pytest.MonkeyPatch, error: BaseException, call: int) -> None:
    made, usual, calls = shared(), _Queue.add, count(1)

    def fails(self: _Queue, work: Callable[[], None]) -> None:
        if next(calls) == call:
            raise error
        usual(self, work)

    monkeypatch.setattr(_Queue, "add", fails)
    ended: list[BaseException] = []

    def run() -> None:
        try:
            together(made, range(8), batch=40000, tile=4096)
        except BaseException as raised:  # noqa: BLE001 - compared below
            ended.append(raised)

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert ended == [error]
