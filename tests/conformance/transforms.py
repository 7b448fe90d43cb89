"""Random cases for the real MindSpore and for us: pure data, the same on every machine.

Runs in MindSpore's environment too, so it needs no more than numpy and Python 3.9.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import lcm, prod
from typing import TYPE_CHECKING, Any

import numpy as np
from definition import Cut, held

if TYPE_CHECKING:
    from collections.abc import Sequence

# As which numpy type the bits of an element are made; MindSpore's names.
BITS: dict[str, Any] = {
    "Bool": np.uint8,
    "Int4": np.int8,
    "Int8": np.int8,
    "UInt8": np.uint8,
    "Int16": np.int16,
    "UInt16": np.uint16,
    "Int32": np.int32,
    "UInt32": np.uint32,
    "Int64": np.int64,
    "UInt64": np.uint64,
    "Float16": np.uint16,
    "BFloat16": np.uint16,
    "Float32": np.uint32,
    "Float64": np.uint64,
}
# Not every byte is a valid value of these types; and MindSpore converts BFloat16 through float32, which changes NaNs.
MASKS = {"Bool": 1, "BFloat16": 0xBFFF}
NAMES = ("a", "layer.0.weight", "layer.1.weight", "moment1.layer.0.weight", "é中", "b c", "x/../y", "accu_grads.c", "adam_v.w")
STEPS = ("global_step", "epoch_num", "loss_scale")
# Arguments for conversions of a tree: other names, two of which change places; and a filter of files.
NAME_MAP = {"Int8[3, 4]": "renamed", "Float32[1]": "Int64[]", "Int64[]": "Float32[1]", "nobody": "nothing"}
CONVERTED = "^(all|empty)"
COUNT = 400
MOST_RANKS = 16
_MOST_ELEMENTS = 3000


@dataclass(frozen=True)
class Tensor:
    """One parameter. A side whose strategy does not name it has no cut: there every rank has or gets it whole.

    Attributes:
        source_stages: the stages whose files hold it; of one without a cut none says all.
        inconsistent: whether each source rank has a value of its own.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: Cut | None
    source_stages: tuple[int, ...]
    target: Cut | None
    target_stages: tuple[int, ...]
    inconsistent: bool = False


@dataclass(frozen=True)
class Case:
    """One transform.

    Attributes:
        source_named: whether the source has a strategy; without, it is one whole rank.
        target_named: the same for the target.
        nested: whether strategy files have a message for each dimension even where no dimension is cut by several axes.
        json: whether strategy files have the JSON form.
        trained: whether files are named as training leaves them, next to those of an older step.
    """

    number: int
    source_format: str
    target_format: str
    source_devices: int
    source_stages: int
    target_devices: int
    target_stages: int
    source_named: bool
    target_named: bool
    nested: bool = False
    json: bool = False
    trained: bool = False
    tensors: tuple[Tensor, ...] = ()

    @property
    def source_ranks(self) -> int:
        return self.source_devices * self.source_stages

    @property
    def target_ranks(self) -> int:
        return self.target_devices * self.target_stages

    @property
    def name(self) -> str:
        """Readable name of the case."""
        sides = (
            f"{devices}x{stages}" if stages > 1 else f"{devices}"
            for devices, stages in ((self.source_devices, self.source_stages), (self.target_devices, self.target_stages))
        )
        return f"{self.number}-{'to'.join(sides)}-{self.source_format}-{self.target_format}"

    @property
    def inconsistent(self) -> tuple[str, ...]:
        """The parameters whose copies differ between source ranks."""
        return tuple(tensor.name for tensor in self.tensors if tensor.inconsistent) if self.source_ranks > 1 else ()

    def file_name(self, rank: int) -> str:
        """The name of a source rank's file."""
        return f"net-3_25.{self.source_format}" if self.trained else f"checkpoint_{rank}.{self.source_format}"

    def whole(self, tensor: Tensor, rank: int = 0) -> np.ndarray:
        """All elements of a tensor, as bits; of an inconsistent one as `rank` has it."""
        kind = np.dtype(BITS[tensor.dtype])
        seed = f"{self.number} {tensor.name} {rank if tensor.inconsistent else 0}"
        found = np.frombuffer(random.Random(seed).randbytes(prod(tensor.shape) * kind.itemsize), kind).reshape(tensor.shape)
        mask = MASKS.get(tensor.dtype)
        return found if mask is None else np.asarray(found & kind.type(mask))

    def source(self, rank: int) -> dict[str, np.ndarray]:
        """Return the contents of a source rank's file: bits by name, in the order of the file."""
        found = {}
        for tensor in self.tensors:
            if tensor.source_stages and rank // self.source_devices not in tensor.source_stages:
                continue
            if tensor.source is None:
                found[tensor.name] = self.whole(tensor, rank)
            else:
                found[tensor.name] = _taken(self.whole(tensor), tensor.source, rank % self.source_devices)
        return found

    def target(self, rank: int, read: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """Return the expected contents of a target rank's file; `read`: source ranks whose files exist, if not all."""
        found = {}
        copied = rank % self.source_ranks
        if read is not None and copied not in read:
            copied = min(read)
        for tensor in self.tensors:
            if tensor.target is None:
                if tensor.source is None or not self.target_named:
                    found[tensor.name] = self.whole(tensor, copied)
            elif rank // self.target_devices in tensor.target_stages:
                found[tensor.name] = _taken(self.whole(tensor), tensor.target, rank % self.target_devices)
        return found

    def types(self) -> dict[str, str]:
        """Type names by parameter."""
        return {tensor.name: tensor.dtype for tensor in self.tensors}


def _taken(whole: np.ndarray, cut: Cut, rank: int) -> np.ndarray:
    indexes = held(whole.shape, cut)[rank]
    return np.ascontiguousarray(whole.reshape(-1)[indexes.reshape(-1)]).reshape(indexes.shape)


def make(number: int) -> Case:
    """The case of a number."""
    rng = random.Random(f"conformance {number}")
    source_format, target_format = rng.choice(
        [("ckpt", "ckpt")] * 3 + [("safetensors", "safetensors")] * 2 + [("safetensors", "ckpt")]
    )
    source_named, target_named = rng.choice([(True, True)] * 14 + [(True, False), (False, True)])
    source_devices, target_devices = _devices(rng, source_named, target_named)
    source_stages = _stages(rng, source_devices) if source_named else 1
    target_stages = _stages(rng, target_devices) if target_named else 1
    tensors = []
    nested = rng.random() < 0.2
    # Merged safetensors strategies MindSpore takes apart as protobuf only.
    json = not nested and (source_format == "ckpt" or source_stages == target_stages == 1) and rng.random() < 0.2
    count = max(source_stages, target_stages, rng.randint(1, 4))
    for position, name in enumerate(rng.sample(NAMES, count)):
        ndim = rng.choice([1, 1, 2, 2, 2, 3, 4])
        several = not json and rng.random() < 0.4  # axes for one dimension
        before = _cut(rng, source_devices, ndim, several) if source_named else None
        after = _cut(rng, target_devices, ndim, several) if target_named else None
        tensors.append(
            Tensor(
                name,
                rng.choice(list(BITS)),
                _shape(rng, before, after, ndim),
                before,
                (position % source_stages,),
                after,
                _target_stages(rng, position, target_stages),
            )
        )
    if source_named and target_named and source_stages == 1 and rng.random() < 0.15:
        cut = _cut(rng, source_devices, 2, several=False)
        tensors.append(Tensor("moment2.gone", "Float32", _shape(rng, cut, None, 2), cut, (0,), None, ()))
    tensors += _steps(rng, source_stages, target_stages)
    if rng.random() < 0.3:  # an optimizer saves its steps before its moments
        rng.shuffle(tensors)
    return Case(
        number,
        source_format,
        target_format,
        source_devices,
        source_stages,
        target_devices,
        target_stages,
        source_named,
        target_named,
        nested,
        json,
        rng.random() < 0.5,
        tuple(tensors),
    )


def _steps(rng: random.Random, source_stages: int, target_stages: int) -> list[Tensor]:
    """Parameters that no strategy names."""
    found = []
    for name in rng.sample(STEPS, rng.randint(0, 2)):
        shape = rng.choice([(), (1,), (3,)])
        stages = (rng.randrange(source_stages),) if source_stages > 1 and rng.random() < 0.3 else ()
        inconsistent = source_stages == target_stages == 1 and rng.random() < 0.3
        found.append(Tensor(name, rng.choice(["Int32", "Float32", "Int64"]), shape, None, stages, None, (), inconsistent))
    return found


def _devices(rng: random.Random, source_named: bool, target_named: bool) -> tuple[int, int]:
    """Devices per stage: of two different numbers one must divide the other, else MindSpore refuses."""
    few = rng.choice([1, 2, 2, 3, 4, 4, 4, 5, 6, 7, 8, 8, 8])
    many = few * rng.choice([n for n in (1, 1, 2, 2, 3, 4, 8) if few * n <= MOST_RANKS])
    source, target = rng.choice([(few, many), (many, few)])
    return source if source_named else 1, target if target_named else 1


def _stages(rng: random.Random, devices: int) -> int:
    return rng.choice([1, 1, 1, 1, 1, *(n for n in (2, 2, 3, 4) if n * devices <= MOST_RANKS)])


def _target_stages(rng: random.Random, position: int, stages: int) -> tuple[int, ...]:
    """Mostly one; a parameter that stages share, such as an embedding, has two."""
    first = position % stages
    if stages > 1 and rng.random() < 0.15:
        return tuple(sorted({first, (first + 1) % stages}))
    return (first,)


def _matrix(rng: random.Random, devices: int) -> tuple[int, ...]:
    axes, left = [], devices
    for _ in range(rng.choice([0, 0, 1, 1, 2, 3])):
        axes.append(rng.choice([n for n in range(1, left + 1) if left % n == 0]))
        left //= axes[-1]
    return (*axes, left)


def _cut(rng: random.Random, devices: int, ndim: int, several: bool) -> Cut:
    """A layout: each axis cuts a dimension or none; the rest may be used for an optimizer shard, in full or in part."""
    if ndim > 1 and devices % 4 == 0 and devices > 4 and rng.random() < 0.08:  # where MindSpore ignores the devices' order
        first, second = rng.sample([0, 1], 2)
        return Cut((devices // 4, 2, 2), ((first,), (second,), *[()] * (ndim - 2)), 4, devices // 4)
    matrix = _matrix(rng, devices)
    maps: list[list[int]] = [[] for _ in range(ndim)]
    for axis in rng.sample(range(len(matrix)), len(matrix)):
        where = rng.randint(-1, ndim - 1)
        if where >= 0 and (several or not maps[where]):
            maps[where].append(axis)
    cut = Cut(matrix, tuple(map(tuple, maps)))
    used = {axis for axes in maps for axis in axes}
    group = [r for r in range(devices) if all(int(np.unravel_index(r, matrix)[-1 - axis]) == 0 for axis in used)]
    if len(group) == 1 or rng.random() < 0.4:
        return cut
    free = [n for axis, n in enumerate(reversed(matrix)) if axis not in used]
    size = rng.choice([n for n in range(2, len(group) + 1) if _can_share(free, n)] + [-1])
    return Cut(matrix, cut.maps, group[1] - group[0], size)


def _can_share(axes: list[int], size: int) -> bool:
    """Return whether the innermost of these axes, the last one perhaps in part, make `size` parts: else MindSpore refuses."""
    for n in axes:
        if size <= n:
            return n % size == 0
        if size % n:
            return False
        size //= n
    return False


def parts(cut: Cut | None, ndim: int) -> list[int]:
    """Return the number of shards of each dimension in a layout."""
    if cut is None:
        return [1] * ndim
    found = [prod(cut.matrix[-1 - axis] for axis in axes) for axes in cut.maps]
    if cut.size:
        found[0] *= cut.devices // prod(found) if cut.size == -1 else cut.size
    return found


def _shape(rng: random.Random, before: Cut | None, after: Cut | None, ndim: int) -> tuple[int, ...]:
    one, other = parts(before, ndim), parts(after, ndim)
    shape = [lcm(one[i], other[i]) for i in range(ndim)]
    for i in range(ndim):
        room = max(1, _MOST_ELEMENTS // prod(shape))
        shape[i] *= rng.randint(1, min(4, room))
    return tuple(shape)
