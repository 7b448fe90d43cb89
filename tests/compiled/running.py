"""Networks that run on one device, with a state that is split into the files of ranks and joined from them.

Under MindSpore's Python:

    python running.py save FOLDER            source checkpoints of all networks, next to their strategies; FOLDER/outputs.json
    python running.py merge FOLDER           whether MindSpore merges the checkpoints of random parameters by their strategies
    python running.py outputs FOLDER MADE NAME...
                                             what networks output that load MADE/<network>/<source>/<target>; a line of JSON

Slices are taken by `definition`, from strategies that MindSpore's own messages read. MindSpore runs no parallel network on a CPU.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from zlib import crc32

import mindspore
import networks
import numpy as np
import saving
from compiling import DRAWS, KINDS, SETTINGS, SOURCES
from definition import Cut, held

STEPS = {"global_step": np.array([100], np.int32)}


def stages(strategy: Path) -> list[dict[str, Cut]]:
    """The layouts of each pipeline stage, of a file or a folder."""
    files = sorted(strategy.iterdir()) if strategy.is_dir() else [strategy.with_suffix(".ckpt")]
    return [{n: c for n, c in saving.read_strategy(f).items() if not n.startswith("accu_grads.")} for f in files]


def shape_of(name: str, network: mindspore.nn.Cell) -> tuple[int, ...]:
    """The whole shape of a weight, or of one of its moments."""
    weight = name.partition(".")[2] if name.startswith("moment") else name
    return tuple(network.parameters_dict()[weight].shape)


def whole(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random elements."""
    return np.random.RandomState(crc32(name.encode())).normal(0, 0.1, shape).astype(np.float32)


def save_ranks(folder: Path, kind: str, layouts: list[dict[str, Cut]], state: dict[str, np.ndarray]) -> None:
    """Write a checkpoint with a file for each rank, by MindSpore. All ranks hold the states without a layout."""
    everywhere = state.keys() - {name for cuts in layouts for name in cuts}
    for stage, cuts in enumerate(layouts):
        devices = next(iter(cuts.values())).devices
        slices = {name: held(state[name].shape, cut) for name, cut in cuts.items()}
        for local in range(devices):
            rank = stage * devices + local
            path = folder / f"rank_{rank}" / f"checkpoint_{rank}.{kind}"
            path.parent.mkdir(parents=True)
            found = [
                {"name": name, "data": mindspore.Tensor(state[name].reshape(-1)[indexes[local]])}
                for name, indexes in slices.items()
            ]
            found += [{"name": name, "data": mindspore.Tensor(state[name])} for name in sorted(everywhere)]
            mindspore.save_checkpoint(found, str(path), format=kind)


def joined(folder: Path, kind: str, layouts: list[dict[str, Cut]], shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return the whole parameters from those that MindSpore loads for each rank. Copies must be equal and elements complete."""
    found: dict[str, np.ndarray] = {}
    for stage, cuts in enumerate(layouts):
        devices = next(iter(cuts.values())).devices
        for local in range(devices):
            rank = stage * devices + local
            loaded = mindspore.load_checkpoint(str(folder / f"rank_{rank}" / f"checkpoint_{rank}.{kind}"), format=kind)
            assert loaded.keys() == {*cuts, "global_step"}, (rank, loaded.keys() ^ {*cuts, "global_step"})
            for name, cut in cuts.items():
                indexes = held(shapes[name], cut)[local]
                array = loaded[name].asnumpy()
                assert array.shape == indexes.shape, (rank, name, array.shape, indexes.shape)
                flat = found.setdefault(name, np.full(shapes[name], np.nan, np.float32)).reshape(-1)
                before = flat[indexes]
                assert np.all(np.isnan(before) | (before == array)), (rank, name)
                flat[indexes] = array
    assert not any(np.isnan(array).any() for array in found.values())
    return found


def outputs(name: str, state: dict[str, np.ndarray]) -> list[list[float]]:
    """Return the output of a network that has loaded its weights from a state. Moments must equal those of `whole`."""
    network = networks.NETWORKS[name]()
    moments = {n: array for n, array in state.items() if n.startswith("moment")}
    assert all(np.array_equal(array, whole(n, array.shape)) for n, array in moments.items())
    weights = {n: mindspore.Parameter(mindspore.Tensor(array), name=n) for n, array in state.items() if n not in moments}
    assert mindspore.load_param_into_net(network, weights, strict_load=True) == ([], [])
    found: list[list[float]] = network.set_train(False)(networks.inputs(name)[0]).asnumpy().tolist()
    return found


def save(folder: Path) -> None:
    """Write the checkpoints of all networks and of all random parameters, and what the networks output."""
    said = {}
    for name in SETTINGS:
        network = networks.NETWORKS[name]()
        said[name] = outputs(name, {n: whole(n, p.shape) for n, p in network.parameters_dict().items()})
        for layout in SOURCES[name]:
            layouts = stages(folder / name / layout)
            state = {n: whole(n, shape_of(n, network)) for cuts in layouts for n in cuts}
            save_ranks(folder / name / f"{layout}_checkpoints", KINDS[name], layouts, state | STEPS)
    for draw in DRAWS:
        state = {drawn.name: whole(drawn.name, drawn.shape) for drawn in draw.parameters}
        expected = {drawn.name: drawn.expected(draw.setting) for drawn in draw.parameters}
        save_ranks(folder / "draws" / f"{draw.seed}_checkpoints", "ckpt", [expected], state | STEPS)
    (folder / "outputs.json").write_text(json.dumps(said), encoding="utf-8")


def load(folder: Path, made: Path) -> list[list[float]]:
    """Return the output of a network that has loaded a transformed checkpoint: one whole rank if no strategy has that name."""
    network, target = made.parents[1].name, made.name
    cell, kind = networks.NETWORKS[network](), KINDS[network]
    if target == "whole":
        loaded = mindspore.load_checkpoint(str(made / "rank_0" / f"checkpoint_0.{kind}"), format=kind)
        return outputs(network, {name: p.asnumpy() for name, p in loaded.items() if name != "global_step"})
    layouts = stages(folder / network / target)
    return outputs(network, joined(made, kind, layouts, {name: shape_of(name, cell) for cuts in layouts for name in cuts}))


def merge(folder: Path) -> None:
    """Make MindSpore merge the checkpoints of random parameters, by its compiled strategies."""
    for draw in DRAWS:
        source, strategy = (str(folder / "draws" / f"{draw.seed}{end}") for end in ("_checkpoints", ".ckpt"))
        mindspore.transform_checkpoints(source, str(folder / "draws" / f"{draw.seed}_merged"), "checkpoint_", strategy, None)
        path = folder / "draws" / f"{draw.seed}_merged" / "rank_0" / "checkpoint_0.ckpt"
        loaded = {name: p.asnumpy() for name, p in mindspore.load_checkpoint(str(path)).items()}
        for drawn in draw.parameters:
            assert np.array_equal(loaded[drawn.name], whole(drawn.name, drawn.shape)), (draw.seed, drawn)


if __name__ == "__main__":
    command, folder, *rest = sys.argv[1:]
    if command == "save":
        save(Path(folder))
    elif command == "merge":
        merge(Path(folder))
    else:
        sys.stdout.write(json.dumps([load(Path(folder), Path(rest[0], name)) for name in rest[1:]]))
