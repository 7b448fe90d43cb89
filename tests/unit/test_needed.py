"""Bytes of the source that ranks require, by each and each once, against the definition of the slices."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

import models
import numpy as np
import pytest
import rawfiles
from definition import Cut, held
from disk import layout
from effort import examples
from hypothesis import given
from hypothesis import strategies as st
from memory_store import MemorySource
from memory_tasks import task

from reshard.plan import Needed, Planner, build_model, bytes_needed
from reshard.plan.summary import summarize
from reshard.source.files import Files
from reshard.source.reading import read_inventory
from reshard.spec.rules import PadRule
from reshard.strategy import Strategy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reshard.engine.task import Task


def by_definition(model: models.Model, made: Task, ranks: Sequence[int]) -> Needed:
    """Return the numbers of bytes, from the flat indexes of the elements that each rank's file contains."""
    total = distinct = 0
    for tensor in model.tensors:
        seen = np.zeros(prod(tensor.shape), bool)
        itemsize = model.whole(tensor).itemsize
        for rank in ranks:
            if tensor.name not in {parameter.source_name for parameter in made.planner.parameters(rank)}:
                continue
            everything = np.arange(prod(tensor.shape))
            indexes = everything if tensor.target is None else held(tensor.shape, tensor.target)[rank % model.target_devices]
            seen[indexes.reshape(-1)] = True
            total += indexes.size * itemsize
        distinct += int(seen.sum()) * itemsize
    return Needed(total, distinct)


@examples(200)
@given(models.models(16), st.booleans(), st.data())
def test_needed_and_distinct_bytes_of_any_ranks(model: models.Model, once: bool, data: st.DataObject) -> None:
    made, _ = task(model, "safetensors", "safetensors", remove_redundancy=once and model.target_ranks > 1)
    every = range(model.target_ranks)
    for ranks in (every, sorted(data.draw(st.sets(st.sampled_from(every), min_size=1)))):
        expected = by_definition(model, made, ranks)
        assert bytes_needed(made.planner, ranks) == expected
        summary = summarize(made.model, made.planner, ranks)
        assert (summary.bytes_needed, summary.bytes_distinct) == expected
        assert sum(made.planner.plan(rank).nbytes_needed for rank in ranks) == expected.total


ROWS, COLUMNS, QUARTERS = (
    Cut((2,), ((0,), ())),
    Cut((2,), ((), (0,))),
    Cut((4,), ((0,), ())),
)
WHOLE = Cut((4,), ((), ()))


def whole_source(*shapes: tuple[int, ...]) -> MemorySource:
    return MemorySource({"rank_0/x.safetensors": rawfiles.safetensors({f"w{i}": np.ones(n, "f4") for i, n in enumerate(shapes)})})


def planner(source: MemorySource, stages: Sequence[dict[str, Cut]], **options: object) -> Planner:
    """Return the planner of a whole source whose stages name layouts of its parameters."""
    inventory = read_inventory(source, Files({0: "rank_0/x.safetensors"}), workers=1)
    cuts = tuple({name: layout(cut) for name, cut in stage.items()} for stage in stages)
    devices = next(cut.devices for stage in stages for cut in stage.values()) if stages else 1
    return Planner(build_model(inventory, None, Strategy(cuts, devices) if stages else None, **options))


def test_a_tensor_in_several_stages_counts_once() -> None:
    found = planner(whole_source((8, 8)), [{"w0": ROWS}, {"w0": COLUMNS}, {"w0": ROWS}])
    assert bytes_needed(found, range(6)) == Needed(3 * 256, 256)
    assert bytes_needed(found, [0, 2]) == Needed(256, 192)  # the first rows and the first columns
    assert bytes_needed(found, [0, 4]) == Needed(256, 128)
    assert bytes_needed(found, [3]) == Needed(128, 128)


def test_replicas_count_once() -> None:
    found = planner(whole_source((8, 8), (4, 4)), [{"w0": QUARTERS, "w1": WHOLE}])
    assert bytes_needed(found, range(4)) == Needed(256 + 4 * 64, 256 + 64)
    assert bytes_needed(found, [1, 2]) == Needed(128 + 2 * 64, 128 + 64)


def test_padding_is_not_needed() -> None:
    found = planner(whole_source((6, 2)), [{"w0": QUARTERS}], pad=(PadRule("w0", 0, 8),))
    assert [bytes_needed(found, [rank]).total for rank in range(4)] == [16, 16, 16, 0]
    assert bytes_needed(found, range(4)) == Needed(48, 48)
    assert summarize(found.model, found, range(4)).rank_bytes == {0: 16, 1: 16, 2: 16, 3: 0}


def test_chunks_may_be_shorter_or_empty() -> None:
    found = planner(whole_source((5, 2), ()), [], target_ranks=4)
    assert bytes_needed(found, range(4)) == Needed(40 + 4 * 4, 40 + 4)
    assert bytes_needed(found, [2, 3]) == Needed(8 + 2 * 4, 8 + 4)


def test_an_empty_tensor_of_a_kind_changes_nothing() -> None:
    found = planner(whole_source((0, 8), (8, 8)), [{"w0": ROWS, "w1": ROWS}])
    assert bytes_needed(found, range(2)) == Needed(256, 256)


@pytest.mark.parametrize(("ranks", "expected"), [((0, 1), (8, 8)), ((0, 2), (8, 4)), ((0, 1, 2, 3), (16, 8))])
def test_copies_that_may_differ_count_each(ranks: tuple[int, ...], expected: tuple[int, int]) -> None:
    row = models.Cut((2,), ((0,),))
    tensors = (
        models.Tensor("step", "Int32", (), None, 0, None, 0),
        models.Tensor("w", "Int8", (4,), row, 0, models.Cut((4,), ((0,),)), 0),
    )
    made, _ = task(models.Model(2, 1, 4, 1, tensors, 1, remove_redundancy=False), "ckpt", "ckpt")
    step, w = made.model.parameters
    found = Planner(replace(made.model, parameters=(step.of_kind(replace(step.kind, per_rank=True)), w)))
    total, distinct = expected
    assert bytes_needed(found, ranks) == Needed(total + len(ranks), distinct + len(ranks))
