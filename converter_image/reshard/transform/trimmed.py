"""Refuse to trim elements of parameters that are not zero."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np

from reshard.engine.gather import Gatherer, SourceFiles, element_type
from reshard.engine.memory import TILE_BYTES
from reshard.errors import DataError
from reshard.layout.box import Box, shifted
from reshard.layout.tiles import next_tile
from reshard.plan import Planner
from reshard.plan.pad import beyond
from reshard.telemetry import phase

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reshard.plan import Model, Parameter
    from reshard.storage.protocol import ReadStore


def check_trimmed(store: ReadStore, model: Model) -> None:
    """Read the elements that a transform trims, and check that all their bytes are zero.

    Raises:
        DataError: an element is not zero.
        StorageError: the source cannot be read.
    """
    found = model.of_kinds(lambda kind: any(map(int.__lt__, kind.target_shape, kind.shape)))
    trimmed = {p.source_name: p for p in found}
    if not trimmed:
        return
    planner = Planner(model)
    with phase("check_trimmed"), closing(SourceFiles(store, model.inventory)) as files:
        gatherer = Gatherer(files, TILE_BYTES)
        for parameter in trimmed.values():
            if any(content.any() for content in _contents(planner, gatherer, parameter)):
                raise DataError(
                    "TrimmedNotZero",
                    f"the parameter of shape {list(parameter.shape)} has values other than zero beyond the shape"
                    f" {list(parameter.target_shape)}",
                    where=f"parameter {parameter.source_name}",
                    fix="use a larger length in --pad (spec.parameters.pad), or omit the rule",
                )


def _contents(
    planner: Planner, gatherer: Gatherer, parameter: Parameter
) -> Iterator[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    """Yield the bytes of the elements of a parameter that are trimmed."""
    element = element_type(parameter.dtype)
    for box in beyond(Box.whole(parameter.shape), parameter.target_shape):
        for rank, entry, held in planner.locate(parameter, box):
            at = 0
            while at < held.size:
                tile = next_tile(held.shape, at, TILE_BYTES // element.itemsize)
                content = np.empty(tile.shape, element)
                gatherer.read(rank, entry, shifted(tile, held.start), content)
                yield content.view(np.uint8)
                at += tile.size
