"""Definition of resharding, independent of the code under test: slices of the whole tensor, taken by numpy.

Every parameter is given as the flat indexes of the elements that a rank holds, so that two definitions can be compared
without any data.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np


@dataclass(frozen=True)
class Cut:
    """A layout in a strategy file: the tensor map lists for each dimension the axes that shard it, major first."""

    matrix: tuple[int, ...]
    maps: tuple[tuple[int, ...], ...]
    step: int = 0
    size: int = 0

    @property
    def devices(self) -> int:
        return prod(self.matrix)


@lru_cache(maxsize=64)
def held(shape: tuple[int, ...], cut: Cut) -> list[np.ndarray]:
    """For each rank of the stage the flat indexes of the elements that it holds, in the shape of its slice."""
    whole = np.arange(prod(shape)).reshape(shape)
    slices = []
    for rank in range(cut.devices):
        coordinates = np.unravel_index(rank, cut.matrix)
        part = whole
        for dimension, axes in enumerate(cut.maps):
            for axis in axes:
                part = np.split(part, cut.matrix[-1 - axis], axis=dimension)[coordinates[-1 - axis]]
        slices.append(part)
    if not cut.size or not cut.step:
        return slices
    groups: dict[tuple[int, ...], list[int]] = {}
    for rank in range(cut.devices):
        coordinates = np.unravel_index(rank, cut.matrix)
        used = [-1 - axis for axes in cut.maps for axis in axes]
        groups.setdefault(tuple(int(coordinates[axis]) for axis in used), []).append(rank)
    sharded = list(slices)
    for ranks in groups.values():
        size = len(ranks) if cut.size == -1 else cut.size
        for position, rank in enumerate(ranks):
            sharded[rank] = np.split(slices[rank], size, axis=0)[position % size]
    return sharded
