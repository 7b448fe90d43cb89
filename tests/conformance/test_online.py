"""Networks of the real MindSpore, loaded directly from a sharded checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import disk
import numpy as np
import pytest
from corpus import network
from rawfiles import safetensors

from reshard.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CORPUS = Path(__file__).parent / "corpus"
SOURCE = {"source": str(CORPUS / network.SOURCE), "source_strategy": str(CORPUS / network.STRATEGIES[8])}
WEIGHTS = [name for name in network.SHAPES if not name.startswith("moment")]
REST = sorted({*network.SHAPES, *network.STEPS} - {*WEIGHTS})


@pytest.fixture(autouse=True)
def _one_python_for_both() -> None:
    command = [os.environ["RESHARD_MINDSPORE_PYTHON"], "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    if subprocess.run(command, check=False).returncode:
        pytest.skip("MindSpore's Python is older than Reshard wants")


def weights_of(folder: Path, name: str, tensors: Mapping[str, np.ndarray]) -> str:
    """Write a file of all parameters of a network."""
    path = folder / f"{name}.safetensors"
    path.write_bytes(safetensors(tensors, {"format": "ms"}))
    return str(path)


@pytest.mark.parametrize("by", ["strategy", "index"])
def test_a_network_outputs_the_same_as_with_its_whole_weights(oracle: Callable[..., Any], tmp_path: Path, by: str) -> None:
    places: dict[str, str] = SOURCE
    if by == "index":
        sides = ["--source", SOURCE["source"], "--source-strategy", SOURCE["source_strategy"]]
        assert main(["transform", *sides, "--output", "index", "--target", str(tmp_path / "index")]) == 0
        places = {"source": SOURCE["source"], "index": str(tmp_path / "index")}
    file = weights_of(tmp_path, "whole", {name: network.whole(name) for name in WEIGHTS})
    ((absent, unused, differing, (theirs, ours)),) = oracle(
        "online", json.dumps([{"file": file, "places": places, "inputs": 784}])
    )
    assert (absent, unused, differing) == ([], REST, [])
    assert ours == theirs
    assert len({number for row in ours for number in row}) > 30  # of 40: it says something


@pytest.mark.parametrize("ranks", [4, 2, 7])
def test_each_rank_of_another_layout_gets_its_slices(oracle: Callable[..., Any], tmp_path: Path, ranks: int) -> None:
    places = SOURCE | {"target_strategy": str(CORPUS / network.STRATEGIES[ranks])}
    loads = [
        {
            "file": weights_of(tmp_path, str(rank), {name: network.held_by(rank, ranks)[name] for name in WEIGHTS}),
            "places": places | {"rank": rank},
        }
        for rank in range(ranks)
    ]
    rest = sorted({*network.held_by(0, ranks)} - {*WEIGHTS})
    assert [[*found[:3]] for found in oracle("online", json.dumps(loads))] == [[[], rest, []]] * ranks


@pytest.mark.parametrize("of", ["unified", "rank files"])
def test_a_load_under_mindspores_function_name(oracle: Callable[..., Any], tmp_path: Path, of: str) -> None:
    target = str(CORPUS / network.STRATEGIES[4])
    weights = {name: network.held_by(1, 4)[name] for name in network.held_by(1, 4)}
    file = weights_of(tmp_path, "slices", weights)
    if of == "unified":
        sides = ["--source", SOURCE["source"], "--source-strategy", SOURCE["source_strategy"]]
        assert main(["transform", *sides, "--output", "unified", "--target", str(tmp_path / "u")]) == 0
        places: dict[str, Any] = {"unified_safetensors_dir": str(tmp_path / "u"), "format": "safetensors"}
    else:
        files = [str(next(Path(SOURCE["source"], f"rank_{rank}").iterdir())) for rank in range(8)]
        places = {"checkpoint_filenames": files, "train_strategy_filename": SOURCE["source_strategy"]}
    places |= {"predict_strategy": target, "rank_id": 1}
    ((absent, unused, differing, _),) = oracle("online", json.dumps([{"file": file, "places": places, "distributed": True}]))
    assert (absent, unused, differing) == ([], [], [])


def test_types_that_numpy_does_not_have(oracle: Callable[..., Any], tmp_path: Path) -> None:
    model = disk.example()
    whole = {tensor.name: model.whole(tensor) for tensor in model.tensors}
    whole["m"] = np.nan_to_num(whole["m"].astype(np.float32)).astype(whole["m"].dtype)  # MindSpore keeps one NaN only
    file = weights_of(tmp_path, "whole", whole)
    ((absent, unused, differing, _),) = oracle("online", json.dumps([{"file": file, "places": {"source": file}}]))
    assert (absent, unused, differing) == ([], [], [])
