"""Two small networks that the real MindSpore has saved, for what the document's example does not have.

`six`: safetensors, 8 ranks, to be transformed to 6, which MindSpore refuses. `pipeline`: .ckpt, two stages of 4 ranks, to be
transformed to 4 ranks of one stage. Pure data, without MindSpore; for its Python 3.9 too.
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

NETWORKS = (
    Network(
        "six",
        "safetensors",
        1,
        8,
        6,
        {
            "embedding": Tensor((48, 24), Cut((8,), _ROWS), 0, Cut((6,), _ROWS)),
            "attention.query": Tensor((24, 48), Cut((8,), _COLUMNS), 0, Cut((2, 3), _COLUMNS)),
            "mlp.up": Tensor((48, 12), Cut((2, 4), ((1,), (0,))), 0, Cut((2, 3), ((0,), (1,)))),
            "mlp.down": Tensor((12, 24), Cut((8,), _NOT), 0, Cut((6,), _NOT, 1, 6)),
            "moment1.embedding": Tensor((48, 24), Cut((8,), _NOT, 1, 8), 0, Cut((6,), _ROWS)),
            "norm": Tensor((48,), Cut((8,), ((),)), 0, Cut((6,), ((),))),
        },
    ),
    Network(
        "pipeline",
        "ckpt",
        2,
        4,
        4,
        {
            "layers.0.weight": Tensor((16, 24), Cut((4,), _ROWS), 0, Cut((4,), _COLUMNS)),
            "layers.0.bias": Tensor((16,), Cut((4,), ((),)), 0, Cut((4,), ((0,),))),
            "layers.1.weight": Tensor((16, 24), Cut((2, 2), ((0,), (1,))), 1, Cut((4,), _ROWS)),
            "layers.1.bias": Tensor((16,), Cut((4,), ((),), 1, 4), 1, Cut((4,), ((),))),
        },
    ),
)
EPOCH_AND_STEP = "1_100"
