"""Parts in which objects are sent and read: the protocol's limits hold for every length."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reshard.errors import OutputError
from reshard.storage.s3.parts import (
    LARGEST_OBJECT,
    LARGEST_PART,
    MOST_PARTS,
    SMALLEST_PART,
    buffers,
    part_size,
)
from reshard.storage.s3.upload import Body
from reshard.storage.spans import spans


@given(st.integers(0, 5 << 40), st.integers(0, 1 << 30))
def test_every_object_up_to_5_tb_fits(size: int, memory: int) -> None:
    part = part_size(size)
    assert SMALLEST_PART <= part <= LARGEST_PART
    assert -(-size // part) <= MOST_PARTS
    assert buffers(size, memory) >= 2
    assert buffers(size, memory) == 2 or buffers(size, memory) * part <= memory


def test_content_too_large_for_an_object_is_refused() -> None:
    with pytest.raises(OutputError, match="TooLarge"):
        part_size(LARGEST_OBJECT + 1)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 20), st.integers(0, 30), st.integers(20, 200))
def test_spans_hold_all_runs_in_order(steps: list[int], length: int, gap: int, most: int) -> None:
    offsets, at = [], 0
    for step in steps:
        offsets.append(at)
        at += length + step
    found = list(spans(offsets, length, gap=gap, most=most))
    assert sum(span.runs for span in found) == len(offsets)
    left = iter(offsets)
    for span in found:
        assert span.end - span.start <= most
        mine = [next(left) for _ in range(span.runs)]
        assert (mine[0], mine[-1] + length) == (span.start, span.end)
        assert all(b - a - length <= gap for a, b in pairwise(mine))


def test_a_body_is_sent_again_from_its_beginning() -> None:
    content = random.Random(1).randbytes((1 << 20) + 10)
    body = Body(memoryview(content))
    parts = [bytes(body.read(16 << 10)), bytes(body.read(16 << 10)), bytes(body.read(1))]  # more at a time than is asked for
    assert (len(body), *map(len, parts)) == (len(content), 1 << 20, 10, 0)
    assert b"".join(parts) == content
    assert (body.seek(0), bytes(body.read())) == (0, content)
    assert (body.seek(-2, 2), body.tell(), bytes(body.read(5))) == (len(content) - 2, len(content) - 2, content[-2:])
