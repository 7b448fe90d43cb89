"""Tensors from their shards, for formats that list them file by file."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from reshard.errors import DataError
from reshard.model import Divisions, TensorMeta, gather_shards

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class _Tensor(NamedTuple):
    """The shards of one tensor, of which each has its first elements, its lengths, file, first byte and number of bytes."""

    dtype: str
    dimensions: int
    rows: array[int]


class ShardTable:
    """Shards of tensors as packed integers, in the order in which the tensors were first added."""

    def __init__(self) -> None:
        self._found: dict[str, _Tensor] = {}

    def add(
        self, name: str, dtype: str, start: tuple[int, ...], shape: tuple[int, ...], place: tuple[int, int, int], where: str
    ) -> None:
        """Add one shard.

        Args:
            name: name of the tensor.
            dtype: type of its elements, by its name in `reshard.checkpoint.dtypes`.
            start: first element of the shard.
            shape: lengths of the shard.
            place: number of the file, first byte and number of bytes of its row-major content.
            where: file, for messages.

        Raises:
            DataError: the shard has another type or number of dimensions than those before.
        """
        tensor = self._found.get(name)
        if tensor is None:
            tensor = self._found[name] = _Tensor(dtype, len(shape), array("q"))
        if (tensor.dtype, tensor.dimensions, tensor.dimensions) != (dtype, len(shape), len(start)):
            raise DataError(
                "RanksDisagree",
                f"the shard of {dtype} at {list(start)} with the shape {list(shape)} has another type or number of dimensions"
                f" than other shards: {tensor.dtype}, {tensor.dimensions}",
                where=f"{where}: tensor {name}",
                fix="the files belong to different checkpoints; restore the files of one",
            )
        if any(n >= 1 << 61 for n in (*start, *shape)):
            raise DataError(
                "ShardOutside",
                f"the shard at {list(start)} with the shape {list(shape)} is too large",
                where=f"{where}: tensor {name}",
                fix="the file is damaged; restore it",
            )
        tensor.rows.extend((*start, *shape, *place))

    def tensors(self, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Iterator[TensorMeta]:
        """Yield the tensors.

        Args:
            shapes: lengths of the whole tensors. None: they end where their last shards end.

        Raises:
            DataError: the shards of a tensor do not cover it, or overlap.
        """
        divisions = Divisions()
        for name, (dtype, dimensions, rows) in self._found.items():
            table = np.frombuffer(rows, np.int64).reshape(-1, 2 * dimensions + 3)
            boxes = table[:, : 2 * dimensions]
            ends = boxes[:, :dimensions] + boxes[:, dimensions:]
            shape = tuple(ends.max(axis=0).tolist()) if shapes is None else shapes[name]
            tiling, tiles = divisions.divide(shape, boxes, name)
            files, offsets, sizes = (np.ascontiguousarray(column) for column in table[:, 2 * dimensions :].T)
            yield TensorMeta(name, dtype, shape, gather_shards(tiling, tiles, (files, offsets, sizes), name))
