"""Layouts: the slice of a parameter that a rank holds, derived from device matrix, tensor map and optimizer shard.

The rules are MindSpore's (`mindspore.train.node_strategy_pb2`, MindSpore 2.10). docs/layouts.md describes them in detail.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from math import prod

from reshard.errors import DataError
from reshard.layout.box import Box

# No stage is larger. A malicious strategy file that claims more must not cause a table of that size.
MAX_DEVICES_PER_STAGE = 1 << 20
ALL_OF_GROUP = -1


@dataclass(frozen=True, slots=True)
class Layout:
    """The sharding of one parameter over the devices of one pipeline stage.

    Attributes:
        device_matrix: lengths of the device axes. A rank's coordinates are row-major (the last axis varies fastest).
        tensor_map: device axes that split each dimension of the tensor, numbered from the right (0 is the last axis), major
            first. Empty means that the dimension is not split.
        shard_size: number of parts into which dimension 0 of that slice is split again among the ranks that hold the same slice
            (optimizer parallel). 0 means that it is not split. -1 means one part per such rank.
        shard_step: distance between ranks with adjacent parts. It follows from the other fields. 0 means that the slice is not
            split again.
        uneven: whether each axis splits a dimension of length n into k chunks of ceil(n / k) elements, of which the last ones may
            be shorter or empty, as `torch.chunk` does. The next axis splits each chunk in the same way, as `torch.DTensor` does.
            Otherwise k must divide n.
    """

    device_matrix: tuple[int, ...]
    tensor_map: tuple[tuple[int, ...], ...]
    shard_step: int = 0
    shard_size: int = 0
    uneven: bool = False

    @classmethod
    def whole(cls, ndim: int, devices: int = 1) -> Layout:
        """Return the layout of a parameter that each rank of the stage holds whole."""
        return cls((devices,), ((),) * ndim)

    @classmethod
    def chunks(cls, ndim: int, devices: int) -> Layout:
        """Return the layout in which each rank of the stage holds a chunk of dimension 0. Each rank holds a scalar whole."""
        return cls((devices,), ((0,), *((),) * (ndim - 1)) if ndim else (), uneven=True)

    @property
    def devices(self) -> int:
        """Number of ranks in the stage."""
        return prod(self.device_matrix)

    @property
    def ndim(self) -> int:
        """Number of dimensions of the tensor."""
        return len(self.tensor_map)

    @property
    def parts(self) -> tuple[int, ...]:
        """Number of equal slices along each dimension, including optimizer shards.

        Raises:
            DataError: the layout contradicts itself.
        """
        return _parts(self)

    @property
    def cells(self) -> tuple[tuple[int, ...], ...]:
        """Index of each rank's slice along each dimension: its cell in the grid `parts`.

        Raises:
            DataError: the layout contradicts itself.
        """
        return _table(self)[0]

    @property
    def holders(self) -> dict[tuple[int, ...], tuple[int, ...]]:
        """Ranks of the stage that hold each cell, in ascending order. Every cell of the grid has at least one.

        Raises:
            DataError: the layout contradicts itself.
        """
        return _table(self)[1]

    def box(self, shape: tuple[int, ...], rank: int) -> Box:
        """Return the box of a tensor of the whole `shape` that `rank` (within the stage) holds.

        Raises:
            DataError: the layout contradicts itself, or does not divide the shape.
        """
        if self.uneven:
            _check_dimensions(shape, self.ndim)
            return _chunk(shape, self.axes, self.cells[rank])
        return cell_box(shape, self.parts, self.cells[rank])

    def evened(self, shape: tuple[int, ...]) -> Layout | None:
        """Return the even layout that divides a tensor of the whole `shape`, or None if it does not divide it."""
        even = replace(self, uneven=False)
        try:
            even.box(shape, 0)
        except DataError:
            return None
        return even

    @property
    def axes(self) -> tuple[tuple[int, ...], ...]:
        """Lengths of the device axes that split each dimension, major first."""
        return tuple(tuple(self.device_matrix[-1 - axis] for axis in cuts) for cuts in self.tensor_map)


def _chunk(shape: tuple[int, ...], axes: tuple[tuple[int, ...], ...], cell: tuple[int, ...]) -> Box:
    """Return the box of one cell if axes split the dimensions of a tensor into chunks of chunks. It may be empty."""
    starts, lengths = [], []
    for n, counts, index in zip(shape, axes, cell, strict=True):
        start, length, places = 0, n, prod(counts)
        for k in counts:
            places //= k
            number, index = divmod(index, places)  # noqa: PLW2901 - the rest of the index is that of the next axis
            chunk = -(-length // k)
            offset = min(number * chunk, length)
            start, length = start + offset, min(chunk, length - offset)
        starts.append(start)
        lengths.append(length)
    return Box(tuple(starts), tuple(lengths))


def _check_dimensions(shape: tuple[int, ...], ndim: int) -> None:
    if len(shape) != ndim:
        raise DataError("LayoutRankMismatch", f"the layout has {ndim} dimensions, but the tensor has {len(shape)}: {list(shape)}")


def cell_box(shape: tuple[int, ...], parts: tuple[int, ...], cell: tuple[int, ...]) -> Box:
    """Return the box of one cell if a tensor of `shape` is divided into a grid of `parts`.

    Raises:
        DataError: the grid does not divide a dimension evenly.
    """
    _check_dimensions(shape, len(parts))
    for i, (n, k) in enumerate(zip(shape, parts, strict=True)):
        if n % k:
            raise DataError("LayoutDoesNotDivide", f"dimension {i} of length {n} cannot be divided into {k} equal slices")
    lengths = tuple(n // k for n, k in zip(shape, parts, strict=True))
    return Box(tuple(c * n for c, n in zip(cell, lengths, strict=True)), lengths)


@lru_cache(maxsize=4096)
def _parts(layout: Layout) -> tuple[int, ...]:
    """Return the parts of a layout. Cached, because few layouts are distinct."""
    _check_axes(layout)
    parts = [prod(counts) for counts in layout.axes]
    if layout.shard_size and layout.shard_step:
        group = _group(layout)
        size = _shard_size(layout, len(group))
        _check_shard(layout, group, size)
        parts[0] *= size
    return tuple(parts)


def _group(layout: Layout) -> tuple[int, ...]:
    """Return the ranks that hold the same slice as rank 0 before optimizer shards, in ascending order."""
    matrix, used = layout.device_matrix, {len(layout.device_matrix) - 1 - axis for cuts in layout.tensor_map for axis in cuts}
    strides = [prod(matrix[axis + 1 :]) for axis in range(len(matrix))]
    free = (
        range(0, n * stride, stride) for axis, (n, stride) in enumerate(zip(matrix, strides, strict=True)) if axis not in used
    )
    return tuple(map(sum, product(*free)))


def _shard_size(layout: Layout, group: int) -> int:
    return group if layout.shard_size == ALL_OF_GROUP else layout.shard_size


_Table = tuple[tuple[tuple[int, ...], ...], dict[tuple[int, ...], tuple[int, ...]]]


@lru_cache(maxsize=4096)
def _table(layout: Layout) -> _Table:
    """Return the cells and holders of a layout. Cached, because few layouts are distinct."""
    _ = layout.parts  # it checks the layout
    matrix, axes = layout.device_matrix, len(layout.device_matrix)
    dims = [[axes - 1 - t for t in cuts] for cuts in layout.tensor_map]
    cells: list[tuple[int, ...]] = []
    for coordinate in product(*map(range, matrix)):
        cell = []
        for cuts in dims:
            index = 0
            for axis in cuts:
                index = index * matrix[axis] + coordinate[axis]
            cell.append(index)
        cells.append(tuple(cell))
    holders = _invert(cells)
    if layout.shard_size and layout.shard_step:
        size = _shard_size(layout, len(holders[cells[0]]))
        sharded = list(cells)
        for ranks in holders.values():
            for position, rank in enumerate(ranks):
                first, *rest = cells[rank]
                sharded[rank] = (first * size + position % size, *rest)
        cells = sharded
        holders = _invert(cells)
    return tuple(cells), holders


def _invert(cells: list[tuple[int, ...]]) -> dict[tuple[int, ...], tuple[int, ...]]:
    holders: dict[tuple[int, ...], list[int]] = {}
    for rank, cell in enumerate(cells):
        holders.setdefault(cell, []).append(rank)
    return {cell: tuple(ranks) for cell, ranks in holders.items()}


def _check_axes(layout: Layout) -> None:
    if not layout.device_matrix or any(n < 1 for n in layout.device_matrix):
        raise DataError(
            "LayoutInvalid",
            f"device matrix {list(layout.device_matrix)} must have at least one axis, and all axes must be positive",
        )
    if layout.devices > MAX_DEVICES_PER_STAGE:
        raise DataError(
            "LayoutInvalid", f"device matrix {list(layout.device_matrix)} has more than {MAX_DEVICES_PER_STAGE} ranks"
        )
    used = [axis for cuts in layout.tensor_map for axis in cuts]
    for axis in used:
        if not 0 <= axis < len(layout.device_matrix):
            raise DataError(
                "LayoutInvalid",
                f"the tensor map uses axis {axis}, which the device matrix {list(layout.device_matrix)} does not have",
            )
    if len(set(used)) != len(used):
        raise DataError("LayoutInvalid", f"the tensor map {[list(c) for c in layout.tensor_map]} uses the same device axis twice")


def _check_shard(layout: Layout, group: tuple[int, ...], size: int) -> None:
    """Check the shard step. MindSpore writes the distance of neighbours in the group, or the mean distance (tensor_layout.cc)."""
    if not layout.tensor_map:
        raise DataError("LayoutInvalid", "a scalar cannot be divided into optimizer shards")
    if size < 1 or len(group) % size:
        raise DataError(
            "OptimizerShardInvalid",
            f"{len(group)} ranks hold the same slice, which cannot be divided into {size} optimizer shards",
            fix="use the strategy file that training wrote",
        )
    if size == 1 or layout.shard_step == ALL_OF_GROUP:
        return
    members = group[:size]
    if layout.shard_step not in {members[1] - members[0], (members[-1] - members[0]) // (size - 1)}:
        raise DataError(
            "OptimizerShardInvalid",
            f"the shard step {layout.shard_step} contradicts the layout, in which ranks"
            f" {', '.join(map(str, members[:4]))}{', ...' if size > 4 else ''} share a slice",
            fix="use the strategy file that training wrote",
        )
