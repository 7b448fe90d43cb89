"""Random networks whose parameters named axes divide, each for several meshes. Pure data, for Python 3.9 too."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from math import prod

from compiling import Setting

Axes = tuple[str, ...]
KINDS = ("mul", "matmul", "named", "gather", "default")


@dataclass(frozen=True)
class Scaled:
    """A random parameter, the input of an operator that axes divide.

    Attributes:
        kind: operator. `named` is a matrix product with named axes, and `default` one without a strategy.
        dims: axes that divide each dimension.
        rows: axes that divide the other input.
        order: all axes, for named axes.
        sizes: size of each axis.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    parallel_optimizer: bool
    dims: tuple[Axes, ...]
    rows: Axes
    order: Axes
    sizes: dict[str, int] = field(default_factory=dict, hash=False)

    def count(self, axes: Axes) -> int:
        """The number of slices into which axes divide a dimension."""
        return prod(self.sizes[axis] for axis in axes)


@dataclass(frozen=True)
class Scale:
    """A network on one mesh."""

    seed: str
    setting: Setting
    sizes: dict[str, int]
    all_parameters: list[Scaled]

    @property
    def parameters(self) -> list[Scaled]:
        return [replace(parameter, sizes=self.sizes) for parameter in self.all_parameters]

    @property
    def mesh(self) -> str:
        return ",".join(f"{axis}={size}" for axis, size in self.sizes.items())


def _parameter(rng: random.Random, name: str, axes: Axes) -> Scaled:
    kind = rng.choice(KINDS)
    dtype, flag = rng.choice(["float32", "float16"]), rng.random() < 0.85
    if kind == "default":
        shape = (rng.choice([1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 48, 64]), rng.choice([4, 8, 16]))
        return Scaled(name, kind, shape, dtype, flag, ((), ()), (), ())
    order = tuple(rng.sample(axes, len(axes)))
    dims: list[list[str]] = [[], [], []]
    for axis in order:
        dims[rng.choice([0, 0, 1, 1, 2])].append(axis)
    first, second, rows = map(tuple, dims)
    if kind == "gather":  # which divides only one of its inputs, unless their lengths meet further conditions
        second, rows = (), () if first else rows
    shape = tuple(4 ** len(cuts) * rng.choice([1, 2, 3, 4, 8]) for cuts in (first, second))
    return Scaled(name, kind, shape, dtype, flag, (first, second), rows if kind != "mul" else (), order)


def _family(seed: int) -> list[Scale]:
    rng = random.Random(seed)
    axes: Axes = ("dp", "cp", "tp")[: rng.choice([2, 3, 3])]
    parameters = [_parameter(rng, f"parts.{i}.parameter", axes) for i in range(50)]
    found = []
    while len(found) < 5:
        sizes = {axis: rng.choice([1, 2, 2, 4, 4]) for axis in axes}
        if prod(sizes.values()) >= 4:
            setting = Setting(
                prod(sizes.values()),
                {},
                zero=len(found) % 2 == 1,
                shard_size=rng.choice([-1, -1, 2, 4]),
                threshold=rng.choice([0, 0, 1]),
            )
            found.append(Scale(f"scaled_{seed}_{len(found)}", setting, sizes, parameters))
    return found


FAMILIES = [_family(seed) for seed in range(6)]
SCALED = [scale for family in FAMILIES for scale in family]
