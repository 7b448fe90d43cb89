"""The document's network, trained by the real MindSpore: saved by 8 ranks, and continued from other checkpoints.

MindSpore runs no parallel network on a CPU, so one process trains, and numpy cuts its state into the files of ranks, as the
strategies say that MindSpore's compiler wrote; and joins again what ranks load.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mindspore
import numpy as np
import saving
from corpus import network
from definition import held
from mindspore import nn, ops

if TYPE_CHECKING:
    from definition import Cut

_WEIGHTS = [name for name in network.SHAPES if not name.startswith("moment")]
_RANDOM = np.random.RandomState(6)
# Around 0, so that no neuron is inactive for all of them.
_IMAGES = mindspore.Tensor(_RANDOM.normal(size=(32, 28 * 28)).astype(np.float32))
_LABELS = mindspore.Tensor(_RANDOM.randint(0, 10, 32).astype(np.int32))
_STAGE_DEVICES = 4
_RECORDED = Path(__file__).parent / "corpus" / "training"  # by MindSpore's compiler
_STAGES = [saving.read_strategy(_RECORDED / f"src_pipeline_strategy/stage_{stage}.ckpt") for stage in (0, 1)]

# By the name of the strategy file; every rank holds parameters without a layout whole.
STRATEGIES: dict[str, dict[str, Cut]] = {
    name: saving.read_strategy(_RECORDED / name) for name in ("src_strategy.ckpt", "dst_strategy.ckpt", "predict_strategy.ckpt")
}
STRATEGIES[""] = {}


class Network(nn.Cell):
    """Three dense layers, 784 x 512, 512 x 512 and 512 x 10, with ReLU between them."""

    def __init__(self) -> None:
        super().__init__()
        for layer in (1, 2, 3):
            setattr(self, f"layer{layer}", nn.Cell())
        for name in _WEIGHTS:
            layer, _, kind = name.partition(".")
            start = _RANDOM.normal(0, 0.05, network.SHAPES[name]).astype(np.float32)
            setattr(getattr(self, layer), kind, mindspore.Parameter(start, name=name))

    def construct(self, x: Any) -> Any:
        """The logits of images."""
        x = ops.relu(ops.matmul(x, self.layer1.weight) + self.layer1.bias)
        x = ops.relu(ops.matmul(x, self.layer2.weight) + self.layer2.bias)
        return ops.matmul(x, self.layer3.weight) + self.layer3.bias


class Training:
    """The network with its optimizer, at some step."""

    def __init__(self) -> None:
        self.network = Network()
        self.optimizer = nn.Adam(self.network.trainable_params(), 0.002)
        loss = lambda: ops.cross_entropy(self.network(_IMAGES), _LABELS)  # noqa: E731 - MindSpore differentiates a function
        self._gradients = mindspore.value_and_grad(loss, None, self.optimizer.parameters)

    def step(self) -> None:
        self.optimizer(self._gradients()[1])

    def logits(self) -> list[list[float]]:
        found: list[list[float]] = self.network(_IMAGES).asnumpy().tolist()
        return found

    def said(self) -> list[Any]:
        """The logits, and those after one more step, into which the moments go."""
        now = self.logits()
        self.step()
        return [now, self.logits()]


def train(folder: Path) -> None:
    """Train, and write the results of the document's two trainings, strategies of targets, and the network's outputs."""
    training = Training()
    for _ in range(3):
        training.step()
    state = {p.name: p.asnumpy() for cell in (training.optimizer, training.network) for p in cell.get_parameters()}
    for name in filter(None, STRATEGIES):
        shutil.copy(_RECORDED / name, folder)
    for rank in range(8):
        _save(folder / f"src_checkpoints/rank_{rank}/checkpoint_{rank}.ckpt", state, STRATEGIES["src_strategy.ckpt"], rank)
    (folder / "src_pipeline_strategys").mkdir()
    shutil.copy(_RECORDED / "dst_strategy.ckpt", folder / "dst_strategy_pipeline.ckpt")
    for rank in range(8):
        stage, device = divmod(rank, _STAGE_DEVICES)
        strategy = folder / f"src_pipeline_strategys/src_strategy_{rank}.ckpt"
        shutil.copy(_RECORDED / f"src_pipeline_strategy/stage_{stage}.ckpt", strategy)
        mine = {name: array for name, array in state.items() if name not in _STAGES[1 - stage]}
        _save(folder / f"src_checkpoints_pipeline/rank_{rank}/checkpoint-3_1875.ckpt", mine, _STAGES[stage], device)
    (folder / "said.json").write_text(json.dumps(training.said()), encoding="utf-8")


def _save(path: Path, state: dict[str, np.ndarray], layouts: dict[str, Cut], rank: int) -> None:
    path.parent.mkdir(parents=True)
    slices = {name: _taken(array, layouts[name], rank) if name in layouts else array for name, array in state.items()}
    mindspore.save_checkpoint([{"name": name, "data": mindspore.Tensor(array)} for name, array in slices.items()], str(path))


def _taken(whole: np.ndarray, cut: Cut, rank: int) -> np.ndarray:
    return np.ascontiguousarray(whole.reshape(-1)[held(whole.shape, cut)[rank]])


def go_on(folder: Path, strategy: str) -> list[Any]:
    """Return the output of the network loaded from a checkpoint, and after one more step if it has an optimizer's state.

    Args:
        folder: `rank_<r>/` with the files of each rank; one whole rank; or unified files, which MindSpore then cuts first.
        strategy: the one of STRATEGIES by which it is cut, or is to be.
    """
    if (folder / "param_name_map.json").exists():
        folder = _cut(folder, folder.parent / strategy)
    layouts = STRATEGIES[strategy]
    parts = [_loaded(rank) for rank in sorted(folder.glob("rank_*"))]
    state = {name: _joined(name, [part[name] for part in parts], layouts.get(name)) for name in parts[0]}
    parameters = {name: mindspore.Parameter(array, name=name) for name, array in state.items()}
    training = Training()
    assert mindspore.load_param_into_net(training.network, parameters)[0] == []
    if not any(name.startswith("moment") for name in parameters):
        return [training.logits(), None]
    assert mindspore.load_param_into_net(training.optimizer, parameters) == ([], [])
    return training.said()


def _cut(unified: Path, strategy: Path) -> Path:
    ranks = unified.with_name(f"{unified.name}_by_mindspore")
    mindspore.load_distributed_checkpoint(
        network=None,
        predict_strategy=str(strategy),
        format="safetensors",
        unified_safetensors_dir=str(unified),
        dst_safetensors_dir=str(ranks),
        max_process_num=1,
    )
    return ranks


def _loaded(folder: Path) -> dict[str, np.ndarray]:
    """Return a rank's folder as MindSpore reads it, from one file or from the parts of several stages."""
    path, *more = folder.iterdir()
    if more:
        found = mindspore.load_segmented_checkpoints(str(folder))
    else:
        found = mindspore.load_checkpoint(str(path), format=path.suffix[1:])
    return {name: parameter.asnumpy() for name, parameter in found.items()}


def _joined(name: str, parts: list[np.ndarray], cut: Cut | None) -> np.ndarray:
    """Return the whole parameter; elements on several ranks are equal."""
    if cut is None:
        assert all(np.array_equal(part, parts[0]) for part in parts), name
        return parts[0]
    shape = network.SHAPES[name.partition(".")[2] if name.startswith("moment") else name]
    indexes = held(shape, cut)
    assert [part.shape for part in parts] == [index.shape for index in indexes], name
    whole = np.empty(shape, np.float32)
    for index, part in zip(indexes, parts):  # noqa: B905 - Python 3.9 has no strict; they are as many
        whole.reshape(-1)[index] = part
    assert all(np.array_equal(whole.reshape(-1)[index], part) for index, part in zip(indexes, parts)), name  # noqa: B905 - as above
    return whole
