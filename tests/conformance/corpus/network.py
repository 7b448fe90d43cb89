"""The example of MindSpore's document on checkpoint transformation: the network, and its layouts on 8, 4, 2 and 7 ranks.

Pure data, without MindSpore; for its Python 3.9 too.
"""

from __future__ import annotations

from zlib import crc32

import numpy as np
from definition import Cut, held

_WEIGHTS = {
    "layer1.weight": (784, 512),
    "layer1.bias": (512,),
    "layer2.weight": (512, 512),
    "layer2.bias": (512,),
    "layer3.weight": (512, 10),
    "layer3.bias": (10,),
}
# The optimizer trains the small parameters only, so that the corpus is small; its moments have their parameters' layouts.
_WITH_MOMENTS = ("layer1.bias", "layer2.bias", "layer3.weight", "layer3.bias")
SHAPES = _WEIGHTS | {f"{moment}.{name}": _WEIGHTS[name] for moment in ("moment1", "moment2") for name in _WITH_MOMENTS}
# What no strategy names: of the optimizer, and what `CheckpointConfig(append_info=...)` adds.
STEPS = {"global_step": np.array([5625], np.int32), "epoch_num": np.array(3, np.int64), "step_num": np.array(5625, np.int64)}

# As MindSpore compiles them (tests/compiled): a parameter below 64 KiB has no optimizer shard.
_SOURCE = {
    "layer1.weight": Cut((2, 2, 2), ((), (1,))),
    "layer1.bias": Cut((8,), ((),)),
    "layer2.weight": Cut((8,), ((), ())),
    "layer2.bias": Cut((8,), ((),)),
    "layer3.weight": Cut((2, 2, 2), ((1,), ())),
    "layer3.bias": Cut((8,), ((),)),
}
_FOUR = {
    "layer1.weight": Cut((4,), ((0,), ())),
    "layer1.bias": Cut((4,), ((),)),
    "layer2.weight": Cut((4,), ((), ()), 1, -1),
    "layer2.bias": Cut((4,), ((),)),
    "layer3.weight": Cut((2, 2), ((0,), ())),
    "layer3.bias": Cut((4,), ((),)),
}
_TWO = {
    "layer1.weight": Cut((2,), ((0,), ())),
    "layer1.bias": Cut((2,), ((),)),
    "layer2.weight": Cut((2,), ((), ())),
    "layer2.bias": Cut((2,), ((),)),
    "layer3.weight": Cut((2,), ((0,), ())),
    "layer3.bias": Cut((2,), ((),)),
}
# Not compiled: MindSpore compiles for 1, 2, 4 or a multiple of 8 devices.
_SEVEN = {name: Cut((7,), ((0,), ()) if name == "layer1.weight" else ((),) * len(shape)) for name, shape in _WEIGHTS.items()}


def _with_moments(cuts: dict[str, Cut]) -> dict[str, Cut]:
    return {name: cuts[name.partition(".")[2] if name.startswith("moment") else name] for name in SHAPES}


# By number of ranks: 8 is the source, 4 trains with optimizer parallelism, 2 only infers and so has no moments.
LAYOUTS = {8: _with_moments(_SOURCE), 4: _with_moments(_FOUR), 2: _TWO, 7: _with_moments(_SEVEN)}
STRATEGIES = {8: "src_strategy.ckpt", 4: "dst_strategy_4.ckpt", 2: "dst_strategy_2.ckpt", 7: "dst_strategy_7.ckpt"}
COMPILED = (8, 4, 2)
SOURCE = "src_checkpoints"
EPOCH_AND_STEP = "3_1875"


def whole(name: str) -> np.ndarray:
    """All elements of a parameter, fp32: integers that compress well, and of which no two parts of a cut are alike."""
    rows = np.indices(SHAPES[name])
    elements = sum(31 * (i + 1) * index for i, index in enumerate(rows)) + crc32(name.encode()) % 251
    return (elements % 251).astype(np.float32)


def held_by(rank: int, ranks: int) -> dict[str, np.ndarray]:
    """What a rank's file holds, in the order of the file."""
    found = {}
    for name, cut in LAYOUTS[ranks].items():
        indexes = held(SHAPES[name], cut)[rank]
        found[name] = whole(name).reshape(-1)[indexes.reshape(-1)].reshape(indexes.shape)
    return {**found, **STEPS}
