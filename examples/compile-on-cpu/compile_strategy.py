"""Compile a network for many devices with MindSpore's CPU wheel, to get its strategy files. README.md is the guide.

    python compile_strategy.py network.py:build --devices 16 --stages 2 --output target-strategy

It needs Python 3.9 or later and MindSpore, but neither Reshard nor an accelerator.

MindSpore's CPU wheel has all passes of automatic parallelism, but no target on which several devices communicate. This program
registers such a target under the name Ascend. The compiler then writes the strategy file. After that it stops with an error,
because it cannot open a device.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import multiprocessing
import os
import shutil
import struct
import sys
import tempfile
import traceback
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    # Returns a Cell or a Model, and its inputs.
    Build = Callable[[], tuple[Any, Sequence[Any]]]


class CompileError(Exception):
    """A message for the user."""


@dataclass(frozen=True)
class Target:
    """Devices that the network is compiled for.

    Attributes:
        devices: of all pipeline stages.
        stages: number of pipeline stages, each with the same number of devices.
    """

    devices: int
    stages: int = 1

    def __post_init__(self) -> None:
        # MindSpore refuses other numbers (device_manager.cc).
        if self.devices not in {1, 2, 4} and (self.devices < 1 or self.devices % 8):
            raise CompileError(f"MindSpore compiles for 1, 2, 4 or a multiple of 8 devices, not for {self.devices}")
        if self.stages < 1 or self.devices % self.stages:
            raise CompileError(f"{self.devices} devices cannot be divided among {self.stages} stages")

    @property
    def stage_devices(self) -> int:
        """Number of devices of one stage."""
        return self.devices // self.stages


@dataclass(frozen=True)
class Compiled:
    """Result of one stage.

    Attributes:
        stopped: MindSpore's message when it stopped after it wrote the file.
        trainable: names of the trainable parameters of the network, of all stages, that have more than one element.
    """

    stopped: str
    trainable: list[str]


def compile_stage(build: Build, target: Target, stage: int, path: Path) -> Compiled:
    """Write the strategy file of one stage. A process can compile once, because parallelism is set for the whole process.

    Args:
        build: function of the user. It sets the other options of parallelism and builds the network, and
            must import the modules of the network when it is called.
        target: devices that the network is compiled for.
        stage: number of the stage.
        path: file to write, with the suffix .ckpt for protobuf or .json.

    Raises:
        CompileError: no file was written, or the network is built for another number of devices or stages.
    """
    import mindspore
    from mindspore import communication
    from mindspore.communication import _comm_helper

    rank = stage * target.stage_devices
    os.environ.update(RANK_ID=str(rank), RANK_SIZE=str(target.devices))  # what get_rank and get_group_size return
    communication.init = communication.management.init = lambda *_, **__: None
    _comm_helper._HCCL_TEST_AVAILABLE = True  # otherwise device_num is limited to the devices of this machine
    wanted = {"device_num": target.devices, "global_rank": rank, "pipeline_stages": target.stages}
    mindspore.set_auto_parallel_context(parallel_mode="semi_auto_parallel", **wanted)

    network, inputs = build()
    cell = _prepared(network, path)
    for name, value in wanted.items():
        found = mindspore.get_auto_parallel_context(name)
        if found != value:
            raise CompileError(f"the build function must not change {name}: it is {found} instead of {value}")
    trainable = [parameter.name for parameter in cell.trainable_params() if prod(parameter.shape) > 1]
    stopped = _compile(cell, inputs)
    if not path.exists():
        raise CompileError(f"MindSpore wrote no strategy file. Its message:\n{stopped or 'none'}")
    path.chmod(0o644)  # MindSpore lets only the owner read it
    return Compiled(stopped, trainable)


def _prepared(network: Any, path: Path) -> Any:
    """Return the cell to compile, and make the compiler write its strategy."""
    import mindspore
    from mindspore.parallel._utils import _init_auto_parallel_context

    cell, outermost = network, network
    if isinstance(network, mindspore.Model):
        outermost = network._network  # these are the cells that `train` and `predict` compile
        if network._optimizer is not None:
            cell = network._train_network.set_train()
        else:
            cell = network._predict_network.set_train(mode=False)
    if not isinstance(cell, mindspore.nn.Cell):
        raise CompileError(f"the build function must return a Cell or a Model first, not {type(network).__name__}")
    if type(outermost).__name__ == "AutoParallel":
        outermost.save_param_strategy_file(str(path))
        _init_auto_parallel_context(outermost)
    else:
        mindspore.set_auto_parallel_context(strategy_ckpt_config={"save_file": str(path)})
    return cell


def _compile(cell: Any, inputs: Sequence[Any]) -> str:
    """Compile a cell. Return the message of the error with which MindSpore stops."""
    import mindspore
    from mindspore._c_expression import MSContext, ms_ctx_param
    from mindspore.common.api import _cell_graph_executor

    register_target(Path(mindspore.__file__).parent, b"Ascend")
    MSContext.get_instance().set_param(ms_ctx_param.mode, mindspore.GRAPH_MODE)
    current = Path.cwd()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)  # MindSpore leaves files of its analysis in the current folder
        try:
            _cell_graph_executor.compile(cell, *inputs, phase="compiled")
        except Exception as error:  # noqa: BLE001 - which pass fails, after the file is written, depends on the network
            return str(error).partition("\n\n---")[0].strip()  # without the call stack of C++
        finally:
            os.chdir(current)
    return ""


def register_target(package: Path, name: bytes) -> None:
    """Make a device target known, by `MsContext::RegisterInitFunc(const std::string &, void (*)(MsContext *))`.

    The wheels have the first of libstdc++'s two ABIs, in which a std::string is a pointer to its characters, which follow their
    length, their capacity and a count of references (basic_string.tcc, `_Rep`). A negative count makes the callee copy them.

    Raises:
        CompileError: this build of MindSpore does not have the function.
    """
    library = ctypes.CDLL(str(package / "lib" / "libmindspore_core.so"))
    try:
        register = library["_ZN9mindspore9MsContext16RegisterInitFuncERKSsPFvPS0_E"]
    except AttributeError:
        raise CompileError("this build of MindSpore is not supported: it has no function RegisterInitFunc") from None
    header = struct.pack("@NNi4x", len(name), len(name), -1)
    text = ctypes.create_string_buffer(header + name)
    string = ctypes.c_void_p(ctypes.addressof(text) + len(header))
    register.restype = None
    # The function that initializes the target must do nothing, and must be in a shared library.
    register(ctypes.byref(string), ctypes.CDLL(None).getpid)


def layouts(path: Path) -> dict[str, int]:
    """Return the number of devices that each parameter of a protobuf file is laid out on."""
    from mindspore.train import node_strategy_pb2

    message = node_strategy_pb2.ParallelStrategyMap()
    message.ParseFromString(path.read_bytes())
    return {item.param_name: prod(item.parallel_layouts.dev_matrix[0].dim) for item in message.parallel_layout_item}


def check(found: dict[str, int], target: Target, stage: int) -> None:
    """Check the layouts of a stage.

    Raises:
        CompileError: the stage has no parameters, or one is laid out on another number of devices.
    """
    if not found:
        raise CompileError(f"stage {stage} has no parameters: set the pipeline_stage of its cells")
    for name, devices in found.items():
        if devices != target.stage_devices:
            raise CompileError(f"stage {stage}: {name} is laid out on {devices} devices instead of {target.stage_devices}")


def load(reference: str) -> Build:
    """Return the function that MODULE:FUNCTION or FILE.py:FUNCTION names. The default function is `build`."""
    name, _, function = reference.partition(":")
    if name.endswith(".py"):
        path = Path(name).absolute()
        if not path.is_file():
            raise CompileError(f"{name} does not exist")
        folder, name = str(path.parent), path.stem
    else:
        folder = str(Path.cwd())
    sys.path.insert(0, folder)
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        raise CompileError(f"there is no module {name} in {folder} or in the Python path")
    module = importlib.import_module(name)
    found = getattr(module, function or "build", None)
    if not callable(found):
        raise CompileError(f"{module.__file__} has no function {function or 'build'}")
    return found


def _child(reference: str, target: Target, stage: int, folder: Path) -> None:
    """Compile a stage and write the result as JSON. All output of MindSpore and of the network goes to a log."""
    with (folder / "log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    path = folder / f"stage_{stage}.ckpt"

    def build() -> tuple[Any, Sequence[Any]]:
        return load(reference)()

    try:
        compiled = compile_stage(build, target, stage, path)
        found = {"layouts": layouts(path), **asdict(compiled)}
    except CompileError as error:
        found = {"error": str(error)}
    except Exception as error:  # noqa: BLE001 - errors of the network
        found = {"error": f"{type(error).__name__}: {error}\n\n{traceback.format_exc()}"}
    (folder / "result.json").write_text(json.dumps(found), encoding="utf-8")


def _stage(reference: str, target: Target, stage: int, folder: Path) -> dict[str, Any]:
    """Compile a stage in a child process and check its file. The names of the keys are those of `_child`."""
    folder.mkdir()
    process = multiprocessing.get_context("spawn").Process(target=_child, args=(reference, target, stage, folder))
    process.start()
    process.join()
    result = folder / "result.json"
    log = (folder / "log").read_text(errors="replace").strip() if (folder / "log").exists() else ""
    if process.exitcode or not result.exists():
        raise CompileError(f"stage {stage}: the process ended with code {process.exitcode}. Its last output:\n{log[-4000:]}")
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    if "error" in found:
        reasons = [line for line in log.splitlines() if line.startswith("[ERROR]")]  # often more exact than the exception
        raise CompileError("\n".join([f"stage {stage}: {found['error']}", *reasons[:10]]))
    check(found["layouts"], target, stage)
    return found


def compile_all(reference: str, target: Target, output: Path) -> None:
    """Write stage_<n>.ckpt of all stages to a new folder. The folder appears when all files are complete.

    Raises:
        CompileError: a stage cannot be compiled, or the folder exists.
    """
    output = output.absolute()
    if output.exists():
        raise CompileError(f"{output} exists: name a new folder, or delete it")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as scratch:
        finished, laid_out, trainable = Path(scratch, "finished"), set(), {}
        finished.mkdir()
        for stage in range(target.stages):
            folder = Path(scratch, str(stage))
            found = _stage(reference, target, stage, folder)
            shutil.move(folder / f"stage_{stage}.ckpt", finished)
            laid_out |= found["layouts"].keys()
            trainable.update(dict.fromkeys(found["trainable"]))
            stopped = found["stopped"].partition("\n")[0]
            print(f"stage {stage}: {len(found['layouts'])} parameters, {target.stage_devices} devices")
            if stopped:
                print(f"  as expected, MindSpore stopped after it wrote the file: {stopped}")
        finished.rename(output)
    rest = [name for name in trainable if name not in laid_out]
    if rest:
        print(f"note: no strategy names these trainable parameters: {', '.join(rest)}", file=sys.stderr)
    print(f"{output}: strategy of {target.devices} devices. To show it: reshard strategy show {output}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code: 1 after a message if the network cannot be compiled."""
    parser = argparse.ArgumentParser(description="Compile a network for many devices with MindSpore's CPU wheel.")
    parser.add_argument("network", help="function that returns a Cell or Model and its inputs: FILE.py:NAME or MODULE:NAME")
    parser.add_argument("--devices", type=int, required=True, help="number of devices of all stages: 1, 2, 4 or a multiple of 8")
    parser.add_argument("--stages", type=int, default=1, help="number of pipeline stages. Default: 1")
    parser.add_argument("--output", type=Path, required=True, help="new folder for the strategy files, one file per stage")
    given = parser.parse_args(arguments)
    try:
        compile_all(given.network, Target(given.devices, given.stages), given.output)
    except CompileError as error:
        print(f"compile_strategy: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
