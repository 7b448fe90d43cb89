"""Parts of a file are emitted in order by a second thread, and a failure in either thread ends both."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING

import pytest

from reshard.engine.overlap import BUFFERS, emitting

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 4
operation: ContextVar[str] = ContextVar("operation", default="none")


def write_parts(emit: Callable[[memoryview], None], parts: list[bytes], *, overlap: bool) -> None:
    """Fill each buffer with a part, as `carry_out` does."""
    with emitting(emit, SIZE, overlap=overlap) as pass_on:
        buffer = memoryview(bytearray(SIZE))
        for part in parts:
            buffer[: len(part)] = part
            buffer = pass_on(buffer, len(part))


def running() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "reshard-emit"]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("count", [0, 1, BUFFERS, 100])
def test_parts_are_emitted_once_in_order(count: int, overlap: bool) -> None:
    parts = [bytes([i]) * (1 + i % SIZE) for i in range(count)]
    found: list[bytes] = []
    write_parts(lambda part: found.append(bytes(part)), parts, overlap=overlap)
    assert found == parts
    assert not running()


def test_the_next_part_is_produced_while_a_part_is_emitted() -> None:
    produced, ended = threading.Event(), []

    def emit(_: memoryview) -> None:
        ended.append(produced.wait(timeout=30))

    with emitting(emit, SIZE, overlap=True) as pass_on:
        pass_on(memoryview(bytearray(SIZE)), SIZE)
        produced.set()  # never, if the part were emitted first
    assert ended == [True]


def test_a_buffer_is_not_filled_before_its_part_was_emitted() -> None:
    held, let_go = [], threading.Event()

    def emit(part: memoryview) -> None:
        let_go.wait(timeout=30)
        held.append(bytes(part))

    with emitting(emit, SIZE, overlap=True) as pass_on:
        buffers = [memoryview(bytearray(b"0000"))]
        for i in range(1, BUFFERS):
            buffers.append(pass_on(buffers[-1], SIZE))
            buffers[-1][:] = b"%d" % i * SIZE
        assert len({id(buffer.obj) for buffer in buffers}) == BUFFERS
        let_go.set()
        pass_on(buffers[-1], SIZE)
    assert held == [b"0000", b"1111", b"2222"]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("at", [0, 5, 19])
def test_a_failure_of_emit_is_raised_and_nothing_follows(at: int, overlap: bool) -> None:
    found: list[int] = []

    def emit(part: memoryview) -> None:
        found.append(part[0])
        if part[0] == at:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_parts(emit, [bytes([i]) for i in range(20)], overlap=overlap)
    assert found == list(range(at + 1))
    assert not running()


def test_a_failure_of_the_producer_is_raised_and_ends_the_thread() -> None:
    found: list[int] = []
    let_go = threading.Event()

    def emit(part: memoryview) -> None:
        let_go.wait(timeout=30)
        found.append(part[0])

    def fail() -> None:
        with emitting(emit, SIZE, overlap=True) as pass_on:
            buffer = memoryview(bytearray(b"aaaa"))
            buffer = pass_on(buffer, SIZE)
            threading.Timer(0.05, let_go.set).start()
            msg = "the source cannot be read"
            raise ValueError(msg)

    with pytest.raises(ValueError, match="the source cannot be read"):
        fail()
    assert found in ([], [ord("a")])  # a part that was being emitted
    assert not running()


def test_the_thread_inherits_the_context() -> None:
    operation.set("transform")
    found: list[str] = []
    write_parts(lambda _: found.append(operation.get()), [b"a"], overlap=True)
    assert found == ["transform"]
