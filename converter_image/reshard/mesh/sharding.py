"""The axes that divide a parameter, and the layout that follows from their sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from reshard.checkpoint.dtypes import DTYPES
from reshard.layout import ALL_OF_GROUP, Layout

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reshard.spec.layout import Zero


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole parameter.

    Attributes:
        dtype: element type, see `reshard.checkpoint.dtypes`.
        shape: shape in elements.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.size * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, slots=True)
class Sharding:
    """The division of one parameter by the axes of a mesh.

    Attributes:
        dims: axes that divide each dimension, major first.
        order: all axes of the mesh, outermost first. Ranks are numbered row-major over them.
        uneven: whether an axis may divide a length that is not a multiple of its size, see `Layout.uneven`.
    """

    dims: tuple[tuple[str, ...], ...]
    order: tuple[str, ...]
    uneven: bool = False

    def layout(self, sizes: Mapping[str, int]) -> Layout:
        """Return the layout over the ranks of one stage. Axes of size 1 are omitted, as in MindSpore.

        Args:
            sizes: size of each axis in `order`.
        """
        axes = [axis for axis in self.order if sizes[axis] > 1]
        number = {axis: len(axes) - 1 - i for i, axis in enumerate(axes)}
        tensor_map = tuple(tuple(number[axis] for axis in cuts if axis in number) for cuts in self.dims)
        uneven = self.uneven and any(tensor_map)
        return Layout(tuple(sizes[axis] for axis in axes) or (1,), tensor_map, uneven=uneven)


@dataclass(frozen=True, slots=True)
class Derived:
    """The sharding of one parameter that follows from its layout in the source.

    Attributes:
        sharding: axes that divide it.
        zero: sharding of optimizer parallelism, whose threshold it has reached. None means none.
        stages: pipeline stages that hold it.
        others: other readings of the source, which lead to equal slices in the target, but not for all sizes of axes.
    """

    sharding: Sharding
    zero: Zero | None
    stages: tuple[int, ...]
    others: tuple[Sharding, ...] = ()


def shard_count(layout: Layout, zero: Zero) -> int:
    """Return the number of ranks among which optimizer parallelism divides a slice, if it divides it.

    Args:
        layout: even layout without optimizer shards.
        zero: number of ranks, which must not be more than those that hold a slice.
    """
    holders = layout.devices // prod(layout.parts)
    return holders if zero.size == ALL_OF_GROUP or zero.size > holders else zero.size


def optimizer_sharded(layout: Layout, tensor: Whole, zero: Zero) -> Layout:
    """Return the layout of a parameter with MindSpore's optimizer parallelism, or the same layout if the parameter is too small.

    The slice of a rank is divided along dimension 0 among k of the n ranks that hold it. It is not divided if the whole parameter
    is smaller than the threshold, or if k does not divide the slice or n (MindSpore 2.7: opt_param_mgr.cc, and
    `GenerateOptShardSliceShape` in tensor_layout.cc).

    Args:
        layout: even layout without optimizer shards. It divides the shape.
        tensor: the whole parameter.
        zero: threshold and number of ranks.
    """
    holders = next(iter(layout.holders.values()))
    size = shard_count(layout, zero)
    too_small = not tensor.shape or tensor.nbytes < zero.threshold
    if too_small or len(holders) == 1 or len(holders) % size or tensor.shape[0] // layout.parts[0] % size:
        return layout
    members = holders[:size]
    step = (members[-1] - members[0]) // (size - 1) if size > 1 else 1
    return replace(layout, shard_step=step, shard_size=ALL_OF_GROUP if zero.size == ALL_OF_GROUP else size)
