"""Fingerprints of tensors that do not depend on their layout: those of disjoint boxes add up to that of the tensor.

The bytes of a row-major tensor are divided into rows: the trailing dimensions that have at least `ROW_BYTES` together, or all of
them. Each row is divided into chunks of `CHUNK_BYTES`, and each chunk into little-endian words of 8 bytes. The last word of a row
is filled with zeros. The fingerprint is the sum modulo 2^64 of

    a(chunk) * b(word) * value

over all words. `chunk` is the number of the chunk in the tensor, `word` the number of the word in its chunk, and `a` and `b`
are odd numbers, see `odd`. The bytes of a word that several boxes share add up without carries, so each box can take the others
as zeros. `docs/decisions/0004-fingerprints.md` contains measurements and the probability of collisions.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from reshard.layout.box import Box, strides

if TYPE_CHECKING:
    from collections.abc import Iterator

    Words = np.ndarray[Any, np.dtype[np.uint64]]
    Bytes = np.ndarray[Any, np.dtype[np.uint8]]
    Shape = tuple[int, ...]

ROW_BYTES = 1 << 10
CHUNK_BYTES = 32 << 10
_WORD = 8
_SCRATCH_WORDS = 32 << 10  # words that are copied to be aligned, as few as fit into the CPU cache
_SCATTERED_BYTES = 256 << 10
_ROWS_AT_ONCE = 32 << 10  # each takes about 32 bytes for the number and weight of its chunk


def odd(numbers: Words, seed: int) -> Words:
    """Return odd pseudo-random numbers: the output function of SplitMix64 at these positions of its sequence."""
    mixed = (numbers + np.uint64(seed)) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    mixed |= np.uint64(1)
    return mixed


OF_CHUNKS, OF_WORDS = 0x5245534841524431, 0x7461626C65206221  # seeds of the weights a and b
_OF_FIRST_CHUNKS = odd(np.arange(32 << 10, dtype=np.uint64), OF_CHUNKS)
_OF_WORDS = odd(np.arange(CHUNK_BYTES // _WORD, dtype=np.uint64), OF_WORDS)


class _Rows(NamedTuple):
    """The division of a tensor into rows.

    Attributes:
        first: first dimension of the rows.
        inner: number of bytes of an element along this dimension, with all later dimensions.
        chunks: number of chunks of a row.
        steps: number of chunks between neighbours along each dimension before the rows.
    """

    first: int
    inner: int
    chunks: int
    steps: tuple[int, ...]


@lru_cache(maxsize=4096)
def _rows(shape: Shape, itemsize: int) -> _Rows:
    first, nbytes = len(shape), itemsize
    while first and nbytes < ROW_BYTES:
        first -= 1
        nbytes *= shape[first]
    chunks = -(-max(1, nbytes) // CHUNK_BYTES)
    return _Rows(first, prod(shape[first + 1 :]) * itemsize, chunks, tuple(n * chunks for n in strides(shape[:first])))


class Fingerprints:
    """Calculates fingerprints of boxes. It keeps its memory, so only one thread may use it at a time."""

    def __init__(self) -> None:
        self._words = np.zeros(_SCRATCH_WORDS, np.uint64)

    def of_box(self, content: memoryview, shape: Shape, box: Box, itemsize: int) -> int:
        """Return the fingerprint of a box of a tensor.

        Args:
            content: elements of the box, row-major.
            shape: shape of the whole tensor.
            box: the box.
            itemsize: length of an element in bytes.
        """
        return int(self.of_boxes(np.frombuffer(content, np.uint8)[None], shape, box, itemsize)[0])

    def of_boxes(self, contents: Bytes, shape: Shape, box: Box, itemsize: int) -> Words:
        """Return the fingerprints of the same box of several tensors. Each row of `contents` is the box of one tensor."""
        first, inner, _, steps = _rows(shape, itemsize)
        total = np.zeros(len(contents), np.uint64)
        if not box.size:
            return total
        partial = box.shape[first + 1 :] != shape[first + 1 :]
        axes, most = first, _ROWS_AT_ONCE
        if partial:  # the elements along dimension `first` are completed with zeros
            axes, most = first + 1, min(most, _SCATTERED_BYTES // (inner * len(contents)))
        for part, content in _pieces(contents, box, axes, most):
            offset, length = (part.start[first] * inner, part.shape[first] * inner) if first < len(shape) else (0, itemsize)
            if partial:
                content = _scattered(content, part, shape, first, itemsize)  # noqa: PLW2901 - the same elements with zeros between
            chunks = _first_chunks(part, steps)
            total += self._of_rows(content.reshape(len(contents), len(chunks), length), chunks, offset)
        return total

    def _of_rows(self, content: Bytes, first_chunks: Words, offset: int) -> Words:
        """Return the sums of the same range of bytes of several rows. `first_chunks` are the numbers of their first chunks."""
        length = content.shape[2]
        at, total = 0, np.zeros(len(content), np.uint64)
        while at < length:
            chunk, within = divmod(offset + at, CHUNK_BYTES)
            if within == 0 and (count := (length - at) // CHUNK_BYTES) > 1:
                numbers = np.arange(chunk, chunk + count, dtype=np.uint64)
                for row, number in enumerate(first_chunks):
                    whole = content[:, row, at : at + count * CHUNK_BYTES].reshape(len(content), count, CHUNK_BYTES)
                    total += self._sum(whole, _of_chunks(number + numbers), 0)
                at += count * CHUNK_BYTES
                continue
            end = min(length, at + CHUNK_BYTES - within)
            total += self._sum(content[:, :, at:end], _of_chunks(first_chunks + np.uint64(chunk)), within)
            at = end
        return total

    def _sum(self, content: Bytes, weights: Words, within: int) -> Words:
        """Return the sums of ranges of chunks with these weights. The ranges start at byte `within` of their chunks."""
        tensors, rows, length = content.shape
        first, before = divmod(within, _WORD)
        count = -(-(before + length) // _WORD)
        columns = _OF_WORDS[first : first + count]
        if not (before or length % _WORD):  # also if they are not aligned: a copy takes longer
            return _weighted(content.view(np.uint64), weights, columns)
        at_once = _SCRATCH_WORDS // count
        many, few = max(1, at_once // rows), min(rows, at_once)
        total = np.zeros(tensors, np.uint64)
        for tensor in range(0, tensors, many):
            for row in range(0, rows, few):
                here = slice(tensor, tensor + many), slice(row, row + few)
                total[here[0]] += _weighted(self._padded(content[here], before, count), weights[here[1]], columns)
        return total

    def _padded(self, content: Bytes, before: int, count: int) -> Words:
        """Return bytes as words, with zeros before and after them."""
        words = self._words[: content.shape[0] * content.shape[1] * count].reshape(*content.shape[:2], count)
        if before or content.shape[2] % _WORD:
            words[:, :, 0] = words[:, :, -1] = 0
        words.view(np.uint8)[:, :, before : before + content.shape[2]] = content
        return words


def _weighted(words: Words, weights: Words, columns: Words) -> Words:
    """Return the sum of the words of each tensor, with the weights of their chunks and positions."""
    return np.einsum("r,trw->tw", weights, words) @ columns  # type: ignore[no-any-return]  # numpy's stubs


def _first_chunks(box: Box, steps: tuple[int, ...]) -> Words:
    """Return the numbers of the first chunks of the rows of a box, given the distances of rows along the dimensions before."""
    if len(steps) == 1:  # without the costs of a general loop, which are those of thousands of words
        return np.arange(box.start[0] * steps[0], (box.start[0] + box.shape[0]) * steps[0], steps[0], dtype=np.uint64)
    numbers = np.zeros(1, np.uint64)
    for start, count, step in zip(box.start, box.shape, steps, strict=False):
        numbers = np.add.outer(numbers, np.arange(start * step, (start + count) * step, step, dtype=np.uint64)).ravel()
    return numbers


def _of_chunks(numbers: Words) -> Words:
    """Return the weights of chunks."""
    first, last = int(numbers[0]), int(numbers[-1])
    if last < len(_OF_FIRST_CHUNKS):
        return _OF_FIRST_CHUNKS[first : last + 1] if last - first + 1 == len(numbers) else _OF_FIRST_CHUNKS[numbers]
    return odd(numbers, OF_CHUNKS)


def _pieces(contents: Bytes, box: Box, axes: int, most: int) -> Iterator[tuple[Box, Bytes]]:
    """Yield parts of a box that have at most `most` positions along its first dimensions, whose number is `axes`, or one."""
    lengths = box.shape[:axes]
    if prod(lengths) <= max(1, most):
        yield box, contents
        return
    axis = next(i for i, length in enumerate(lengths) if length > 1)
    elements = contents.reshape(len(contents), *lengths, -1)
    for start, end in ((0, lengths[axis] // 2), (lengths[axis] // 2, lengths[axis])):
        half = Box(
            (*box.start[:axis], box.start[axis] + start, *box.start[axis + 1 :]),
            (*box.shape[:axis], end - start, *box.shape[axis + 1 :]),
        )
        some = elements[(slice(None), *(slice(None),) * axis, slice(start, end))].reshape(len(contents), -1)
        yield from _pieces(some, half, axes, most)


def _scattered(content: Bytes, box: Box, shape: Shape, first: int, itemsize: int) -> Bytes:
    """Return the rows of a box, with zeros for the elements of the dimensions after `first` that it does not contain."""
    rows = np.zeros((len(content), *box.shape[: first + 1], *shape[first + 1 :], itemsize), np.uint8)
    window = (slice(None),) * (first + 2) + Box(box.start[first + 1 :], box.shape[first + 1 :]).slices()
    rows[window] = content.reshape(len(content), *box.shape, itemsize)
    return rows.reshape(len(content), -1)
