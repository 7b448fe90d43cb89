"""Random models that named axes divide, with the truth about each parameter."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, lcm, prod
from typing import TYPE_CHECKING, Any

from reshard.layout import Layout
from reshard.mesh.evidence import Evidence
from reshard.mesh.sharding import Sharding, Whole, optimizer_sharded
from reshard.spec.layout import LayoutDocument, Zero, parse_layout
from reshard.strategy import Strategy

if TYPE_CHECKING:
    import random

AXES = ("dp", "cp", "tp", "ep")


@dataclass(frozen=True)
class Parameter:
    """The truth about a parameter: the axes that divide it on every mesh, and the flag of optimizer parallelism.

    Without a strategy of its operator, MindSpore divides it by the greatest common divisor of dimension 0 and the ranks.
    """

    dims: tuple[tuple[str, ...], ...]
    order: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    flag: bool
    default: bool = False

    @property
    def whole(self) -> Whole:
        return Whole(self.dtype, self.shape)

    def layout(self, sizes: dict[str, int], zero: Zero | None) -> Layout:
        plain = Sharding(self.dims, self.order).layout(sizes)
        if self.default:  # its operator has no strategy
            devices = prod(sizes.values())
            count = gcd(self.shape[0], devices)
            plain = Layout((count, devices // count), ((1,), *((),) * (len(self.shape) - 1)))
        return optimizer_sharded(plain, self.whole, zero) if zero and self.flag else plain


@dataclass(frozen=True)
class Model:
    """Random parameters, and the meshes and settings for which they are compiled."""

    parameters: dict[str, Parameter]
    source: dict[str, int]
    target: dict[str, int]
    source_zero: Zero | None
    target_zero: Zero | None
    replicated: tuple[str, ...]

    @property
    def tensors(self) -> dict[str, Whole]:
        return {name: parameter.whole for name, parameter in self.parameters.items()}

    def strategy(self, sizes: dict[str, int], zero: Zero | None) -> Strategy:
        layouts = {name: parameter.layout(sizes, zero) for name, parameter in self.parameters.items()}
        return Strategy((layouts,), prod(sizes.values()))

    def evidence(self, sizes: dict[str, int], zero: Zero | None) -> Evidence:
        return Evidence.of_strategy(self.strategy(sizes, zero), mesh(sizes), self.tensors, "source")

    def document(self, *rules: dict[str, Any]) -> LayoutDocument:
        fields = {
            "apiVersion": "reshard.dev/layout-v1",
            "mesh": mesh(self.target),
            "derive": {"sourceMesh": mesh(self.source), "replicated": list(self.replicated)},
            "rules": list(rules),
        }
        if self.target_zero:
            fields["zero"] = {"threshold": self.target_zero.threshold, "size": self.target_zero.size}
        return parse_layout(fields, "layout.yaml")


def mesh(sizes: dict[str, int]) -> str:
    return ",".join(f"{axis}={size}" for axis, size in sizes.items())


def model(rng: random.Random) -> Model:
    axes = rng.sample(AXES, rng.choice([2, 3, 3, 4]))
    source, target = ({axis: rng.choice([1, 2, 2, 3, 4, 4]) for axis in axes} for _ in range(2))
    if rng.random() < 0.5:
        target = {axis: rng.choice([1, 2, 4]) if size > 1 else 1 for axis, size in source.items()}
    zeros = [Zero(rng.choice([0, 64, 256, 1024]), rng.choice([-1, -1, 2, 4])) if rng.random() < 0.6 else None for _ in range(2)]
    in_order = rng.random() < 0.5
    uncut = set(rng.sample(axes, rng.choice([0, 1])))
    parameters = {
        f"layers.{number}.{kind}": parameter(rng, axes, uncut, source, target, in_order=in_order)
        for number in range(2)
        for kind in ("w", "b", "norm")
    }
    for axis in [axis for axis in axes if source[axis] > 1 and axis not in uncut][
        :1
    ]:  # one parameter shows the order of the mesh
        shape = (4, 2 * lcm(source[axis], target[axis]))
        parameters["ordered"] = Parameter(((), (axis,)), tuple(axes), shape, "Float32", flag=False)
    replicated = tuple(sorted(axis for axis in uncut if in_order or source[axis] > 1 or target[axis] == 1))
    return Model(
        parameters,
        source,
        target,
        zeros[0],
        zeros[1],
        replicated if rng.random() < 0.8 and not any(each.default for each in parameters.values()) else (),
    )


def parameter(
    rng: random.Random, axes: list[str], uncut: set[str], source: dict[str, int], target: dict[str, int], *, in_order: bool
) -> Parameter:
    dims: list[tuple[str, ...]] = [()] * rng.choice([1, 2, 2, 3])
    for axis in rng.sample(axes, len(axes)):
        if axis not in uncut and rng.random() < 0.5:
            dimension = rng.randrange(len(dims))
            dims[dimension] = (*dims[dimension], axis)
    shape = tuple(
        lcm(*(prod(sizes[axis] for axis in cuts) for sizes in (source, target))) * rng.choice([1, 2, 3, 4, 8]) for cuts in dims
    )
    order = tuple(axes if in_order else rng.sample(axes, len(axes)))
    default = rng.random() < 0.15
    if default:
        dims, shape = [()] * len(shape), tuple(rng.choice([3, 4, 6, 8, 12, 16]) for _ in shape)
    return Parameter(tuple(dims), order, shape, rng.choice(["Float32", "Float16"]), rng.random() < 0.8, default)


def is_equal(found: Layout, expected: Layout) -> bool:
    return (found.parts, found.cells) == (expected.parts, expected.cells)
