"""Make MindSpore's wheel for CPUs compile networks for many devices, so that it writes their strategy files.

    python compiler.py FOLDER    FOLDER/<network>/<layout>.ckpt, or a folder with a file for each stage, for each setting;
                                 FOLDER/experts/<layout>.json; FOLDER/draws/<seed>.ckpt for each network of random parameters

The wheel has all passes of automatic parallelism, but no target on which several devices communicate. A shim (shim.cc) makes a
target known under Ascend's name. Compiling ends with an error, since no such device can be opened, after the strategy is written.
Parallelism is set for a whole process, so each network is compiled in a forked child.
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mindspore
import networks
import numpy as np
from compiling import DRAWS, SETTINGS, Setting
from mindspore import nn
from mindspore._c_expression import MSContext, ms_ctx_param
from mindspore.common.api import _cell_graph_executor
from mindspore.communication import _comm_helper

if TYPE_CHECKING:
    from collections.abc import Callable

    from compiling import Draw


def _set(setting: Setting, rank: int, path: Path) -> None:
    _comm_helper._HCCL_TEST_AVAILABLE = True  # noqa: SLF001 - any number of devices is taken
    path.parent.mkdir(parents=True, exist_ok=True)
    mindspore.set_auto_parallel_context(
        device_num=setting.devices,
        global_rank=rank,
        pipeline_stages=setting.stages,
        parallel_mode="semi_auto_parallel",
        full_batch=True,
        enable_parallel_optimizer=setting.zero,
        parallel_optimizer_config={"parallel_optimizer_threshold": setting.threshold},
        strategy_ckpt_config={"save_file": str(path)},
        **({} if setting.shard_size == -1 else {"optimizer_weight_shard_size": setting.shard_size}),
    )


def _compile(cell: Any, *inputs: Any) -> None:
    ctypes.CDLL(os.environ["RESHARD_MINDSPORE_SHIM"]).register_target(b"Ascend")
    MSContext.get_instance().set_param(ms_ctx_param.mode, mindspore.GRAPH_MODE)
    try:
        _cell_graph_executor.compile(cell, *inputs, phase="compiled")
    except Exception as error:  # noqa: BLE001 - which pass fails, after the file is written, depends on the network
        sys.stderr.write(f"{error}\n")


def compile_network(name: str, setting: Setting, rank: int, path: Path) -> None:
    """Write the strategy file of the stage of a rank."""
    _set(setting, rank, path)
    network = networks.NETWORKS[name]()
    network.shard(setting)
    x, labels = networks.inputs(name)
    if not setting.trained:
        _compile(network.set_train(False), x)
        return
    if setting.stages > 1:
        cells = dict(network.cells_and_names())
        for stage, names in enumerate(network.stages):
            for cell in names:
                cells[cell].pipeline_stage = stage
    optimizer = nn.Adam([p for p in network.trainable_params() if p.name.startswith(setting.trained)], 0.002)
    loss: Any = nn.WithLossCell(network, nn.CrossEntropyLoss())
    if setting.stages > 1:
        loss = nn.PipelineCell(loss, 4)
        trained = mindspore.Model(loss, optimizer=optimizer)._train_network  # noqa: SLF001 - what `train` compiles
    else:
        trained = nn.TrainOneStepCell(loss, optimizer)
    _compile(trained.set_train(), x, labels)


def compile_draw(draw: Draw, path: Path) -> None:
    """Write the strategy file of a network of random parameters."""
    _set(draw.setting, 0, path)
    _compile(networks.Random(draw).set_train(), mindspore.Tensor(np.ones([1], np.float32)))


def _apart(path: Path, work: Callable[[Path], None]) -> None:
    """Write a file in a forked child."""
    child = os.fork()
    if not child:
        try:
            work(path)
        except BaseException:  # noqa: BLE001 - a child must not go on
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status or not path.exists():
        sys.exit(f"{path.name} was not compiled")
    path.chmod(0o644)


def main(folder: Path) -> None:
    """Compile all networks for all their settings."""
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)  # MindSpore leaves files of its analysis in the current folder
        for name, settings in SETTINGS.items():
            for layout, setting in settings.items():
                for stage in range(setting.stages):
                    path = folder / name / (f"{layout}/stage_{stage}.ckpt" if setting.stages > 1 else f"{layout}.ckpt")
                    rank = stage * setting.devices // setting.stages
                    _apart(path, partial(compile_network, name, setting, rank))
                    if name == "experts":  # the two forms differ where several axes cut a dimension
                        _apart(path.with_suffix(".json"), partial(compile_network, name, setting, rank))
        for draw in DRAWS:
            _apart(folder / "draws" / f"{draw.seed}.ckpt", partial(compile_draw, draw))


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
