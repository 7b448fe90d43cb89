"""Pipeline stages of layers."""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING

from reshard.errors import UsageError

if TYPE_CHECKING:
    from reshard.spec.layout import Pipeline


class LayerStages:
    """The pipeline stage of each layer.

    Args:
        pipeline: assignment of layers to stages.
        stages: number of stages.

    Raises:
        UsageError: the numbers contradict each other.
    """

    def __init__(self, pipeline: Pipeline, stages: int) -> None:
        self._before, self._after = pipeline.layer.split("*")
        counts = _counts(pipeline, stages)
        if len(counts) != stages:
            raise _invalid(f"the number of stages is {stages}, but the layers of {len(counts)} are given")
        chunks = zip(*((count,) if isinstance(count, int) else count for count in counts), strict=True)
        self._stages = tuple(chain.from_iterable([stage] * n for chunk in chunks for stage, n in enumerate(chunk)))
        if pipeline.layers not in (None, len(self._stages)):
            raise _invalid(f"the stages have {len(self._stages)} layers, but the model has {pipeline.layers}")

    @property
    def count(self) -> int:
        """Number of layers."""
        return len(self._stages)

    def layer(self, name: str) -> int | None:
        """Return the number of the layer that a parameter belongs to, or None if its name contains none."""
        if not name.startswith(self._before):
            return None
        start = len(self._before)
        end = start + sum(1 for _ in _digits(name, start))
        return int(name[start:end]) if end > start and name.startswith(self._after, end) else None

    def stage(self, layer: int) -> int:
        """Return the stage of a layer below `count`."""
        return self._stages[layer]


def _digits(name: str, start: int) -> list[str]:
    """Return the decimal digits from a position on. No model has layers with longer numbers."""
    found = []
    for character in islice(name, start, start + 9):
        if character not in "0123456789":
            break
        found.append(character)
    return found


def _counts(pipeline: Pipeline, stages: int) -> tuple[int | tuple[int, ...], ...]:
    if pipeline.counts or pipeline.layers is None:
        return pipeline.counts
    each = pipeline.layers // stages
    offsets = pipeline.offset or (0,) * stages
    counts = tuple(each + offset for offset in offsets)
    if min(counts, default=0) < 0:
        raise _invalid(f"a stage has {min(counts)} layers")
    return counts


def _invalid(what: str) -> UsageError:
    return UsageError("InvalidLayoutFile", what, where="pipeline", fix="correct the layers of each stage")
