"""Load checkpoints as torch tensors with the product: paths to import it from, sources, ranks.

For each source and rank, the answer describes each tensor, and those that were loaded into tensors of this program. It also has
the types whose tensors share the memory of their bytes, and the messages about tensors that cannot be filled.
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
    from reshard.online.buffers import content_of  # noqa: PLC0415 - as above
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

    def load_into(source: str, rank: int) -> dict[str, Any]:
        """Load into parameters, plain tensors, and parts of larger tensors."""
        how = {"target_ranks": ranks, "rank": rank, "replicas": "LowestRank"}
        out = {}
        for name, tensor in reshard.load(source, framework="torch", **how).items():
            buffer = torch.stack([torch.zeros_like(tensor)] * 2)[1]
            out[name] = torch.nn.Parameter(buffer) if tensor.is_floating_point() and tensor.dtype.itemsize > 1 else buffer
        found = reshard.load(source, out=out, **how)
        assert all(found[name] is out[name] for name in out)
        allocated = reshard.load(source, framework="torch", out=lambda _, shape, dtype: torch.empty(shape, dtype=dtype), **how)
        described = {name: describe(tensor) for name, tensor in found.items()}
        assert described == {name: describe(tensor) for name, tensor in allocated.items()}
        return described

    def refusal(buffer: Any, dtype: str = "Float32") -> str:
        try:
            content_of(buffer, dtype, (2, 3), "w")
        except reshard.ReshardError as error:
            return error.what
        return ""

    freed = torch.zeros(2, 3)
    freed.untyped_storage().resize_(0)
    refused = [
        refusal(torch.zeros(2, 3)),
        refusal(torch.zeros(2, 3, device="meta")),
        refusal(torch.zeros(3, 2).T),
        refusal(torch.zeros(1, 3).expand(2, 3)),
        refusal(torch.zeros(2, 3, dtype=torch.float64)),
        refusal(torch.zeros(2, 3).to_sparse()),
        refusal(freed),
        refusal(torch.zeros(2, 3, dtype=torch.complex64).conj(), "Complex64"),
        refusal(torch.nested.nested_tensor([torch.zeros(3), torch.zeros(3)], layout=torch.jagged)),
    ]
    shared = []
    for name, dtype in BY_TORCH_NAME.items():
        content = np.zeros(6 * dtype.itemsize, np.uint8)
        tensor = tensor_maker("torch", dtype.name, "w")(content, (2, 3))
        empty = tensor_maker("torch", dtype.name, "w")(content[:0], (0, 3))
        assert (tensor.shape, empty.shape, tensor.dtype, empty.dtype) == ((2, 3), (0, 3), *[getattr(torch, name)] * 2)
        if tensor.data_ptr() == content.ctypes.data:
            shared.append(name)
    loaded, filled = ([[each(source, rank) for rank in range(ranks)] for source in sources] for each in (load, load_into))
    return {"shared": shared, "loaded": loaded, "filled": filled, "refused": refused}


if __name__ == "__main__":
    answer(load_all)
