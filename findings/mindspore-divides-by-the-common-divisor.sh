#!/bin/sh
# MindSpore 2.10.0, 2026-11-29
#
# In semi-automatic parallelism, MindSpore divides dimension 0 of a parameter whose operator has no strategy into as many slices as
# the greatest common divisor of its length and the number of devices. 12 rows on 8 devices become 4 slices, each on 2 devices.
#
# A good guess: such a parameter is divided by all devices or, where that is not possible, stays whole, so that the axes of the
# training's mesh (data parallel, tensor parallel) explain all layouts. No axis of a mesh such as 2 x 4 explains these 4 slices, on
# neighbouring pairs of devices. A layout that is calculated from the mesh is wrong for this parameter.
set -eu
. "$(dirname "$0")/lib/environment.sh"
install mindspore==2.10.0 numpy==1.26.4 safetensors==0.7.0

observe <<'END'
import ctypes
import os
import struct
from pathlib import Path

import mindspore
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore._c_expression import MSContext, ms_ctx_param
from mindspore.common.api import _cell_graph_executor
from mindspore.communication import _comm_helper
from mindspore.train.node_strategy_pb2 import ParallelStrategyMap


class Network(nn.Cell):
    def __init__(self, rows):
        super().__init__()
        self.weight = Parameter(Tensor(np.ones((rows, 4), np.float32)), name="weight")
        self.multiply, self.add = ops.Mul(), ops.ReduceSum()

    def construct(self, x):
        return self.add(self.multiply(self.weight, x))


def make_target_known(name):
    """The wheel for CPUs has all passes of automatic parallelism, but no target with several devices."""
    core = ctypes.CDLL(str(Path(mindspore.__file__).parent / "lib" / "libmindspore_core.so"))
    header = struct.pack("@NNi4x", len(name), len(name), -1)
    text = ctypes.create_string_buffer(header + name)
    string = ctypes.c_void_p(ctypes.addressof(text) + len(header))
    core["_ZN9mindspore9MsContext16RegisterInitFuncERKSsPFvPS0_E"](ctypes.byref(string), ctypes.CDLL(None).getpid)
    MSContext.get_instance().set_param(ms_ctx_param.mode, mindspore.GRAPH_MODE)


def compile_for_8_devices(rows):
    _comm_helper._HCCL_TEST_AVAILABLE = True
    mindspore.set_auto_parallel_context(
        device_num=8,
        global_rank=0,
        full_batch=True,
        parallel_mode="semi_auto_parallel",
        strategy_ckpt_config={"save_file": f"{rows}.ckpt"},
    )
    make_target_known(b"Ascend")
    try:
        _cell_graph_executor.compile(Network(rows), Tensor(np.ones((rows, 4), np.float32)), phase="compiled")
    except RuntimeError:
        pass  # there is no such device, but the strategy file is written


for rows in (16, 12, 10, 7):
    child = os.fork()
    if not child:
        compile_for_8_devices(rows)
        os._exit(0)
    os.waitpid(child, 0)
    strategy = ParallelStrategyMap()
    strategy.ParseFromString(Path(f"{rows}.ckpt").read_bytes())
    (layout,) = [item.parallel_layouts for item in strategy.parallel_layout_item if item.param_name == "weight"]
    print(rows, "rows: device matrix", list(layout.dev_matrix[0].dim), "tensor map", list(layout.tensor_map[0].dim))
END

expect <<'END'
16 rows: device matrix [8] tensor map [0, -1]
12 rows: device matrix [4, 2] tensor map [1, -1]
10 rows: device matrix [2, 4] tensor map [1, -1]
7 rows: device matrix [8] tensor map [-1, -1]
END
