"""The shards of a tensor as bytes, to keep them in a document."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from reshard.checkpoint.dtypes import DTYPES
from reshard.checkpoint.inventory import ShardedTensor
from reshard.errors import DataError
from reshard.model import TensorMeta, divide, gather_shards

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reshard.checkpoint.inventory import OpaqueObject
    from reshard.model import Divisions, Shards
    from reshard.model.tiling import Numbers

_PLACE = 3  # file, first byte, number of bytes


def pack(tensor: TensorMeta) -> ShardedTensor:
    """Return a tensor with its shards as bytes."""
    shards, count = tensor.shards, len(tensor.shape)
    tiles = np.repeat(np.arange(len(shards.tiling)), np.diff(shards.first))
    rows = np.empty((len(shards.files), 2 * count + _PLACE), "<i8")
    starts, lengths = shards.tiling.all_boxes()
    rows[:, :count], rows[:, count : 2 * count] = starts[tiles], lengths[tiles]
    for i, numbers in enumerate((shards.files, shards.offsets, shards.lengths)):
        rows[:, 2 * count + i] = numbers
    return ShardedTensor(tensor.name, tensor.dtype, tensor.shape, rows.tobytes())


def unpack(packed: ShardedTensor, sizes: Sequence[int], divisions: Divisions) -> TensorMeta:
    """Return a tensor with its shards, after a proof that each element is in exactly one.

    Args:
        packed: tensor from a document of any origin.
        sizes: length of each file in bytes.
        divisions: divisions of the tensors before it.

    Raises:
        DataError: the shards do not form the tensor, or are not within the files.
    """
    name, shape, count = packed.name, packed.shape, len(packed.shape)
    dtype = DTYPES.get(packed.dtype)
    if prod(shape) >= 1 << 56 or any(n >= 1 << 56 for n in shape):
        raise _invalid(name, "its shape is too large")
    rows: Numbers = np.frombuffer(packed.shards[: len(packed.shards) // 8 * 8], "<i8").astype(np.int64)
    if dtype is None or len(packed.shards) % (8 * (2 * count + _PLACE)):
        raise _invalid(name, "its type or its list of shards is invalid")
    rows = rows.reshape(-1, 2 * count + _PLACE)
    lengths = rows[:, count : 2 * count]
    files, offsets, nbytes = rows[:, -3], rows[:, -2], rows[:, -1]
    tiling, tiles = divisions.divide(shape, rows[:, : 2 * count], name)
    if ((files < 0) | (files >= len(sizes)) | (offsets < 0) | (nbytes < 0)).any():
        raise _invalid(name, "a shard is in no file")
    if (offsets > np.array(sizes, np.int64)[files] - nbytes).any():
        raise _invalid(name, "a shard is beyond the end of its file")
    filled = tiles >= 0
    if prod(shape) and (lengths[filled].prod(axis=1) * dtype.itemsize != nbytes[filled]).any():
        raise _invalid(name, "the length of a shard does not match its type and shape")
    return TensorMeta(name, packed.dtype, shape, gather_shards(tiling, tiles, (files, offsets, nbytes), name))


def unpack_object(packed: OpaqueObject, sizes: Sequence[int]) -> Shards:
    """Return the bytes of an object as the only shard of a tensor of bytes.

    Raises:
        DataError: they are not within the files.
    """
    if packed.file >= len(sizes) or packed.offset + packed.length > sizes[packed.file]:
        raise _invalid(packed.name, "a shard is beyond the end of its file")
    tiling, tiles = divide((packed.length,), np.zeros((1, 1), np.int64), np.array([[packed.length]]), packed.name)
    places = [np.array([number], np.int64) for number in (packed.file, packed.offset, packed.length)]
    return gather_shards(tiling, tiles, (places[0], places[1], places[2]), packed.name)


def _invalid(name: str, what: str) -> DataError:
    return DataError("ShardInvalid", what, where=f"tensor {name}", fix="restore the checkpoint, or plan again")
