"""Compile networks for many devices, by the example of this repository (examples/compile-on-cpu).

    python compiler.py FOLDER    FOLDER/<network>/<layout>.ckpt, or a folder with a file for each stage, for each setting;
                                 FOLDER/experts/<layout>.json; FOLDER/draws/<seed>.ckpt for each network of random parameters

Parallelism is set for a whole process, so each network is compiled in a forked child.
"""

from __future__ import annotations

import os
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mindspore
import networks
import numpy as np
from compiling import DRAWS, SETTINGS, Setting
from mindspore import nn
from scaling import SCALED

from compile_strategy import Target, compile_stage

if TYPE_CHECKING:
    from compiling import Draw

    from compile_strategy import Build


def _set(setting: Setting) -> None:
    mindspore.set_auto_parallel_context(
        full_batch=True,
        enable_parallel_optimizer=setting.zero,
        parallel_optimizer_config={"parallel_optimizer_threshold": setting.threshold},
        **({} if setting.shard_size == -1 else {"optimizer_weight_shard_size": setting.shard_size}),
    )


def network(name: str, setting: Setting) -> tuple[Any, list[Any]]:
    """What is compiled of a network for a setting, and its inputs."""
    _set(setting)
    made = networks.NETWORKS[name]()
    made.shard(setting)
    x, labels = networks.inputs(name)
    if not setting.trained:
        return made.set_train(False), [x]
    if setting.stages > 1:
        cells = dict(made.cells_and_names())
        for stage, names in enumerate(made.stages):
            for cell in names:
                cells[cell].pipeline_stage = stage
    optimizer = nn.Adam([p for p in made.trainable_params() if p.name.startswith(setting.trained)], 0.002)
    loss: Any = nn.WithLossCell(made, nn.CrossEntropyLoss())
    if setting.stages > 1:
        return mindspore.Model(nn.PipelineCell(loss, 4), optimizer=optimizer), [x, labels]
    return nn.TrainOneStepCell(loss, optimizer).set_train(), [x, labels]


def random_network(draw: Draw) -> tuple[Any, list[Any]]:
    """A network of random parameters, and its input."""
    _set(draw.setting)
    return networks.Random(draw).set_train(), [mindspore.Tensor(np.ones([1], np.float32))]


def apart(build: Build, setting: Setting, stage: int, path: Path) -> None:
    """Write the file of a stage in a forked child."""
    path.parent.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if not child:
        try:
            compile_stage(build, Target(setting.devices, setting.stages), stage, path)
        except BaseException:  # noqa: BLE001 - a child must not go on
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        sys.exit(f"{path.name} was not compiled")


def main(folder: Path) -> None:
    """Compile all networks for all their settings."""
    for name, settings in SETTINGS.items():
        for layout, setting in settings.items():
            build = partial(network, name, setting)
            for stage in range(setting.stages):
                path = folder / name / (f"{layout}/stage_{stage}.ckpt" if setting.stages > 1 else f"{layout}.ckpt")
                apart(build, setting, stage, path)
                if name == "experts":  # the two forms differ where several axes cut a dimension
                    apart(build, setting, stage, path.with_suffix(".json"))
    for draw in [*DRAWS, *SCALED]:
        apart(partial(random_network, draw), draw.setting, 0, folder / "draws" / f"{draw.seed}.ckpt")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
