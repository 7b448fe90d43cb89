"""Networks of networks.py and the parallelism that each is compiled for. Pure data, for Python 3.9 too."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from definition import Cut

# How each operator's inputs are cut, by the name of the operator: MindSpore's in_strategy. For decoders and experts dp and tp.
Shards = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """Arguments of `set_auto_parallel_context`, and which parameters the optimizer trains.

    Attributes:
        devices: of all pipeline stages.
        zero: whether optimizer parallelism is on.
        threshold: bytes that a parameter needs for optimizer parallelism, in KiB.
        trained: prefixes of the names of the parameters that the optimizer trains; empty: the network is compiled for inference.
    """

    devices: int
    shards: Shards
    stages: int = 1
    zero: bool = False
    shard_size: int = -1
    threshold: int = 64
    trained: tuple[str, ...] = ("",)


@dataclass(frozen=True)
class Drawn:
    """A random parameter, the input of an operator whose cut is known."""

    name: str
    shape: tuple[int, ...]
    cuts: tuple[int, ...]
    dtype: str
    parallel_optimizer: bool
    kind: str = "drawn"

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * {"float32": 4, "float16": 2}[self.dtype]

    def expected(self, setting: Setting) -> Cut:
        """Return its layout by the rules of docs/layouts.md, derived from the compiler's input and not from its file.

        Ranks are numbered row-major over the operator's cuts and then over the ranks that repeat its work.
        """
        copies = setting.devices // prod(self.cuts)
        matrix = (*self.cuts, copies)
        maps = tuple((len(self.cuts) - i,) if n > 1 else () for i, n in enumerate(self.cuts))
        size = copies if setting.shard_size == -1 or setting.shard_size > copies else setting.shard_size
        sharded = (
            setting.zero
            and self.parallel_optimizer
            and copies > 1
            and self.nbytes >= setting.threshold * 1024
            and copies % size == 0
            and self.shape[0] // self.cuts[0] % size == 0
        )
        return Cut(matrix, maps, 1, size) if sharded else Cut(matrix, maps)


@dataclass(frozen=True)
class Draw:
    """A network of random parameters."""

    seed: int
    setting: Setting = field(repr=False)

    @property
    def parameters(self) -> list[Drawn]:
        rng = random.Random(self.seed)
        return [self._parameter(rng, f"parts.{i}.parameter") for i in range(40)]

    def _parameter(self, rng: random.Random, name: str) -> Drawn:
        left, cuts = self.setting.devices, []
        for _ in range(rng.choice([1, 2, 2, 2, 3])):
            cuts.append(rng.choice([n for n in range(1, left + 1) if left % n == 0]))
            left //= cuts[-1]
        rng.shuffle(cuts)
        shape = tuple(n * rng.choice([1, 2, 3, 4, 6, 8, 12, 16, 24, 32]) for n in cuts)
        return Drawn(name, shape, tuple(cuts), rng.choice(["float32", "float16"]), rng.random() < 0.85)


_SOURCE = Setting(8, {"layer1": ((2, 1), (1, 2)), "layer3": ((2, 2), (2, 1))})
_TARGET = Setting(4, {"layer1": ((1, 4), (4, 1)), "layer3": ((2, 2), (2, 1))}, zero=True)
_TWO = Setting(2, {"layer1": ((1, 2), (2, 1)), "layer3": ((1, 2), (2, 1))}, trained=())
_STAGES = Setting(8, {"layer1": ((2, 1), (1, 2)), "layer3": ((2, 2), (2, 1))}, stages=2, zero=True)
# The optimizer trains the small parameters only, so only these have moments. This keeps the recorded checkpoints small.
_SMALL = ("layer1.bias", "layer2.bias", "layer3")
_DECODER = Setting(8, {"dp": 2, "tp": 4})

# By network and layout.
SETTINGS: dict[str, dict[str, Setting]] = {
    "document": {
        "src_strategy": _SOURCE,
        "dst_strategy": _TARGET,
        "predict_strategy": replace(_TARGET, trained=(), zero=False),
        "src_strategy_small": replace(_SOURCE, trained=_SMALL),
        "dst_strategy_small": replace(_TARGET, trained=_SMALL),
        "dst_strategy_2": _TWO,
        "src_pipeline_strategy": _STAGES,
    },
    "decoder": {
        "src": _DECODER,
        "src_pipeline": Setting(8, {"dp": 2, "tp": 2}, stages=2, zero=True, threshold=0),
        "dst": Setting(16, {"dp": 8, "tp": 2}, zero=True, shard_size=4, threshold=1),
        "dst_pipeline": Setting(16, {"dp": 4, "tp": 2}, stages=2, zero=True, threshold=1),
        "predict": Setting(2, {"dp": 1, "tp": 2}, trained=()),
    },
    "experts": {
        "src": Setting(8, {"dp": 2, "ep": 2, "tp": 2}),
        "dst": Setting(4, {"dp": 1, "ep": 2, "tp": 2}, zero=True, threshold=0),
    },
    "layers": {
        "src": Setting(8, {"layers.0": ((1, 1), (1, 4)), "layers.1": ((2, 2), (2, 1))}, stages=2, zero=True, threshold=0),
        "dst": Setting(4, {"layers.0": ((1, 4), (4, 1)), "layers.1": ((1, 1), (1, 4))}),
    },
}
_ZERO = [(devices, True, size, size % 2) for devices in (8, 16, 32) for size in (-1, 2, 4)]
DRAWS = [
    Draw(seed, Setting(devices, {}, zero=zero, shard_size=size, threshold=threshold))
    for seed, (devices, zero, size, threshold) in enumerate([(8, False, -1, 0), (16, False, -1, 0), (32, False, -1, 0), *_ZERO])
]
# Layouts for which a checkpoint is written, and targets of each; "whole" is one rank without a strategy.
SOURCES: dict[str, dict[str, tuple[str, ...]]] = {
    "document": {
        "src_strategy": ("dst_strategy", "predict_strategy", "whole"),
        "src_pipeline_strategy": ("dst_strategy", "whole"),
    },
    "decoder": {
        "src": ("dst", "predict", "src_pipeline", "whole"),
        "src_pipeline": ("dst", "whole"),
        "dst": ("src", "src_pipeline"),
    },
    "experts": {"src": ("dst", "whole"), "dst": ("src",)},
    "layers": {"src": ("dst", "whole"), "dst": ("src",)},
}
KINDS = {"document": "ckpt", "decoder": "safetensors", "experts": "safetensors", "layers": "ckpt"}
TRANSFORMS = [
    f"{network}/{layout}/{target}"
    for network, layouts in SOURCES.items()
    for layout, targets in layouts.items()
    for target in targets
]
