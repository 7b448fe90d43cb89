"""A network of two pipeline stages with tensor and optimizer parallelism: an example for compile_strategy.py."""

from __future__ import annotations

import mindspore
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer
from mindspore.communication import get_group_size

STAGES, TENSOR_PARALLEL, MICRO_BATCHES, WIDTH = 2, 2, 4, 256


class Linear(nn.Cell):
    """A matrix product."""

    def __init__(self, inputs: int, outputs: int, cuts: tuple[tuple[int, int], tuple[int, int]]) -> None:
        super().__init__()
        # With `initializer`, MindSpore allocates no memory for a parameter that it only compiles.
        self.weight = Parameter(initializer("normal", (inputs, outputs), mindspore.float32), name="weight")
        self.matmul = ops.MatMul().shard(cuts)

    def construct(self, x: Tensor) -> Tensor:
        return self.matmul(x, self.weight)


class Block(nn.Cell):
    """Two matrix products: the first weight is split by columns, the second by rows."""

    def __init__(self, dp: int, tp: int) -> None:
        super().__init__()
        self.up = Linear(WIDTH, 4 * WIDTH, ((dp, 1), (1, tp)))
        self.relu = ops.ReLU().shard(((dp, tp),))
        self.down = Linear(4 * WIDTH, WIDTH, ((dp, tp), (tp, 1)))

    def construct(self, x: Tensor) -> Tensor:
        return self.down(self.relu(self.up(x)))


class Network(nn.Cell):
    """Four blocks and a head, in two stages."""

    def __init__(self, dp: int, tp: int) -> None:
        super().__init__()
        self.blocks = nn.CellList([Block(dp, tp) for _ in range(4)])
        self.head = Linear(WIDTH, 16, ((dp, 1), (1, tp)))
        for index, block in enumerate(self.blocks):
            block.pipeline_stage = index * STAGES // len(self.blocks)
        self.head.pipeline_stage = STAGES - 1

    def construct(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def build() -> tuple[mindspore.Model, list[Tensor]]:
    """Return the model and a batch of inputs. Use two stages."""
    mindspore.set_auto_parallel_context(full_batch=True, enable_parallel_optimizer=True)
    data_parallel = get_group_size() // (STAGES * TENSOR_PARALLEL)
    network = nn.WithLossCell(Network(data_parallel, TENSOR_PARALLEL), nn.CrossEntropyLoss())
    model = mindspore.Model(
        nn.PipelineCell(network, MICRO_BATCHES),
        optimizer=nn.Adam(network.trainable_params(), 1e-3),
    )
    batch = MICRO_BATCHES * data_parallel
    return model, [Tensor(np.zeros((batch, WIDTH), np.float32)), Tensor(np.zeros(batch, np.int32))]
