"""Train the decoder on one device, and go on from checkpoints of many ranks, which MindSpore merges.

Under MindSpore's Python:

    python training.py save FOLDER OUT          FOLDER has the compiled strategies. OUT/whole.ckpt: all states after some steps;
                                                OUT/src: the same, divided among the ranks of `src`
    python training.py resume FOLDER OUT NAME... for OUT/whole.ckpt, and for the checkpoint OUT/NAME of each layout, a line of
                                                JSON: the logits, the loss of a further step, the loss and the logits after it

MindSpore runs no parallel network on a CPU. Its own `transform_checkpoints` merges the ranks by the strategies that its compiler
wrote, so each network loads what a training with these strategies holds.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import mindspore
import networks
import running
from compiling import KINDS
from mindspore import nn

NAME, STEPS = "decoder", 3
KIND = KINDS[NAME]


def training() -> tuple[nn.Cell, nn.Cell]:
    """The network, and a step of its training."""
    network = networks.NETWORKS[NAME]()
    loss = nn.WithLossCell(network, nn.CrossEntropyLoss())
    return network, nn.TrainOneStepCell(loss, nn.Adam(network.trainable_params(), 0.002)).set_train()


def save(folder: Path, out: Path) -> None:
    """Train, and save the state of the network and of the optimizer."""
    network, step = training()
    for parameter in network.trainable_params():
        parameter.set_data(mindspore.Tensor(running.whole(parameter.name, parameter.shape)))
    for _ in range(STEPS):
        step(*networks.inputs(NAME))
    mindspore.save_checkpoint(step, str(out / "whole.ckpt"))
    state = {p.name: p.asnumpy() for p in step.get_parameters()}
    running.save_ranks(out / "src", KIND, running.stages(folder / NAME / "src"), state)


def merged(folder: Path, out: Path, layout: str, scratch: Path) -> Path:
    """Return the file in which MindSpore merges the ranks of a checkpoint."""
    strategy = folder / NAME / layout
    if strategy.is_dir():
        mindspore.merge_pipeline_strategys(str(strategy), str(scratch / f"{layout}.ckpt"))
        strategy = scratch / layout
    mindspore.transform_checkpoints(
        str(out / layout), str(scratch / layout), "checkpoint_", str(strategy.with_suffix(".ckpt")), None, output_format="ckpt"
    )
    return scratch / layout / "rank_0" / "checkpoint_0.ckpt"


def resumed(state: Path) -> list[Any]:
    """Return the logits, the loss of a step, and the loss and the logits after it, of a training that loads a file."""
    network, step = training()
    loaded = mindspore.load_checkpoint(str(state))
    assert mindspore.load_param_into_net(step, loaded, strict_load=True) == ([], [])
    x, labels = networks.inputs(NAME)

    def logits() -> Any:
        return network.set_train(False)(x).asnumpy().tolist()

    before = logits()
    first = float(step.set_train()(x, labels).asnumpy())
    after = logits()
    return [before, first, float(step.set_train()(x, labels).asnumpy()), after]


if __name__ == "__main__":
    command, folder, out, *layouts = sys.argv[1:]
    if command == "save":
        save(Path(folder), Path(out))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            files = [Path(out, "whole.ckpt"), *(merged(Path(folder), Path(out), each, Path(scratch)) for each in layouts)]
            sys.stdout.write(json.dumps([resumed(file) for file in files]))
