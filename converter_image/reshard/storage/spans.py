"""Merge runs of bytes that are faster to read together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence


@dataclass(frozen=True, slots=True)
class Span:
    """A range of bytes that is read at once.

    Attributes:
        start: offset of the first byte.
        end: offset after the last byte.
        runs: number of requested runs in the span.
    """

    start: int
    end: int
    runs: int


def spans(offsets: Iterable[int], length: int, *, gap: int, most: int) -> Iterator[Span]:
    """Merge ascending runs into spans if the gaps between them are at most `gap` bytes and the span is at most `most` bytes.

    >>> list(spans([0, 10, 100], 5, gap=5, most=50))
    [Span(start=0, end=15, runs=2), Span(start=100, end=105, runs=1)]
    """
    start = end = runs = 0
    for offset in offsets:
        if runs and (offset - end > gap or offset + length - start > most):
            yield Span(start, end, runs)
            runs = 0
        if not runs:
            start = offset
        end, runs = offset + length, runs + 1
    if runs:
        yield Span(start, end, runs)


def read_spans(
    read_into: Callable[[memoryview, int], None], view: memoryview, length: int, offsets: Sequence[int], *, gap: int, most: int
) -> None:
    """Fill `view` with runs, see `Reader.read_runs`, by reading `spans` of them into a temporary buffer."""
    at = done = 0
    for span in spans(offsets, length, gap=gap, most=most):
        content = memoryview(bytearray(span.end - span.start))
        read_into(content, span.start)
        for offset in offsets[done : done + span.runs]:
            view[at : at + length] = content[offset - span.start : offset - span.start + length]
            at += length
        done += span.runs
