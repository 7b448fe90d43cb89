"""Fingerprints of tensors: their definition, their sums over boxes, and the changes that they show."""

from __future__ import annotations

import tracemalloc
from math import prod

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from reshard.layout.box import Box
from reshard.layout.fingerprint import CHUNK_BYTES, ROW_BYTES, Fingerprints

Shape = tuple[int, ...]
_MASK = (1 << 64) - 1
_SEEDS = (0x5245534841524431, 0x7461626C65206221)


def odd(number: int, seed: int) -> int:
    """SplitMix64 (Steele, Lea and Flood, 2014), with the last bit set."""
    z = (number + seed) * 0x9E3779B97F4A7C15 & _MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK
    return z ^ z >> 31 | 1


def defined(content: bytes, shape: Shape, itemsize: int) -> int:
    """The definition, word by word."""
    dimensions = list(shape)
    row = itemsize
    while dimensions and row < 1024:
        row *= dimensions.pop()
    total, number = 0, 0
    for at in range(0, len(content), row or 1):
        for first in range(0, row, 32768):
            chunk = content[at + first : min(at + row, at + first + 32768)]
            for word in range(0, len(chunk), 8):
                value = int.from_bytes(chunk[word : word + 8], "little")
                total += odd(number, _SEEDS[0]) * odd(word // 8, _SEEDS[1]) * value
            number += 1
    return total & _MASK


def of(content: np.ndarray, box: Box | None = None) -> int:
    """The fingerprint of an array, or of a box of it."""
    box = box or Box.whole(content.shape)
    part = np.ascontiguousarray(content[box.slices()])
    return Fingerprints().of_box(memoryview(part.tobytes()), content.shape, box, content.itemsize)


def random_array(shape: Shape, itemsize: int, seed: int = 0) -> np.ndarray:
    content = np.random.default_rng(seed).bytes(prod(shape) * itemsize)
    return np.frombuffer(bytearray(content), {3: "V3", 16: "c16"}.get(itemsize, f"u{itemsize}")).reshape(shape)


SHAPES = st.lists(st.integers(1, 9), max_size=4).map(tuple) | st.sampled_from(
    [(0,), (3, 0, 2), (300,), (9000,), (20_000,), (3, 9000), (2, 3, 700), (70, 3, 3, 3), (1, 1, 5000), (40, 130)]
)
ITEMSIZES = st.sampled_from([1, 2, 3, 4, 8, 16])


@given(SHAPES, ITEMSIZES, st.integers(0, 99))
def test_is_its_definition(shape: Shape, itemsize: int, seed: int) -> None:
    content = random_array(shape, itemsize, seed)
    assert of(content) == defined(content.tobytes(), shape, itemsize)


@pytest.mark.parametrize(
    ("shape", "expected"), [((5,), 0xDD3943091E4F04DE), ((3, 700), 0xA88CC24F60C143E6), ((9000,), 0x8ED4B65CCC59A230)]
)
def test_stays_the_same_in_later_versions(shape: Shape, expected: int) -> None:
    content = (np.arange(prod(shape), dtype=np.uint32) * np.uint32(2654435761)).reshape(shape)
    assert of(content) == expected


def divided(box: Box, draw: st.DrawFn, depth: int) -> list[Box]:
    cuts = [axis for axis, n in enumerate(box.shape) if n > 1]
    if not depth or not cuts:
        return [box]
    axis = draw(st.sampled_from(cuts))
    at = draw(st.integers(1, box.shape[axis] - 1))
    start = (*box.start[:axis], box.start[axis] + at, *box.start[axis + 1 :])
    low = Box(box.start, (*box.shape[:axis], at, *box.shape[axis + 1 :]))
    high = Box(start, (*box.shape[:axis], box.shape[axis] - at, *box.shape[axis + 1 :]))
    return [*divided(low, draw, depth - 1), *divided(high, draw, depth - 1)]


@st.composite
def partitions(draw: st.DrawFn) -> tuple[Shape, list[Box]]:
    shape = draw(SHAPES)
    return shape, divided(Box.whole(shape), draw, draw(st.integers(0, 4)))


@given(partitions(), ITEMSIZES)
def test_adds_up_over_any_boxes(partition: tuple[Shape, list[Box]], itemsize: int) -> None:
    shape, boxes = partition
    content = random_array(shape, itemsize)
    assert sum(of(content, box) for box in boxes) & _MASK == of(content)


@given(partitions(), ITEMSIZES, st.integers(1, 5))
def test_several_tensors_at_a_time_are_those_one_by_one(partition: tuple[Shape, list[Box]], itemsize: int, count: int) -> None:
    shape, boxes = partition
    contents = [random_array(shape, itemsize, seed) for seed in range(count)]
    for box in boxes:
        stacked = np.stack([np.frombuffer(each[box.slices()].tobytes(), np.uint8) for each in contents])
        found = Fingerprints().of_boxes(stacked, shape, box, itemsize)
        assert found.tolist() == [of(each, box) for each in contents]


def test_many_large_tensors_and_scattered_boxes_take_several_blocks() -> None:
    for shape, box in (
        ((40, 3000), Box((0, 0), (40, 3000))),
        ((3000, 40), Box((0, 0), (3000, 40))),
        ((4000, 7, 9), Box((1, 2, 3), (3998, 4, 5))),
        ((3, 30_000), Box((0, 5), (3, 29_990))),
        ((200_000,), Box((3,), (199_995,))),
    ):
        content = random_array(shape, 4)
        masked = np.zeros_like(content)
        masked[box.slices()] = content[box.slices()]
        assert of(content, box) == defined(masked.tobytes(), shape, 4)


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ((1 << 21, 1024), Box((5, 7), ((1 << 21) - 9, 1))),
        ((2, 1 << 20, 1024), Box((0, 3, 7), (2, (1 << 20) - 9, 1))),
        ((1 << 20, 512, 2), Box((5, 7, 1), ((1 << 20) - 9, 1, 1))),
    ],
)
def test_long_narrow_boxes_take_little_memory(shape: Shape, box: Box) -> None:
    content = np.random.default_rng(1).integers(0, 256, box.shape, np.uint8)
    calculation = Fingerprints()
    tracemalloc.start()
    found = calculation.of_box(memoryview(content).cast("B"), shape, box, 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 << 20
    axis = int(np.argmax(box.shape))
    total = 0
    for at in range(0, box.shape[axis], 30_011):
        here = slice(at, min(at + 30_011, box.shape[axis]))
        part = np.ascontiguousarray(content[(slice(None),) * axis + (here,)])
        start = (*box.start[:axis], box.start[axis] + at, *box.start[axis + 1 :])
        total += calculation.of_box(memoryview(part).cast("B"), shape, Box(start, part.shape), 1)
    assert found == total & _MASK


def test_ignores_the_alignment_of_the_memory() -> None:
    content = random_array((300, 70), 4).tobytes()
    expected = Fingerprints().of_box(memoryview(content), (300, 70), Box.whole((300, 70)), 4)
    for shift in range(1, 8):
        moved = memoryview(bytes(shift) + content)[shift:]
        assert Fingerprints().of_box(moved, (300, 70), Box.whole((300, 70)), 4) == expected


@pytest.mark.parametrize("shape", [(3, 5, 7), (700,), (5, 300)])
@pytest.mark.parametrize("itemsize", [1, 2, 4, 8])
def test_shows_every_flipped_bit(shape: Shape, itemsize: int) -> None:
    content = random_array(shape, itemsize)
    flat, original = content.reshape(-1).view(np.uint8), of(content)
    for bit in range(0, len(flat) * 8, 1 if len(flat) < 500 else 37):
        flat[bit // 8] ^= 1 << bit % 8
        assert of(content) != original
        flat[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
def test_shows_swapped_elements(dtype: type) -> None:
    content = np.arange(4 * 520).astype(dtype).reshape(4, 520)
    original = of(content)
    for source in range(8):
        for target in ((0, 9 + source), (1, source + 1), (2, 65 + source), (3, 518 - source)):
            swapped = content.copy()
            swapped[0, source], swapped[target] = content[target], content[0, source]
            assert of(swapped) != original


def test_does_not_show_an_even_number_of_changes_of_only_the_highest_bit_of_words() -> None:
    content = random_array((4, 520), 8)
    changed = content.copy()
    changed[0, 3] ^= 1 << 63
    assert of(changed) != of(content)
    changed[2, 7] ^= 1 << 63
    assert of(changed) == of(content)  # see docs/decisions/0004-fingerprints.md


@given(st.integers(0, 39), st.integers(0, 39), st.integers(0, 7), st.integers(1, 64))
def test_shows_swapped_rows_columns_and_blocks(first: int, second: int, block: int, width: int) -> None:
    assume(first != second)
    content = random_array((40, 520), 2)
    original = of(content)
    rows = content.copy()
    rows[[first, second]] = content[[second, first]]
    columns = content.copy()
    columns[:, [first, second]] = content[:, [second, first]]
    blocks = content.copy()
    here, there = slice(block * 64, block * 64 + width), slice((block + 1) % 8 * 64, (block + 1) % 8 * 64 + width)
    blocks[first, here], blocks[second, there] = content[second, there], content[first, here]
    shifted = np.roll(content, 1 + block, axis=first % 2)
    assert original not in {of(rows), of(columns), of(blocks), of(shifted)}


def test_rows_and_chunks_have_the_documented_size() -> None:
    assert (ROW_BYTES, CHUNK_BYTES) == (1024, 32768)
