"""Small tensors that are read together: which reads there are, and that each byte gets to its place."""

from __future__ import annotations

import numpy as np
import pytest
from effort import examples
from hypothesis import given
from hypothesis import strategies as st
from memory_tasks import task, written
from models import Cut, Model, Tensor

from reshard.engine.moves import moves, reads
from reshard.engine.small import Small, scatter
from reshard.plan.runs import Runs, joined, reads_of

FILES = [np.frombuffer(np.random.default_rng(rank).bytes(1 << 20), np.uint8) for rank in range(3)]
# Rank, gap before the run in the file, and length of each run, in the order of the file.
GAPS, LENGTHS = st.sampled_from([0, 0, 1, 100, 5000]), st.sampled_from([1, 4, 64, 300, 9000])
RUNS = st.lists(st.tuples(st.integers(0, 2), GAPS, LENGTHS), min_size=1, max_size=60)


@examples(300)
@given(RUNS, st.randoms(use_true_random=False), st.integers(9000, 20000))
def test_each_byte_of_joined_runs_is_read_once_and_copied_to_its_place(
    drawn: list[tuple[int, int, int]], rng: st.Randoms, most: int
) -> None:
    ends, rows = [0, 0, 0], []
    for rank, gap, length in drawn:
        rows.append((rank, ends[rank] + gap, length))
        ends[rank] += gap + length
    order = list(range(len(rows)))
    if rng.random() < 0.5:
        rng.shuffle(order)
    places, total = {}, 0
    for number in order:
        places[number] = total
        total += rows[number][2]
    expected = np.zeros(total, np.uint8)
    for number, (rank, source, length) in enumerate(rows):
        expected[places[number] : places[number] + length] = FILES[rank][source : source + length]
    mixed = sorted(range(len(rows)), key=lambda _: rng.random())
    columns = zip(*((rows[i][0], rows[i][1], places[i], rows[i][2]) for i in mixed), strict=True)
    alone, together = joined(Runs(*(np.array(column) for column in columns)), most)

    into = memoryview(bytearray(total))
    for rank, source, target, length in zip(*(column.tolist() for column in alone), strict=True):
        into[target : target + length] = FILES[rank][source : source + length].data
    for each in together:
        needed = int(each.runs.lengths.sum())
        assert len(each.runs.lengths) > 1
        assert each.end - each.start <= most
        assert each.end - each.start <= 1.25 * needed or each.runs.lengths.min() < 64
        scatter(memoryview(FILES[each.rank][each.start : each.end].tobytes()), each.start, each.runs, into)
    assert bytes(into) == expected.tobytes()
    assert len(alone.lengths) + sum(len(each.runs.lengths) for each in together) <= len(rows)


def test_neighbours_that_stay_neighbours_are_one_run() -> None:
    runs = Runs(*(np.array(column) for column in ([0, 0, 1], [100, 108, 116], [0, 8, 16], [8, 8, 8])))
    alone, together = joined(runs, 1 << 20)
    assert [column.tolist() for column in alone] == [[0, 1], [100, 116], [0, 16], [16, 8]]
    assert not together


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_thousands_of_small_tensors_take_few_reads(kind: str) -> None:
    rows, columns = Cut((4,), ((0,), ())), Cut((2,), ((), (0,)))
    tensors = tuple(Tensor(f"t{i}", "Float32", (8, 4), rows, 0, columns, 0) for i in range(300))
    model = Model(4, 1, 2, 1, tensors, 1, remove_redundancy=False)
    made, _ = task(model, kind, kind)
    plan = made.planner.plan(0)
    steps = list(moves(plan, made.pieces(0)))
    assert sum(step.end - step.first for step in steps if isinstance(step, Small)) == len(tensors)
    assert len(list(reads(steps))) <= 8
    assert len(written(made, 0)) == made.file_size(0)


@examples(60)
@given(st.data())
def test_no_more_is_fetched_for_small_tensors_than_their_plan_states(data: st.DataObject) -> None:
    cuts = [Cut((4,), dims) for dims in (((), ()), ((0,), ()), ((), (0,)))]
    shapes = data.draw(st.lists(st.sampled_from([(4, 4), (4, 64), (24, 24), (8, 512)]), min_size=9, max_size=60))
    tensors = tuple(
        Tensor(f"t{i}", "Float32", shape, data.draw(st.sampled_from(cuts)), 0, data.draw(st.sampled_from(cuts)), 0)
        for i, shape in enumerate(shapes)
    )
    made, _ = task(Model(4, 1, 4, 1, tensors, 1, remove_redundancy=False), "safetensors", "safetensors")
    plan = made.planner.plan(data.draw(st.integers(0, 3)))
    first, end = sorted(data.draw(st.lists(st.integers(0, len(shapes)), min_size=2, max_size=2)))
    numbers = first + np.flatnonzero(plan.small[first:end])
    lengths = [
        length
        for alone, together in reads_of(plan, numbers, plan.ends[numbers], 1 << 20)
        for length in (*(run[3] for run in alone), *(each.end - each.start for each in together))
    ]
    ends, of_last = plan.most_fetched
    assert sum(lengths) <= ends[end] - ends[first] + of_last
