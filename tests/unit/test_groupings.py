"""Tests of the number of bytes that pods will fetch with a division of the ranks, and of the division that the plan chooses."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any

import disk
import models
import numpy as np
import pytest
from effort import examples
from hypothesis import given
from hypothesis import strategies as st
from memory_tasks import task
from traffic_cases import CASES

from reshard.layout.box import Box
from reshard.plan import bytes_needed
from reshard.plan.fetched import MOST_OVERREAD, Fetching, Reading, _spans
from reshard.plan.groupings import MOST_FETCHED, Groupings, choose
from reshard.plan.passes import Limits, passes
from reshard.spec.ranks import Grouping, format_ranks
from reshard.spec.request import Options, Request
from reshard.transform.plan import plan_transform
from reshard.transform.pods import Pods
from reshard.transform.run import transform_checkpoint

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import thin_s3

    from reshard.plan import Planner

LIMITS = Limits(64, 1000, equal=True, few=1, run=64 << 10)
READING = Reading(gap=4 << 10, most=1 << 20)
MERGED = models.Cut((8,), ((0,), ())), models.Cut((4,), ((0,), ()))
# Replicas of each half of a cut: neighbours in the cut need the same rows, and so do the ranks 4 and 8 after them.
BOTH = models.Cut((2,), ((), (0,))), models.Cut((3, 4), ((), (0,)))


def model(cuts: Sequence[tuple[models.Cut | None, models.Cut | None]], shape: tuple[int, ...] = (64, 512)) -> models.Model:
    tensors = tuple(
        models.Tensor(f"w{i}", "Float32", () if before is None else shape, before, 0, after, 0)
        for i, (before, after) in enumerate(cuts)
    )
    before, after = next((a, b) for a, b in cuts if a is not None and b is not None)
    return models.Model(before.devices, 1, after.devices, 1, tensors, 1, remove_redundancy=False)


def groupings(made: models.Model, ranks: Sequence[int] | None = None, **chosen: Any) -> tuple[Groupings, Planner]:
    planner = task(made, "safetensors", "safetensors", **chosen)[0].planner
    return Groupings(planner, range(made.target_ranks) if ranks is None else ranks, LIMITS, READING), planner


def chosen_of(made: models.Model, parallelism: int) -> tuple[Grouping, float]:
    """Return the grouping that is chosen, and the fetched bytes as a multiple of the distinct ones."""
    found, planner = groupings(made)
    distinct = bytes_needed(planner, range(made.target_ranks)).distinct
    option = choose(found.compare(parallelism, distinct), distinct)
    return option.grouping, option.bytes_fetched / distinct


@pytest.mark.parametrize(
    ("cuts", "parallelism", "expected", "ratio"),
    [
        (CASES["columns"], 4, Grouping.consecutive(2), 1.0),
        (CASES["columns"], 5, Grouping(), 2.0),  # two ranks per pod would be four pods
        (CASES["replicas"], 2, Grouping(1, 4, 2), 1.0),
        (CASES["replicas"], 4, Grouping(1, 2, 2), 2.0),
        (CASES["replicas"], 8, Grouping(), 4.0),
        (CASES["shards"], 2, Grouping.consecutive(2), 1.0),
        ([MERGED], 1, Grouping(), 1.0),
        ([BOTH], 2, Grouping(2, 3, 4), 1.0),
        ([BOTH, *[(None, None)] * 2], 2, Grouping(2, 3, 4), 1.0),
    ],
)
def test_the_most_pods_that_fetch_few_bytes_are_chosen(
    cuts: list[tuple[models.Cut | None, models.Cut | None]], parallelism: int, expected: Grouping, ratio: float
) -> None:
    grouping, found = chosen_of(model(cuts), parallelism)
    assert grouping == expected
    assert found == pytest.approx(ratio, rel=0.02)


def test_large_groups_must_save_something() -> None:
    every, some = models.Cut((4,), ((0,), ())), models.Cut((8,), ((), (0,)))
    grouping, ratio = chosen_of(model([(every, some), CASES["replicas"][0]]), 4)
    assert grouping.size == 2
    assert ratio > MOST_FETCHED


@pytest.mark.parametrize("case", [*CASES, "merged", "both"])
def test_pods_fetch_what_the_plan_said(server: thin_s3.ThinServer, tmp_path: Path, case: str) -> None:
    made = disk.write(tmp_path, model((CASES | {"merged": [MERGED], "both": [BOTH]})[case], (512, 4096)), "safetensors")
    for path in made.source.rglob("*.safetensors"):
        server.put("bucket", str(path.relative_to(tmp_path)), path.read_bytes())

    def request(target: str, ranks: str | None = None) -> Request:
        strategies = {"source_strategy": str(made.source_strategy), "target_strategy": str(made.target_strategy)}
        return Request("s3://bucket/src", target, **strategies, options=Options(verification="None", only_ranks=ranks))

    options = plan_transform(request("s3://bucket/out"), pods=Pods(2)).pods
    ranks, last = range(made.model.target_ranks), next(option for option in options if option.chosen)
    for option in {options[0], last}:
        fetched = 0
        for index in range(option.pods):
            group = format_ranks(option.grouping.group(ranks, index))
            target = str(tmp_path / f"{option.ranks_per_pod}")
            fetched += transform_checkpoint(request(target, group), commit=False).bytes_fetched
        assert fetched == pytest.approx(option.bytes_fetched, rel=0.02)


@examples(200)
@given(
    made=models.models(16),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 8)),
    once=st.booleans(),
    data=st.data(),
)
def test_groups_that_are_alike_fetch_equally_many_bytes(
    made: models.Model, sizes: tuple[int, int, int], data: st.DataObject, *, once: bool
) -> None:
    every = range(made.target_ranks)
    ranks = sorted(data.draw(st.sets(st.sampled_from(every), min_size=1)))
    _, planner = groupings(made, ranks, remove_redundancy=once and made.target_ranks > 1)
    run, count, stride = sizes
    grouping = Grouping(run, count, max(run, stride))
    groups = [grouping.group(ranks, index) for index in range(grouping.groups(len(ranks)))]
    for gap in (0, 8):
        reading = READING._replace(gap=gap)
        fetching = Fetching(planner, reading)
        option = Groupings(planner, ranks, LIMITS, reading).examine(grouping)
        assert option.bytes_fetched == sum(fetching.nbytes(some) for group in groups for some in passes(planner, group, LIMITS))
        alone = Groupings(planner, ranks, None, reading).examine(grouping)
        needed = [bytes_needed(planner, [rank]) for rank in ranks]
        assert alone.bytes_fetched == sum(fetching.nbytes((rank,)) for rank in ranks)
        assert alone.bytes_fetched >= sum(each.distinct for each in needed)
        assert gap or alone.bytes_fetched <= MOST_OVERREAD * sum(each.total for each in needed)


def test_every_group_of_a_comparison_is_like_an_examined_one() -> None:
    made = model([BOTH], (64, 1024))
    found, planner = groupings(made)
    for option in found.compare(1, 1):
        groups = [option.grouping.group(range(12), index) for index in range(option.pods)]
        alone = [Groupings(planner, group, LIMITS, READING).examine(Grouping.consecutive(len(group))) for group in groups]
        assert option.bytes_fetched == sum(each.bytes_fetched for each in alone)


def test_stages_with_equal_parameters_are_alike() -> None:
    rows = models.Cut((2,), ((0,), ()))
    shapes = (8, 8), (8, 8), (4, 4)
    tensors = tuple(models.Tensor(f"w{i}", "Float32", shape, rows, 0, rows, i) for i, shape in enumerate(shapes))
    found, _ = groupings(models.Model(2, 1, 2, 3, tensors, 1, remove_redundancy=False))
    option = found.examine(Grouping.consecutive(2))
    assert (option.pods, option.bytes_fetched, len(option.groups)) == (3, 2 * 256 + 64, 2)


def test_replicas_in_one_stage_are_unlike_those_in_two() -> None:
    whole = models.Cut((2,), ((), ()))
    tensors = tuple(models.Tensor(f"w{i}", "Float32", (8, 8), whole, 0, whole, i) for i in range(3))
    found, _ = groupings(models.Model(2, 1, 2, 3, tensors, 1, remove_redundancy=False), [0, 1, 2, 4])
    assert found.examine(Grouping.consecutive(2)).bytes_fetched == 3 * 256


def test_slices_that_are_written_once_are_fetched_once() -> None:
    made = model(CASES["replicas"] * 3)
    found, planner = groupings(made, remove_redundancy=True)
    assert found.examine(Grouping()).bytes_fetched == bytes_needed(planner, range(8)).distinct


def test_no_pod_has_more_ranks_than_there_are(tmp_path: Path) -> None:
    made = disk.write(tmp_path, model(CASES["replicas"]), "safetensors")
    request = Request(str(made.source), str(tmp_path / "out"), str(made.source_strategy), str(made.target_strategy))
    for ranks_per_pod, expected in ((100, 8), (None, 8), (3, 3)):
        (option,) = plan_transform(request, pods=Pods(2, ranks_per_pod)).pods
        assert (option.grouping, option.ranks_per_pod) == (Grouping.consecutive(expected), expected)
    assert plan_transform(request, pods=Pods(2)).pods[-1].grouping == Grouping(1, 4, 2)
    (option,) = plan_transform(Request(request.source, request.target, options=Options(output="Same")), pods=Pods(1)).pods
    assert (option.grouping, option.pods) == (Grouping(), 4)  # each rank reads its own file


def naive(shape: tuple[int, ...], boxes: Sequence[Box], gap: int) -> tuple[int, int, int]:
    """Fetched elements, those before the first, and those after the last, from a picture of all elements."""
    seen = np.zeros(shape, bool)
    for box in boxes:
        seen[box.slices()] = True
    wanted = np.flatnonzero(seen.reshape(-1)).tolist()
    if not wanted:
        return 0, prod(shape), prod(shape)
    steps = [b - a for a, b in pairwise(wanted)]
    return 1 + sum(step if step - 1 <= gap else 1 for step in steps), wanted[0], prod(shape) - 1 - wanted[-1]


@st.composite
def slices(draw: Any) -> tuple[tuple[int, ...], tuple[Box, ...]]:
    shape = tuple(draw(st.lists(st.integers(1, 5), max_size=3)))
    boxes = []
    for _ in range(draw(st.integers(0, 4))):
        start = tuple(draw(st.integers(0, n - 1)) for n in shape)
        boxes.append(Box(start, tuple(draw(st.integers(1, n - a)) for n, a in zip(shape, start, strict=True))))
    return shape, tuple(boxes)


@examples(500)
@given(slices(), st.integers(0, 8))
def test_gaps_that_are_fetched(case: tuple[tuple[int, ...], tuple[Box, ...]], gap: int) -> None:
    assert tuple(_spans(*case, gap)) == naive(*case, gap)
