"""Layout files, against the shards of real torch: any placements of `distribute_tensor`, and a model under FSDP and TP."""

from __future__ import annotations

import random
from math import prod
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from torch_program import run

from reshard.mesh.file import parse
from reshard.mesh.resolve import resolve
from reshard.mesh.sharding import Whole
from reshard.spec.layout import parse_layout

EXAMPLE = Path(__file__).parents[2] / "examples" / "layouts" / "torchtitan-0.2-llama.yaml"
MESHES = {8: [[8], [2, 4], [4, 2], [2, 2, 2]], 6: [[6], [2, 3], [3, 2]]}
MODELS = {8: [2, 4], 6: [3, 2]}
COUNT = 200


def draw(chance: random.Random, meshes: list[list[int]]) -> dict[str, Any]:
    """A tensor, and the dimension that each axis of a mesh divides. Most lengths are no multiples of the axes."""
    mesh = chance.choice(meshes)
    shape = [chance.choice((1, 2, 3, 5, 7, 8, 12, 13)) for _ in range(chance.choice((1, 2, 2, 3)))]
    shape[0] += prod(shape) == 1
    return {"mesh": mesh, "shape": shape, "dims": [chance.choice((*range(len(shape)), None)) for _ in mesh]}


@pytest.fixture(scope="module", params=MESHES)
def world(request: pytest.FixtureRequest) -> tuple[int, list[dict[str, Any]], dict[str, Any]]:
    chance = random.Random(request.param)
    cases = [draw(chance, MESHES[request.param]) for _ in range(COUNT)]
    return request.param, cases, run("sharded", ranks=request.param, cases=cases, model=MODELS[request.param])


def elements(shape: tuple[int, ...], box: Any) -> list[float]:
    return np.arange(prod(shape), dtype=np.float64).reshape(shape)[box.slices()].ravel().tolist()


def test_every_rank_has_the_box_of_its_shard(world: tuple[int, list[dict[str, Any]], dict[str, Any]]) -> None:
    ranks, cases, found = world
    uneven = 0
    for case, shards in zip(cases, found["cases"], strict=True):
        axes = {f"m{i}": n for i, n in enumerate(case["mesh"])}
        shard: dict[str, list[str]] = {}
        for axis, dim in zip(axes, case["dims"], strict=True):
            if dim is not None:
                shard.setdefault(str(dim), []).append(axis)
        content = {
            "apiVersion": "reshard.dev/layout-v1",
            "mesh": ",".join(f"{axis}={n}" for axis, n in axes.items()),
            "uneven": True,
            "rules": [{"match": "t", "shard": shard}],
        }
        shape = tuple(case["shape"])
        layout = resolve(parse_layout(content, "layout.yaml"), {"t": Whole("Float32", shape)}, "").strategy.stages[0]["t"]
        assert [elements(shape, layout.box(shape, rank)) for rank in range(ranks)] == shards, case
        uneven += len(set(map(len, shards))) > 1
    assert uneven > COUNT / 4


def test_the_example_for_torchtitan_divides_as_torch_does(world: tuple[int, list[dict[str, Any]], dict[str, Any]]) -> None:
    ranks, _, found = world
    example = parse(EXAMPLE.read_bytes(), EXAMPLE.name).document
    dp, tp = MODELS[ranks]
    document = msgspec.structs.replace(example, mesh=f"dp={dp},tp={tp}")
    shapes = {name: tuple(each["shape"]) for name, each in found["model"].items()}
    resolved = resolve(document, {name: Whole("Float32", shape) for name, shape in shapes.items()}, EXAMPLE.name)
    assert len(resolved.strategy.stages[0]) == len(shapes) > 20
    for name, layout in resolved.strategy.stages[0].items():
        boxes = [elements(shapes[name], layout.box(shapes[name], rank)) for rank in range(ranks)]
        assert boxes == found["model"][name]["ranks"], name
