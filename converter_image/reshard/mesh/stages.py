"""Pipeline stages of layers."""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING

from reshard.errors import UsageError
from reshard.spec.layout import MOST_LAYERS, Pipeline

if TYPE_CHECKING:
    from collections.abc import Mapping


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
        of_stages = [(count,) if isinstance(count, int) else count for count in counts]
        if (total := sum(map(sum, of_stages))) > MOST_LAYERS:
            raise _invalid(f"the stages have {total} layers; at most {MOST_LAYERS} are supported")
        chunks = zip(*of_stages, strict=True)
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


def inferred_pipeline(stages: Mapping[str, tuple[int, ...]], count: int) -> Pipeline | None:
    """Return the assignment of layers to stages that parameters show, or None if their names contain no layers.

    Args:
        stages: stages that hold each parameter.
        count: number of stages.
    """
    found: dict[str, dict[int, set[tuple[int, ...]]]] = {}
    for name, each in stages.items():
        parts = name.split(".")
        number = next((i for i, part in enumerate(parts[:-1]) if part.isascii() and part.isdigit()), None)
        if number:
            found.setdefault(".".join([*parts[:number], "*", ""]), {}).setdefault(int(parts[number]), set()).add(each)
    complete = {
        layer: [next(iter(layers[i])) for i in range(len(layers))]
        for layer, layers in found.items()
        if layers.keys() == set(range(len(layers))) and all(len(each) == 1 for each in layers.values())
    }
    usable = {layer: [stage for (stage,) in each] for layer, each in complete.items() if all(len(some) == 1 for some in each)}
    if not usable:
        return None
    layer = max(usable, key=lambda each: len(usable[each]))
    chunks = [[0] * count]
    last = 0
    for stage in usable[layer]:
        if stage < last:
            chunks.append([0] * count)
        chunks[-1][stage] += 1
        last = stage
    interleaved = tuple(zip(*chunks, strict=True))
    return Pipeline(layer, counts=tuple(chunks[0]) if len(chunks) == 1 else interleaved)


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
