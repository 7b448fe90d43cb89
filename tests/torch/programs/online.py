"""Load checkpoints as torch tensors with the product: paths to import it from, sources, ranks.

For each source and rank, the answer describes each tensor. It also has the types whose tensors share the memory of their bytes.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from contents import describe
from world import answer

if TYPE_CHECKING:
    from collections.abc import Sequence


def load_all(paths: Sequence[str], sources: Sequence[str], ranks: int) -> dict[str, Any]:
    sys.path += paths  # after torch's own packages
    import reshard  # noqa: PLC0415 - not in the environment of torch
    from reshard.checkpoint.dtypes import BY_TORCH_NAME  # noqa: PLC0415 - as above
    from reshard.online.frameworks import tensor_maker  # noqa: PLC0415 - as above

    def load(source: str, rank: int) -> dict[str, Any]:
        found = reshard.load(source, target_ranks=ranks, rank=rank, framework="torch", replicas="LowestRank")
        for tensor in found.values():
            assert tensor.is_contiguous()
            if tensor.dtype.is_floating_point and tensor.dtype.itemsize > 1:
                tensor.zero_().add_(1)  # writable
        return {
            name: describe(tensor)
            for name, tensor in reshard.load(
                source, target_ranks=ranks, rank=rank, framework="torch", replicas="LowestRank"
            ).items()
        }

    shared = []
    for name, dtype in BY_TORCH_NAME.items():
        content = np.zeros(6 * dtype.itemsize, np.uint8)
        tensor = tensor_maker("torch", dtype.name, "w")(content, (2, 3))
        empty = tensor_maker("torch", dtype.name, "w")(content[:0], (0, 3))
        assert (tensor.shape, empty.shape, tensor.dtype, empty.dtype) == ((2, 3), (0, 3), *[getattr(torch, name)] * 2)
        if tensor.data_ptr() == content.ctypes.data:
            shared.append(name)
    return {"shared": shared, "loaded": [[load(source, rank) for rank in range(ranks)] for source in sources]}


if __name__ == "__main__":
    answer(load_all)
