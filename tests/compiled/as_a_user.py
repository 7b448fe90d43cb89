"""Build functions for the command line of the example, and networks that it cannot compile."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Any

import compiler
import mindspore
import networks
import numpy as np
from compiling import SETTINGS
from mindspore.communication import get_group_size, get_rank, init
from mindspore.parallel.auto_parallel import AutoParallel

decoder = partial(compiler.network, "decoder", SETTINGS["decoder"]["dst"])
stages = partial(compiler.network, "decoder", SETTINGS["decoder"]["src_pipeline"])


def auto_parallel() -> tuple[Any, list[Any]]:
    """The network of `stages` by MindSpore's newer interface, in a script that asks for its rank."""
    init()
    assert (get_rank() % 4, get_group_size()) == (0, 8)
    model, inputs = stages()
    wrapped = AutoParallel(model._network)  # noqa: SLF001 - a user has it without a Model
    wrapped.pipeline(stages=2)
    wrapped.hsdp(threshold=0)
    wrapped.dataset_strategy("full_batch")
    return mindspore.Model(wrapped, optimizer=model._optimizer), inputs  # noqa: SLF001 - the same


def mismatched() -> tuple[Any, list[Any]]:
    """Inputs that do not fit the weight."""
    return networks.Linear(5, 7), [mindspore.Tensor(np.zeros((8, 6), np.float32))]


def other_devices() -> tuple[Any, list[Any]]:
    mindspore.set_auto_parallel_context(device_num=4)
    return decoder()


def fails() -> tuple[Any, list[Any]]:
    raise KeyError("hidden_size")


def crashes() -> tuple[Any, list[Any]]:
    sys.stderr.write("out of memory\n")
    os.abort()


def nothing() -> tuple[Any, list[Any]]:
    return None, []


def without_stages() -> tuple[Any, list[Any]]:
    """Two stages, but all cells are in the first."""
    mindspore.set_auto_parallel_context(full_batch=True)
    made = networks.Document()
    made.layer1.pipeline_stage = 0
    return made.set_train(False), [networks.inputs("document")[0]]
