"""Parts of a file are emitted in order and written by other threads, and a failure in any thread ends all."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

import disk
import pytest

from reshard.cli import main
from reshard.engine import rankfile
from reshard.engine.overlap import emitting
from reshard.transform import ranks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from reshard.engine.overlap import Emit
    from reshard.engine.task import Task
    from reshard.plan import RankPlan

SIZE = 4
operation: ContextVar[str] = ContextVar("operation", default="none")


def emit_all(emit: Emit, parts: list[bytes], threads: int) -> None:
    """Emit one part of each buffer, except that every third buffer has two."""
    with emitting(emit, SIZE, threads) as output:
        at = 0
        for number, part in enumerate(parts):
            output.buffer[at : at + len(part)] = part
            output.emit(at, at + len(part))
            at += len(part)
            if number % 3 or at + SIZE > len(output.buffer):
                output.exchange()
                at = 0


def running() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "reshard-write"]


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 100])
def test_parts_are_emitted_once_in_order_and_then_written(count: int, threads: int) -> None:
    parts = [bytes([i]) * (1 + i % 2) for i in range(count)]
    emitted: list[bytes] = []
    written: list[bytes] = []

    def emit(part: memoryview) -> Callable[[], None]:
        emitted.append(bytes(part))
        return lambda: written.append(bytes(part))

    emit_all(emit, parts, threads)
    assert emitted == parts
    assert sorted(written) == sorted(parts)
    if threads < 2:
        assert written == parts
    assert not running()


@pytest.mark.parametrize("threads", [0, 3])
def test_a_part_that_was_written_at_once_needs_no_thread(threads: int) -> None:
    found: list[bytes] = []
    emit_all(lambda part: found.append(bytes(part)), [b"a", b"b", b"c"], threads)
    assert found == [b"a", b"b", b"c"]
    with emitting(lambda _: None, SIZE, threads) as output:
        buffer = output.buffer
        output.emit(0, SIZE)
        output.exchange()
        assert output.buffer is buffer


def test_the_next_part_is_emitted_while_a_part_is_written() -> None:
    emitted, ended = threading.Event(), []

    with emitting(lambda _: lambda: ended.append(emitted.wait(timeout=30)), SIZE, 1) as output:
        output.emit(0, SIZE)
        output.exchange()
        output.emit(0, SIZE)
        emitted.set()  # never, if the first part had to be written before
    assert ended == [True, True]


@pytest.mark.parametrize("threads", [1, 3])
def test_parts_are_written_at_the_same_time_by_this_number_of_threads(threads: int) -> None:
    all_there, most, lock, active = threading.Barrier(threads), [0], threading.Lock(), [0]

    def write() -> None:
        with lock:
            active[0] += 1
            most[0] = max(most[0], active[0])
        all_there.wait(timeout=30)
        with lock:
            active[0] -= 1

    with emitting(lambda _: write, SIZE, threads) as output:
        for _ in range(threads * 4):
            output.emit(0, SIZE)
            output.exchange()
    assert most == [threads]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_buffer_is_not_filled_before_its_parts_were_written(threads: int) -> None:
    held, let_go = [], threading.Event()

    def write(part: memoryview) -> None:
        let_go.wait(timeout=30)
        held.append(bytes(part))

    with emitting(lambda part: partial(write, part), SIZE, threads) as output:
        buffers = []
        for i in range(threads + 1):
            buffers.append(output.buffer)
            output.buffer[:] = b"%d" % i * SIZE
            output.emit(0, SIZE)
            if i == threads:
                let_go.set()
            output.exchange()
        assert all(a is not b for n, a in enumerate(buffers) for b in buffers[:n])
    assert sorted(held) == [b"%d" % i * SIZE for i in range(threads + 1)]


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("at", [0, 5, 19])
def test_a_failure_of_emit_is_raised_and_nothing_follows(at: int, threads: int) -> None:
    found: list[int] = []

    def emit(part: memoryview) -> None:
        found.append(part[0])
        if part[0] == at:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        emit_all(emit, [bytes([i]) for i in range(20)], threads)
    assert found == list(range(at + 1))
    assert not running()


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("at", [0, 5, 19])
def test_a_failure_of_a_write_is_raised_and_little_follows(at: int, threads: int) -> None:
    emitted: list[int] = []
    written: list[int] = []

    def emit(part: memoryview) -> Callable[[], None]:
        emitted.append(part[0])
        return partial(write, part)

    def write(part: memoryview) -> None:
        if part[0] == at:
            raise OSError(28, "No space left on device")
        written.append(part[0])

    with pytest.raises(OSError, match="No space left"):
        emit_all(emit, [bytes([i]) for i in range(20)], threads)
    assert set(range(at)) - set(written) <= set(range(at - 2 * threads, at))  # other threads may have had parts before it
    if threads == 1:
        assert written == list(range(at))
    assert len(emitted) <= at + 1 + 2 * (threads + 1)  # what fits into the buffers
    assert not running()


def test_a_failure_of_the_producer_is_raised_and_ends_the_threads() -> None:
    found: list[int] = []
    let_go = threading.Event()

    def write(part: memoryview) -> None:
        let_go.wait(timeout=30)
        found.append(part[0])

    def fail() -> None:
        with emitting(lambda part: partial(write, part), SIZE, 1) as output:
            output.buffer[:] = b"aaaa"
            output.emit(0, SIZE)
            output.exchange()
            threading.Timer(0.05, let_go.set).start()
            msg = "the source cannot be read"
            raise ValueError(msg)

    with pytest.raises(ValueError, match="the source cannot be read"):
        fail()
    assert found in ([], [ord("a")])  # a part that was being written
    assert not running()


def test_the_threads_have_the_context_of_the_first() -> None:
    token, found = operation.set("transform"), []
    try:
        emit_all(lambda _: lambda: found.append(operation.get()), [b"a"] * 9, 3)
    finally:
        operation.reset(token)
    assert found == ["transform"] * 9


def test_the_next_rank_is_written_while_one_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = disk.write(tmp_path / "in", disk.example())
    compare, second, seen = rankfile.compare, threading.Event(), list[int]()

    def compare_later(task: Task, plan: RankPlan, *others: Any) -> None:
        seen.append(plan.rank)
        if len(seen) == 1:
            assert second.wait(60), "no other rank was written"
        second.set()
        compare(task, plan, *others)

    monkeypatch.setattr(rankfile, "compare", compare_later)
    monkeypatch.setattr(ranks, "passes_of", lambda _, __, some: [(rank,) for rank in some])
    assert main(checkpoint.arguments(tmp_path / "out", "--workers", "1")) == 0
    assert disk.differences(checkpoint.model, tmp_path / "out", "ckpt") == []
