"""Two small networks that the real MindSpore has compiled and saved, for what the document's example does not have.

`experts`: safetensors, 8 ranks to 4, with a dimension that two device axes cut. `pipeline`: .ckpt, two stages of 4 ranks to 4
ranks of one stage. Pure data, without MindSpore; for its Python 3.9 too.
"""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

import numpy as np
from definition import Cut, held


@dataclass(frozen=True)
class Tensor:
    """A parameter, fp32, with its cuts and the stage that has it."""

    shape: tuple[int, ...]
    source: Cut
    stage: int
    target: Cut


@dataclass(frozen=True)
class Network:
    """A network and its two layouts.

    Attributes:
        kind: the files' extension.
        stages: of the source; the target has one.
        devices: of a stage of the source.
        target_ranks: of the target.
    """

    name: str
    kind: str
    stages: int
    devices: int
    target_ranks: int
    tensors: dict[str, Tensor]

    def whole(self, name: str) -> np.ndarray:
        """All elements of a parameter; no two parts of a cut are alike."""
        tensor = self.tensors[name]
        count = int(np.prod(tensor.shape))
        return ((np.arange(count) * 7919 + crc32(name.encode())) % 65521).astype(np.float32).reshape(tensor.shape)

    def source(self, rank: int) -> dict[str, np.ndarray]:
        """What a rank's file of the source holds, in the order of the file."""
        stage, local = divmod(rank, self.devices)
        return {n: self._slice(n, t.source, local) for n, t in self.tensors.items() if t.stage == stage} | STEPS

    def target(self, rank: int) -> dict[str, np.ndarray]:
        """What a target rank's file must hold."""
        return {name: self._slice(name, tensor.target, rank) for name, tensor in self.tensors.items()} | STEPS

    def _slice(self, name: str, cut: Cut, rank: int) -> np.ndarray:
        indexes = held(self.tensors[name].shape, cut)[rank]
        return self.whole(name).reshape(-1)[indexes.reshape(-1)].reshape(indexes.shape)


STEPS = {"global_step": np.array([100], np.int32)}
_ROWS, _COLUMNS, _NOT = ((0,), ()), ((), (0,)), ((), ())


def _with_moments(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{moment}{name}": tensor for moment in ("", "moment1.", "moment2.") for name, tensor in tensors.items()}


# As MindSpore compiles them (tests/compiled), but for the `accu_grads` of a pipeline, which strategies name and no file holds.
NETWORKS = (
    Network(
        "experts",
        "safetensors",
        1,
        8,
        4,
        _with_moments(
            {
                "experts.w1": Tensor((8, 16, 32), Cut((2, 2, 2), ((2, 1), (), (0,))), 0, Cut((1, 2, 2), ((2, 1), (), (0,)))),
                "experts.w2": Tensor((8, 32, 16), Cut((2, 2, 2), ((2, 1), (0,), ())), 0, Cut((1, 2, 2), ((2, 1), (0,), ()))),
                "router.weight": Tensor((16, 16), Cut((8,), _NOT), 0, Cut((4,), _NOT, 1, -1)),
            }
        ),
    ),
    Network(
        "pipeline",
        "ckpt",
        2,
        4,
        4,
        _with_moments(
            {
                "layers.0.weight": Tensor((16, 24), Cut((4,), _COLUMNS), 0, Cut((4,), _ROWS)),
                "layers.0.bias": Tensor((24,), Cut((2, 2), ((),), 1, -1), 0, Cut((4,), ((),))),
                "layers.1.weight": Tensor((24, 32), Cut((2, 2), _ROWS, 2, -1), 1, Cut((4,), _COLUMNS)),
                "layers.1.bias": Tensor((32,), Cut((2, 2), ((),), 1, -1), 1, Cut((4,), ((),))),
            }
        ),
    ),
)
EPOCH_AND_STEP = "1_100"
