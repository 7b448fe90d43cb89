"""Random models with a source and a target layout, and the contents of each file by definition."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import lcm, prod
from typing import TYPE_CHECKING, Any

import numpy as np
import rawfiles
from definition import Cut, held
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_RANKS = 64
_MOST_ELEMENTS = 40_000
NAMES = ("a", "layer.0.weight", "moment1.0-1", "x/../y", "é\u4e2d\n\x00", "0-b", "accu_grads.c", " ")


@dataclass(frozen=True)
class Tensor:
    """One parameter. A side with None has no layout for it: every rank has or gets it whole."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: Cut | None
    source_stage: int
    target: Cut | None
    target_stage: int


@dataclass(frozen=True)
class Model:
    source_devices: int
    source_stages: int
    target_devices: int
    target_stages: int
    tensors: tuple[Tensor, ...]
    seed: int
    remove_redundancy: bool

    @property
    def source_ranks(self) -> int:
        return self.source_devices * self.source_stages

    @property
    def target_ranks(self) -> int:
        return self.target_devices * self.target_stages

    @lru_cache(maxsize=16)  # noqa: B019 - models are small, and few at a time
    def whole(self, tensor: Tensor) -> np.ndarray:
        """The elements of a whole tensor: random bits."""
        rng = np.random.default_rng([self.seed, self.tensors.index(tensor)])
        kind = np.dtype(rawfiles.NUMPY_TYPES[tensor.dtype])
        content = rng.bytes(prod(tensor.shape) * kind.itemsize)
        if tensor.dtype == "Bool":
            content = bytes(b & 1 for b in content)
        return np.frombuffer(content, kind).reshape(tensor.shape)

    def source(self) -> list[rawfiles.Tensors]:
        """Return the contents of each source rank's file."""
        files = [
            self._slices(rank, self.source_devices, [(t, t.source, t.source_stage) for t in self.tensors])
            for rank in range(self.source_ranks)
        ]
        return self._without_copies(files) if self.remove_redundancy else files

    def target(self, rank: int) -> rawfiles.Tensors:
        """Return the expected contents of a target rank's file."""
        return self._slices(rank, self.target_devices, [(t, t.target, t.target_stage) for t in self.tensors])

    def repeated(self, times: int) -> Model:
        """Return a model with several tensors of each kind, so that thousands of them are copied at a time."""
        return replace(self, tensors=tuple(replace(t, name=f"{t.name}{i or ''}") for i in range(times) for t in self.tensors))

    def _slices(self, rank: int, devices: int, tensors: list[tuple[Tensor, Cut | None, int]]) -> rawfiles.Tensors:
        found = {}
        for tensor, cut, stage in tensors:
            whole = self.whole(tensor)
            if cut is None:
                found[tensor.name] = whole
            elif stage == rank // devices:
                indexes = held(tensor.shape, cut)[rank % devices]
                found[tensor.name] = whole.reshape(-1)[indexes.reshape(-1)].reshape(indexes.shape)
        return found

    def _without_copies(self, files: list[rawfiles.Tensors]) -> list[rawfiles.Tensors]:
        """Keep one copy of each slice, at any of the ranks that hold it."""
        rng = np.random.default_rng(self.seed)
        left: list[rawfiles.Tensors] = [{} for _ in files]
        for tensor in self.tensors:
            holders: dict[bytes, list[int]] = {}
            if tensor.source is None:
                holders[b""] = list(range(len(files)))
            else:
                for rank, indexes in enumerate(held(tensor.shape, tensor.source)):
                    holders.setdefault(indexes.tobytes(), []).append(tensor.source_stage * self.source_devices + rank)
            for ranks in holders.values():
                keeper = int(rng.choice(ranks))
                left[keeper][tensor.name] = files[keeper][tensor.name]
        return left


def _factorizations(n: int, draw: Callable[..., Any]) -> tuple[int, ...]:
    """An ordered way to write n as a product of up to four axes, some of length one."""
    axes = []
    for _ in range(draw(st.integers(0, 3))):
        axis = draw(st.sampled_from([d for d in range(1, n + 1) if n % d == 0]))
        axes.append(axis)
        n //= axis
    return (*axes, n)


@st.composite
def cuts(draw: Callable[..., Any], devices: int, ndim: int) -> Cut:
    """A layout over a number of devices: tuple maps; optimizer shards over a part of an axis, one, several, or all free axes."""
    matrix = _factorizations(devices, draw)
    axes = list(draw(st.permutations(range(len(matrix)))))
    maps: list[list[int]] = [[] for _ in range(ndim)]
    for axis in axes:
        where = draw(st.integers(-1, ndim - 1))
        if where >= 0:
            maps[where].append(axis)
    cut = Cut(matrix, tuple(map(tuple, maps)))
    used = {axis for dimension in maps for axis in dimension}
    group = [rank for rank in range(devices) if all(np.unravel_index(rank, matrix)[-1 - axis] == 0 for axis in used)]
    if not ndim or not draw(st.booleans()):
        return cut
    size = draw(st.sampled_from([d for d in range(1, len(group) + 1) if len(group) % d == 0] + [-1]))
    members = group[: len(group) if size == -1 else size]
    step = members[1] - members[0] if len(members) > 1 else 1
    return Cut(matrix, cut.maps, step, size)


def parts(cut: Cut | None, ndim: int) -> list[int]:
    """Return the number of shards of each dimension in a layout."""
    if cut is None:
        return [1] * ndim
    found = [prod(cut.matrix[-1 - axis] for axis in axes) for axes in cut.maps]
    if cut.size and cut.step:
        used = prod(found)
        found[0] *= cut.devices // used if cut.size == -1 else cut.size
    return found


@st.composite
def models(
    draw: Callable[..., Any], most_ranks: int = MOST_RANKS, *, dtypes: tuple[str, ...] = tuple(rawfiles.TYPE_NAMES.values())
) -> Model:
    """A model cut in any two ways."""
    source_stages, target_stages = draw(st.sampled_from([1, 1, 1, 2, 3, 4])), draw(st.sampled_from([1, 1, 1, 2, 3, 4]))
    source_devices = draw(st.integers(1, max(1, most_ranks // source_stages)))
    target_devices = draw(st.integers(1, max(1, most_ranks // target_stages)))
    tensors = []
    for name in draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True)):
        ndim = draw(st.integers(0, 4))
        named = draw(st.integers(0, 5)) > 0
        before = draw(cuts(source_devices, ndim)) if named else None
        after = draw(cuts(target_devices, ndim)) if named else None
        shape = tuple(lcm(a, b) for a, b in zip(parts(before, ndim), parts(after, ndim), strict=True))
        room = max(1, _MOST_ELEMENTS // max(1, prod(shape)))
        grown = []
        for n in shape:
            times = draw(st.integers(1, min(3, room)))
            room //= times
            grown.append(n * times)
        tensors.append(
            Tensor(
                name,
                draw(st.sampled_from(dtypes)),
                tuple(grown),
                before,
                draw(st.integers(0, source_stages - 1)),
                after,
                draw(st.integers(0, target_stages - 1)),
            )
        )
    return Model(
        source_devices,
        source_stages,
        target_devices,
        target_stages,
        tuple(tensors),
        draw(st.integers(0, 2**32 - 1)),
        draw(st.booleans()),
    )
