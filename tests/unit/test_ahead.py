"""Prefetching of planned reads: every byte once if possible, in bounded memory, and never a wrong one."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING

import models
import pytest
from effort import examples
from hypothesis import given
from hypothesis import strategies as st
from memory_store import MemoryReader
from memory_tasks import task, written

from reshard.engine.moves import moves, reads
from reshard.errors import StorageError
from reshard.storage.ahead import Ahead, requests, windows

if TYPE_CHECKING:
    from reshard.storage.ahead import Read

# Blocks that are read of every file when it is opened.
_SAMPLED = 5
READS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 500), st.integers(1, 60)), max_size=60)


@given(READS, st.integers(60, 300), st.integers(0, 40))
def test_windows_hold_the_reads_in_order(wanted: list[Read], most: int, gap: int) -> None:
    left = list(wanted)
    for window in windows(wanted, most=most, gap=gap):
        assert sum(r.end - r.start for r in window) <= most
        for found in window:
            others = [r for r in window if r.file == found.file and r is not found]
            assert all(r.end + gap < found.start or found.end + gap < r.start for r in others)
        while left and any(r.file == left[0][0] and r.start <= left[0][1] and left[0][1] + left[0][2] <= r.end for r in window):
            left.pop(0)
    assert left == []


@given(READS, st.integers(0, 3))
def test_planned_and_unplanned_reads_return_the_right_bytes(wanted: list[Read], skipped: int) -> None:
    contents = [random.Random(n).randbytes(600) for n in range(3)]
    files = [MemoryReader(str(n), content) for n, content in enumerate(contents)]
    ahead = Ahead(wanted[skipped:], lambda n: files[n], 1200)
    for file, offset, length in wanted:
        assert ahead.reader(file).read(offset, length) == contents[file][offset : offset + length]
    ahead.close()


def test_memory_is_bounded_and_requests_are_many_at_a_time() -> None:
    lock, under_way, most = threading.Lock(), [0], [0]
    enough = threading.Event()

    class Slow(MemoryReader):
        def read_into(self, view: memoryview, offset: int) -> None:
            with lock:
                under_way[0] += len(view)
                most[0] = max(most[0], under_way[0])
                if most[0] == 64 << 10:
                    enough.set()
            assert enough.wait(10), "not all of the memory is used"
            super().read_into(view, offset)
            with lock:
                under_way[0] -= len(view)

    content = random.Random(1).randbytes(1 << 20)
    foreseen = [(0, at, 1 << 10) for at in range(0, 1 << 20, 1 << 10)]
    ahead = Ahead(foreseen, lambda _: Slow("x", content), 64 << 10)
    reader = ahead.reader(0)
    assert b"".join(reader.read(at, n) for _, at, n in foreseen) == content
    assert most[0] == 64 << 10
    assert requests(foreseen, 64 << 10) == 32
    ahead.close()


def test_a_failure_is_raised_by_the_read_that_needs_the_bytes() -> None:
    class Broken(MemoryReader):
        def read_into(self, view: memoryview, offset: int) -> None:
            if offset >= 512:
                raise StorageError("Unreachable", "broken", where=self.name)
            super().read_into(view, offset)

    ahead = Ahead([(0, 0, 100), (0, 600, 100)], lambda _: Broken("x", bytes(1000)), 400)
    assert ahead.reader(0).read(0, 100) == bytes(100)
    with pytest.raises(StorageError):
        ahead.reader(0).read(600, 100)
    ahead.close()


@examples(150)
@given(models.models(16, dtypes=("Float32", "BFloat16", "Int8")), st.sampled_from(["ckpt", "safetensors"]), st.data())
def test_a_plan_predicts_exactly_the_ranges_that_are_read(model: models.Model, kind: str, data: st.DataObject) -> None:
    model = model.repeated(data.draw(st.sampled_from([1, 1, 1, 12])))
    made, store = task(model, kind, kind)
    for rank in range(min(model.target_ranks, 3)):
        if kind == "ckpt" and not model.target(rank):
            continue
        plan = made.planner.plan(rank)
        laid_out = list(made.pieces(rank))
        foreseen: dict[str, list[tuple[int, int]]] = {}
        paths = {file.rank: file.path for file in made.model.inventory.files}
        for source, offset, length in reads(moves(plan, laid_out)):
            foreseen.setdefault(paths[source], []).append((offset, length))
        store.readers.clear()
        written(made, rank)
        done = {reader.name: reader.reads[_SAMPLED:] for reader in store.readers}
        assert {name: found for name, found in done.items() if found} == foreseen
