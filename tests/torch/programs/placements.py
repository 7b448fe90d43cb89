"""Save random DTensors of one world: folder, ranks, meshes, count, seed.

`folder/boxes` gets a checkpoint of all tensors whose shards are boxes. A strided shard may be several pieces, which a distributed
checkpoint cannot express: torch refuses to save it, unless no rank sees the chunks of the others (`use_collectives=False`).
`folder/scattered` gets such a tensor. The answer describes the tensors of `boxes` as torch loads them, with their placements.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from contents import content, describe, raw
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import _StridedShard
from world import answer, in_world

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor.placement_types import Placement

GATHERED = ("float32", "float64", "float16", "bfloat16", "int64", "uint8")  # the types that gloo knows
DTYPES = (*GATHERED, "float8_e4m3fn", "complex64")


@dataclass(frozen=True)
class Drawn:
    """One tensor.

    Attributes:
        name: name in the checkpoint.
        dtype: type of the elements.
        shape: lengths.
        mesh: shape of the mesh.
        used: dimensions of the mesh over which it is placed; ranks along the others hold copies.
        placements: placement on each of these.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    mesh: tuple[int, ...]
    used: tuple[int, ...]
    placements: tuple[Placement, ...]

    @property
    def strided(self) -> bool:
        return any(isinstance(placement, _StridedShard) for placement in self.placements)

    def whole(self) -> torch.Tensor:
        return raw(self.dtype, *self.shape)


def draw(random: random.Random, name: str, mesh: tuple[int, ...]) -> Drawn:
    shape = tuple(random.choice((1, 2, 3, 4, 5, 7, 8, 12, 13)) for _ in range(random.choice((0, 1, 2, 2, 3))))
    used = tuple(sorted(random.sample(range(len(mesh)), random.choice((1, len(mesh), len(mesh))))))
    # Strided shards split a dimension over the axes of a mesh in another order than theirs.
    order = random.sample(used, len(used)) if random.random() < 0.7 else list(used)
    dims = [None] if not shape else random.choices((*range(len(shape)), None), k=random.choice((1, 1, 2)))
    dim_of = {axis: random.choice(dims) for axis in used}
    placements: list[Placement] = []
    for axis in used:
        dim, before = dim_of[axis], order[: order.index(axis)]
        factor = prod(mesh[other] for other in before if other > axis and dim_of[other] == dim)
        placements.append(Replicate() if dim is None else _StridedShard(dim, split_factor=factor) if factor > 1 else Shard(dim))
    return Drawn(name, random.choice(DTYPES), shape, mesh, used, tuple(placements))


def distribute(drawn: Drawn, mesh: DeviceMesh) -> DTensor:
    part = mesh[tuple(f"m{axis}" for axis in drawn.used)]
    return distribute_tensor(drawn.whole(), part, drawn.placements, src_data_rank=None)


def is_box(drawn: Drawn, tensor: DTensor) -> bool:
    """Whether what this rank holds is the box that torch states for it in a checkpoint."""
    lengths, starts = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    box = tuple(slice(start, start + length) for start, length in zip(starts, lengths, strict=True))
    return content(tensor.to_local()) == content(drawn.whole()[box])


def save(folder: str, every: list[Drawn]) -> list[str]:
    meshes = {
        shape: init_device_mesh("cpu", shape, mesh_dim_names=tuple(f"m{i}" for i in range(len(shape))))
        for shape in sorted({each.mesh for each in every})
    }
    state = {each.name: distribute(each, meshes[each.mesh]) for each in every}
    of_ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(of_ranks, [is_box(each, state[each.name]) for each in every])
    boxes = [each for each, *flags in zip(every, *of_ranks, strict=True) if all(flags)]
    for each in boxes:
        if each.dtype in GATHERED and not each.strided:  # torch gathers strided shards of equal lengths only
            assert content(state[each.name].full_tensor()) == content(each.whole()), each
    dcp.save({each.name: state[each.name] for each in boxes}, checkpoint_id=f"{folder}/boxes")
    rows = distribute(
        Drawn("rows", "float32", (24,), every[0].mesh, (0,), (_StridedShard(0, split_factor=2),)), meshes[every[0].mesh]
    )
    dcp.save({"rows": rows}, checkpoint_id=f"{folder}/scattered", use_collectives=False)
    return [each.name for each in boxes]


def placements(folder: str, ranks: int, meshes: list[list[int]], count: int, seed: int) -> dict[str, Any]:
    chance = random.Random(seed)
    every = [draw(chance, f"t{i}", tuple(chance.choice(meshes))) for i in range(count)]
    names = set(in_world(ranks, save, folder, every))
    boxes = [each for each in every if each.name in names]
    loaded = {each.name: torch.zeros_like(each.whole()) for each in boxes}
    dcp.load(loaded, checkpoint_id=f"{folder}/boxes", no_dist=True)
    for each in boxes:
        assert content(loaded[each.name]) == content(each.whole()), each
    return {
        each.name: {
            **describe(loaded[each.name]),
            "mesh": each.mesh,
            "used": each.used,
            "placements": list(map(str, each.placements)),
        }
        for each in boxes
    }


if __name__ == "__main__":
    answer(placements)
