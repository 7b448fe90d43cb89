"""examples/compile-on-cpu as a user runs it: from a network to a checkpoint for the strategy that was compiled."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import rawfiles
import yaml
from mindspore_program import SHARED
from pages import ROOT

import reshard
from reshard import Request, transform_checkpoint
from reshard.cli import main
from reshard.strategy import parse

EXAMPLE = ROOT / "examples" / "compile-on-cpu"


def compile_strategy(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the example's program with networks of this tier in the path."""
    command = [os.environ["RESHARD_MINDSPORE_PYTHON"], str(EXAMPLE / "compile_strategy.py"), *map(str, arguments)]
    paths = ":".join(map(str, [Path(__file__).parent, *SHARED]))
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize(
    ("function", "target", "expected"),
    [
        ("decoder", ["--devices", 16], ["decoder/dst.ckpt"]),
        ("stages", ["--devices", 8, "--stages", 2], [f"decoder/src_pipeline/stage_{n}.ckpt" for n in (0, 1)]),
        ("auto_parallel", ["--devices", 8, "--stages", 2], [f"decoder/src_pipeline/stage_{n}.ckpt" for n in (0, 1)]),
    ],
)
def test_the_example_writes_the_strategy_of_every_stage(
    function: str, target: list[object], expected: list[str], compiled: Path, tmp_path: Path
) -> None:
    done = compile_strategy(f"as_a_user:{function}", *target, "--output", tmp_path / "made")
    assert done.returncode == 0, done.stderr
    files = sorted((tmp_path / "made").iterdir())
    assert [file.name for file in files] == [f"stage_{stage}.ckpt" for stage in range(len(expected))]
    for file, name in zip(files, expected, strict=True):
        assert parse(file.read_bytes(), name).stages == parse((compiled / name).read_bytes(), name).stages
    assert done.stdout.count("as expected, MindSpore stopped after it wrote the file: ") == len(files)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "made"]


@pytest.mark.parametrize(
    ("network", "target", "said"),
    [
        ("as_a_user:mismatched", ["--devices", 8], "MindSpore wrote no strategy file. Its message:\nFor 'MatMul' the input"),
        ("as_a_user:decoder", ["--devices", 8, "--stages", 2], "Stage num is 2 is not equal to stage used"),
        ("as_a_user:decoder", ["--devices", 24], "[ERROR] PARALLEL"),  # its axes do not divide 24 devices
        ("as_a_user:other_devices", ["--devices", 16], "must not change device_num: it is 4 instead of 16"),
        ("as_a_user:fails", ["--devices", 16], "KeyError: 'hidden_size'"),
        ("as_a_user:crashes", ["--devices", 16], "the process ended with code -6. Its last output:\nout of memory"),
        ("as_a_user:nothing", ["--devices", 16], "must return a Cell or a Model first, not NoneType"),
        ("as_a_user:absent", ["--devices", 16], "as_a_user.py has no function absent"),
        ("no_such_module:build", ["--devices", 16], "there is no module no_such_module"),
        ("no_such_file.py", ["--devices", 16], "no_such_file.py does not exist"),
        ("as_a_user:decoder", ["--devices", 12], "1, 2, 4 or a multiple of 8 devices, not for 12"),
    ],
)
def test_a_network_that_cannot_be_compiled_leaves_a_message_and_no_file(
    network: str, target: list[object], said: str, tmp_path: Path
) -> None:
    done = compile_strategy(network, *target, "--output", tmp_path / "made")
    assert done.returncode == 1
    assert done.stderr.startswith("compile_strategy: ")
    assert said in done.stderr
    assert not list(tmp_path.iterdir())


def whole_parameters() -> dict[str, np.ndarray]:
    """The state of the example's network, with random elements."""
    random = np.random.default_rng(42)
    shapes = {"up": (256, 1024), "down": (1024, 256)}
    weights = {f"blocks.{n}.{name}.weight": shape for n in range(4) for name, shape in shapes.items()}
    weights["head.weight"] = (256, 16)
    names = {prefix + name: shape for name, shape in weights.items() for prefix in ("", "moment1.", "moment2.")}
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in names.items()}


def here(argument: str, folder: Path) -> str:
    """Return an argument of a container of the Job with the paths of this machine."""
    places = {"/compile/": f"{EXAMPLE}/", "/strategy/": f"{folder}/", "/checkpoints/": f"{folder}/checkpoints/"}
    for place, local in places.items():
        argument = argument.replace(place, local)
    return argument


def test_the_resource_converts_to_the_strategy_that_its_job_has_compiled(tmp_path: Path) -> None:
    expected = whole_parameters()
    run = tmp_path / "checkpoints" / "run-42"
    (run / "whole").mkdir(parents=True)
    (run / "whole" / "checkpoint_0.safetensors").write_bytes(rawfiles.safetensors(expected))
    done = compile_strategy(EXAMPLE / "network.py", "--devices", 8, "--stages", 2, "--output", tmp_path / "source")
    assert done.returncode == 0, done.stderr
    assert main(["strategy", "merge", str(tmp_path / "source"), str(run / "src_strategy.ckpt")]) == 0
    transform_checkpoint(Request(str(run / "whole"), str(run / "src_checkpoints"), None, str(run / "src_strategy.ckpt")))

    pod = yaml.safe_load((EXAMPLE / "job.yaml").read_text())["spec"]["template"]["spec"]
    (compile_, merge) = (*pod["initContainers"], *pod["containers"])
    python, program, *arguments = compile_["command"]
    assert (python, here(program, tmp_path)) == ("python3", str(EXAMPLE / "compile_strategy.py"))
    done = compile_strategy(*(here(argument, tmp_path) for argument in arguments))
    assert done.returncode == 0, done.stderr
    assert main([here(argument, tmp_path) for argument in merge["args"]]) == 0

    assert main(["run", str(EXAMPLE / "transform.yaml"), "--volume", f"checkpoints={tmp_path / 'checkpoints'}"]) == 0
    assert len(list((run / "on-16").glob("rank_*"))) == 16
    found = reshard.load(str(run / "on-16"), str(run / "strategy_16.ckpt"))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], array) for name, array in expected.items())
