#!/bin/sh
# MindSpore 2.10.0, 2026-11-28
#
# `merge_sliced_parameter` with the strategy from `build_searched_strategy` ignores the optimizer shard. It returns a part of the
# parameter under the parameter's name, without an error.
#
# A good guess: the strategy states the shard, and the function's purpose is to merge the slices of all ranks, so the result is whole.
set -eu
. "$(dirname "$0")/lib/environment.sh"
install mindspore==2.10.0 numpy==1.26.4 safetensors==0.7.0

observe <<'END'
import mindspore
import numpy as np
from checkpoints import strategy
from mindspore import Parameter, Tensor

weight = np.arange(32, dtype=np.float32).reshape(8, 4)
strategy("columns.ckpt", weight=([2, 2], [-1, 0], 0, 0))
strategy("columns_and_shard.ckpt", weight=([2, 2], [-1, 0], 2, 2))
for name, rows in (("columns", 8), ("columns_and_shard", 4)):
    slices = []
    for rank in range(4):
        row, column = rank // 2 * (8 - rows), rank % 2 * 2
        slices.append(Parameter(Tensor(weight[row : row + rows, column : column + 2]), name="weight"))
    merged = mindspore.merge_sliced_parameter(slices, mindspore.build_searched_strategy(f"{name}.ckpt"))
    print(name, merged.shape)
END

expect <<'END'
columns (8, 4)
columns_and_shard (4, 4)
END
