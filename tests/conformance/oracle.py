"""Behaviour of the real MindSpore. Runs under its Python, one process for many cases:

    python oracle.py transform FOLDER NUMBER...     FOLDER/<number>/ with the inputs and the outcome of each case
    python oracle.py unify FOLDER NUMBER...         the same of unified safetensors, and of what it loads from them
    python oracle.py stages FOLDER NUMBER...        the same, stage by stage
    python oracle.py thin FOLDER NUMBER...          the inputs of each case, saved without redundancy
    python oracle.py samples FOLDER                 checkpoint files with everything that MindSpore can save
    python oracle.py rare FOLDER                    a file saved asynchronously, and one for each type that it cannot load
    python oracle.py choose FOLDER                  unified safetensors without what a choice_func refuses, of files with a CRC
    python oracle.py convert FOLDER                 a tree of such files, and what its conversions make of each and of all
    python oracle.py train FOLDER                   the document's network, trained, as its ranks save it
    python oracle.py encrypted FOLDER               the same in every mode, with keys of every length

and, with the answer as JSON in the last line:

    python oracle.py load FILE...                   what load_checkpoint finds in each
    python oracle.py segments FOLDER...             what load_segmented_checkpoints finds in each
    python oracle.py gather FOLDER NUMBER...        what each rank has that loads FOLDER/<number>/ with remove_redundancy
    python oracle.py layouts FILE...                what strategy files say to MindSpore's transforms
    python oracle.py groups FILE...                 what restore_group_info_list finds in files that it makes of their names
    python oracle.py signatures NAME...             parameters and defaults of functions of the package
    python oracle.py exports                        names of its functions for checkpoints and strategies
    python oracle.py merge FOLDER                   a parameter in slices, joined, and the layouts that it reads for that
    python oracle.py distribute FILE                why it cannot load unified safetensors, or null; a line for each
    python oracle.py go_on FOLDER:STRATEGY...       what that network says when it goes on from other checkpoints
    python oracle.py limits                         the length of the pieces that a large parameter is saved in
    python oracle.py online JSON                    networks that Reshard loads, compared with MindSpore's
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mindspore
import numpy as np
import safetensors
from mindspore.parallel import checkpoint_convert, checkpoint_transform, transform_safetensors
from mindspore.parallel._parallel_serialization import _extract_layout_map
from mindspore.train import node_strategy_pb2 as straspb
from mindspore.train import serialization

sys.path.append(str(Path(__file__).resolve().parents[1] / "support"))  # where `definition` is

import modes
import saving
import thin
import training
import transforms
from definition import Cut

PREFIX = "checkpoint_"


def stages(folder: Path, case: transforms.Case) -> None:
    """Write the inputs of a case, and MindSpore's outputs stage by stage."""
    _, after = saving.inputs(folder, case)
    for file in sorted((folder / "source_stages").iterdir()):
        mindspore.transform_checkpoints(str(folder / "source"), str(folder / "mindspore"), PREFIX, str(file), after)


def transform(folder: Path, case: transforms.Case) -> dict[str, Any]:
    """Write the inputs of a case, and MindSpore's outputs."""
    before, after = saving.inputs(folder, case)
    outcome: dict[str, Any] = {"error": None, "rank_lists": [], "by_rank": None}
    try:
        mindspore.transform_checkpoints(
            str(folder / "source"), str(folder / "mindspore"), PREFIX, before, after, output_format=case.target_format
        )
        for rank in range(case.target_ranks):
            outcome["rank_lists"].append([int(r) for r in mindspore.rank_list_for_transform(rank, before, after)])
        if case.source_format == case.target_format == "ckpt":
            rank = case.number % case.target_ranks
            files = {r: str(folder / "source" / f"rank_{r}" / case.file_name(r)) for r in outcome["rank_lists"][rank]}
            mindspore.transform_checkpoint_by_rank(rank, files, str(folder / "by_rank.ckpt"), before, after)
            outcome["by_rank"] = rank
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the outcome
        outcome["error"] = f"{type(error).__name__}: {error}"
    (folder / "outcome.json").write_text(json.dumps(outcome), encoding="utf-8")
    return outcome


def unify(folder: Path, case: transforms.Case) -> None:
    """Write the inputs of a case, MindSpore's unified safetensors, and the parameters that it loads for each target rank."""
    before, after = saving.inputs(folder, case)
    # MindSpore waits while half of the machine's memory is in use by any process.
    transform_safetensors.psutil = SimpleNamespace(virtual_memory=lambda: SimpleNamespace(percent=0))
    source, unified = str(folder / "source"), str(folder / "unified")
    error = distribute(unified, str(folder / "loaded"), after, case.target_ranks, case.target_format, (source, before))
    (folder / "outcome.json").write_text(json.dumps({"error": error}), encoding="utf-8")


def distribute(
    unified: str, target: str, strategy: str | None, ranks: int, kind: str, source: tuple[str, str] | None = None
) -> str | None:
    """Make MindSpore load unified safetensors (and write them first) for each rank, as its pool of processes costs seconds."""
    try:
        if source is not None:
            mindspore.unified_safetensors(*source, unified, max_process_num=1)
        for rank in range(ranks):
            mindspore.load_distributed_checkpoint(
                None,
                predict_strategy=strategy,
                format="safetensors",
                unified_safetensors_dir=unified,
                dst_safetensors_dir=target,
                rank_id=rank,
                output_format=kind,
            )
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the outcome
        return f"{type(error).__name__}: {error}"
    return None


def save_thin(folder: Path, case: transforms.Case) -> None:
    """Inputs of a case, each slice saved once."""
    for rank in range(case.source_ranks):
        tensors = {name: saving.tensor_of(bits, case.types()[name]) for name, bits in case.source(rank).items()}
        thin.save(folder / "source" / f"rank_{rank}", case, rank, tensors)
    for side in ("source", "target"):
        saving.write_strategy(folder, case, side)


def gather(folder: Path, case: transforms.Case) -> list[dict[str, list[Any]]]:
    """Return the parameters of all target ranks' networks after each has loaded its file: type, shape and digest by name."""
    files = {r: str(next((folder / f"rank_{r}").iterdir())) for r in range(case.target_ranks)}
    zeros = [
        {name: saving.tensor_of(np.zeros_like(bits), case.types()[name]) for name, bits in case.target(rank).items()}
        for rank in files
    ]
    return [{name: _told(value) for name, value in found.items()} for found in thin.Cluster(case, files, zeros).load()]


def _told(value: Any) -> list[Any]:
    content = value.get_bytes() if 0 not in value.shape else b""
    return [str(value.dtype), list(value.shape), hashlib.sha256(content).hexdigest()]


def samples(folder: Path) -> None:
    """Files with all types and shapes, with a CRC and without; with text; with an empty tensor; with a tensor in pieces."""
    case = transforms.Case(0, "ckpt", "ckpt", 1, 1, 1, 1, source_named=False, target_named=False)
    tensors, types = {}, {}
    for dtype in transforms.BITS:
        for shape in ((), (1,), (3, 4)):
            name = f"{dtype}{list(shape)}"
            bits = case.whole(transforms.Tensor(name, dtype, shape, None, (), None, ()))
            # A scalar's value is how many zeros MindSpore takes into its CRC.
            tensors[name], types[name] = bits if shape or "Int" not in dtype else np.asarray(bits & bits.dtype.type(0x7F)), dtype
    # MindSpore fails to work out the CRC of BFloat16 in a safetensors file.
    marked = {name: bits for name, bits in tensors.items() if types[name] != "BFloat16"}
    for kind in ("ckpt", "safetensors"):
        saving.save(folder / f"all.{kind}", tensors, types)
        saving.save(folder / f"all_crc.{kind}", marked, types, crc_check=True)
    text = {"text": "h\u00e9llo \U0001f600", "empty": ""}
    saving.save(folder / "text.ckpt", {"a": tensors["Int8[3, 4]"]}, {"a": "Int8"}, append_dict=text)
    empty = np.zeros((0, 3), np.uint32)
    saving.save(folder / "empty.safetensors", {"a": tensors["Int8[3, 4]"], "empty": empty}, {"a": "Int8", "empty": "Float32"})
    whole, serialization.SLICE_SIZE = serialization.SLICE_SIZE, 4  # in KiB
    large = np.arange(3 * 1024 + 8, dtype=np.uint32).reshape(2, -1)
    saving.save(folder / "pieces.ckpt", {"before": large[:1, :8], "large": large}, {"before": "UInt32", "large": "Float32"})
    serialization.SLICE_SIZE = whole


def rare(folder: Path) -> None:
    """A file saved asynchronously, with parameters in pieces and without elements; one of each type that cannot be loaded."""
    whole, serialization.SLICE_SIZE = serialization.SLICE_SIZE, 4  # in KiB
    shapes = {"rows": (3, 2000), "row": (1, 6000), "none": (0, 4), "nothing": (0,), "no columns": (4, 0), "scalar": ()}
    tensors = {name: np.arange(np.prod(shape), dtype=np.uint32).reshape(shape) for name, shape in shapes.items()}
    saving.save(folder / "async.ckpt", tensors, dict.fromkeys(shapes, "Float32"), async_save=True)
    for thread in threading.enumerate():
        if thread.name == "asyn_save_ckpt":
            thread.join()
    serialization.SLICE_SIZE = whole
    content = bytes(range(1, 97))
    for dtype in ("float8_e4m3fn", "float8_e5m2", "hifloat8", "complex64", "complex128"):
        kind = getattr(mindspore, dtype)
        shape = (2, 96 // 2 // {"complex64": 8, "complex128": 16}.get(dtype, 1))
        tensor = mindspore.Tensor(serialization.Tensor_.convert_bytes_to_tensor(content, shape, kind))
        path = folder / f"{tensor.dtype}.ckpt"
        mindspore.save_checkpoint([{"name": "w", "data": tensor}], str(path))
        assert str(tensor.dtype) not in serialization.tensor_to_ms_type


def choose(folder: Path) -> None:
    """Save two ranks with a CRC in their files, and unify them with one parameter refused."""
    whole = np.arange(16, dtype=np.float32).reshape(4, 4)
    for rank in range(2):
        tensors = dict.fromkeys(("kept", "refused"), whole[2 * rank :][:2])
        path = folder / "source" / f"rank_{rank}" / "net.safetensors"
        saving.save(path, tensors, dict.fromkeys(tensors, "Float32"), crc_check=True)
    cut = Cut((2,), ((0,), ()))
    saving.strategy(folder / "strategy.ckpt", {"kept": cut, "refused": cut}, 0)
    transform_safetensors.psutil = SimpleNamespace(virtual_memory=lambda: SimpleNamespace(percent=0))
    places = [str(folder / name) for name in ("source", "strategy.ckpt", "unified")]
    mindspore.unified_safetensors(*places, max_process_num=1, choice_func=lambda name: name != "refused")


def convert(folder: Path) -> None:
    """Write samples in a tree, each converted separately, and all matching ones converted at once with other names."""
    source = folder / "source"
    samples(source / "rank_0")
    samples(source / "rank1")
    saving.save(source / "rank_0" / "nothing.ckpt", {}, {})
    outcome = {}
    for path in sorted((source / "rank_0").iterdir()):
        convert_file = mindspore.ckpt_to_safetensors if path.suffix == ".ckpt" else mindspore.safetensors_to_ckpt
        try:
            convert_file(str(path), str(folder / "single"))
            outcome[path.name] = ""
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the outcome
            outcome[path.name] = f"{type(error).__name__}: {error}"
    (folder / "outcome.json").write_text(json.dumps(outcome), encoding="utf-8")
    for convert_tree in (mindspore.ckpt_to_safetensors, mindspore.safetensors_to_ckpt):
        convert_tree(str(source), str(folder / "tree"), transforms.NAME_MAP, transforms.CONVERTED)
    clash = str(source / "rank_0" / "pieces.ckpt")
    mindspore.ckpt_to_safetensors(clash, str(folder / "clash"), {"before": "large"})


def encrypted(folder: Path) -> None:
    """Save in every mode with keys of every length: a file of some blocks; and one with a usual block and one more."""
    small = np.arange(3000, dtype=np.uint32).reshape(3, -1)
    large = np.arange((64 << 18) + 5, dtype=np.uint32)
    for mode, lengths in modes.MODES.items():
        for length in lengths:
            serialization.ENCRYPT_BLOCK_SIZE = 4  # in KiB
            saving.save(
                folder / f"{mode}.{length}.ckpt",
                {"small": small, "one": small[:1, :1]},
                {"small": "Float32", "one": "Int32"},
                enc_key=modes.key(length),
                enc_mode=mode,
            )
        serialization.ENCRYPT_BLOCK_SIZE = 64 << 10
        saving.save(folder / f"{mode}.16.large.ckpt", {"large": large}, {"large": "UInt32"}, enc_key=modes.key(16), enc_mode=mode)


def load(path: Path) -> dict[str, list[Any]]:
    """Return a file's tensors as MindSpore and, if it can, the safetensors library read them: type, shape and digest by name.

    The CRC is checked of a file that is named for it, and one that is named for a mode and a key is encrypted so.
    """
    kind = path.suffix[1:]
    sealed: dict[str, Any] = {}
    if encryption := modes.encryption(path.name):
        sealed = {"dec_mode": encryption[0], "dec_key": modes.key(encryption[1])}
    found = described(mindspore.load_checkpoint(str(path), format=kind, crc_check="_crc" in path.stem, **sealed))
    if kind == "safetensors":
        for name, view in safetensors.deserialize(path.read_bytes()):
            assert found[name][1:] == [view["shape"], hashlib.sha256(bytes(view["data"])).hexdigest()], name
    return found


def described(parameters: dict[str, Any]) -> dict[str, list[Any]]:
    """Type, shape and digest of each."""
    found = {}
    for name, value in parameters.items():
        if isinstance(value, str):
            found[name] = ["str", [len(value)], hashlib.sha256(value.encode("utf-32-le")).hexdigest()]
        else:
            found[name] = _told(value)
    return found


def layouts(path: Path) -> dict[str, Any]:
    """Return a strategy file as MindSpore's transforms read it: for each parameter its layout and its stages."""
    found = {}
    for name, (matrix, maps, *rest, stages) in _extract_layout_map(str(path)).items():
        axes = [axis if isinstance(axis, list) else [axis] for axis in maps]
        found[name] = [list(matrix), axes, *rest, sorted(stages)]
    return found


def groups(path: Path) -> list[int]:
    """A file of communication groups, of the ranks that its name lists, and what MindSpore reads in it."""
    ranks = [int(rank) for rank in path.stem.split("-")]
    message = straspb.ParallelGroupMap()
    message.parallel_group_item.add(group_name="world").parallel_group_ranks.dim.extend(range(8))
    message.ckpt_restore_rank_list.dim.extend(ranks)
    path.write_bytes(message.SerializeToString())
    return [int(rank) for rank in mindspore.restore_group_info_list(str(path))]


def signature(name: str) -> list[list[Any]]:
    """Name, kind and default of each parameter of a function."""
    home = next(module for module in (mindspore, mindspore.parallel, mindspore.train) if hasattr(module, name))
    parameters = inspect.signature(getattr(home, name)).parameters.values()
    return [[p.name, str(p.kind), None if p.default is p.empty else repr(p.default)] for p in parameters]


def exports() -> list[str]:
    """Public functions of the modules that have to do with checkpoints and strategies."""
    found = {name for module in (checkpoint_convert, checkpoint_transform, transform_safetensors) for name in module.__all__}
    for name in {*mindspore.train.__all__, *mindspore.parallel.__all__}:
        home = getattr(mindspore.train if hasattr(mindspore.train, name) else mindspore.parallel, name)
        if inspect.isfunction(home) and re.search("checkpoint|ckpt|safetensors|strateg|slice|param", name):
            found.add(name)
    return sorted(name for name in found if not name.startswith("_"))


def merge(folder: Path) -> dict[str, list[list[float]]]:
    """A parameter in four slices by rows, and the same with an optimizer shard over two of two parts, each joined."""
    folder.mkdir(exist_ok=True)
    whole = np.arange(32, dtype=np.uint32).reshape(8, 4)
    joined = {}
    for name, cut in {"rows": Cut((4,), ((0,), ())), "shard": Cut((2, 2), ((1,), ()), 1, 2)}.items():
        saving.strategy(folder / f"{name}.ckpt", {name: cut}, 0)
        slices = [
            mindspore.Parameter(saving.tensor_of(whole[2 * rank :][:2], "Float32"), name=name, requires_grad=False)
            for rank in range(4)
        ]
        saving.save(folder / f"{name}.safetensors", {str(rank): whole[2 * rank :][:2] for rank in range(4)}, _FOUR)
        found = mindspore.merge_sliced_parameter(slices, mindspore.build_searched_strategy(str(folder / f"{name}.ckpt")))
        joined[name] = [list(found.shape), found.asnumpy().view(np.uint32).tolist()]
    return joined


_FOUR = {str(rank): "Float32" for rank in range(4)}


def online(task: str) -> list[Any]:
    """Compare networks that Reshard loads with the same networks that MindSpore loads from a file.

    For each load: the names that `load_into_net` returns, those of parameters that differ, and both outputs for one input.
    """
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "converter_image"))
    import reshard  # noqa: PLC0415 - nothing else here wants it
    from reshard import mindspore as reshard_mindspore  # noqa: PLC0415 - the same

    found = []
    for load in json.loads(task):
        weights = mindspore.load_checkpoint(load["file"], format="safetensors")
        theirs, ours = network(weights), network(weights)
        assert mindspore.load_param_into_net(theirs, weights, strict_load=True) == ([], [])
        if load.get("distributed"):
            kept = reshard_mindspore.load_distributed_checkpoint(None, **load["places"], return_param_dict=True)
            assert sorted(kept) == sorted(weights)
            outcome = reshard_mindspore.load_distributed_checkpoint(ours, **load["places"])
            absent, unused = ([], []) if outcome is True else outcome
        else:
            absent, unused = reshard.load_into_net(ours, **load["places"], strict_load=True)
        pairs = zip(theirs.get_parameters(), ours.get_parameters(), strict=True)
        differing = [a.name for a, b in pairs if (a.dtype, a.shape, a.get_bytes()) != (b.dtype, b.shape, b.get_bytes())]
        said = [net(load["inputs"]).asnumpy().tolist() for net in (theirs, ours)] if load.get("inputs") else None
        found.append([absent, sorted(unused), differing, said])
    return found


def network(weights: dict[str, Any]) -> Any:
    """One with parameters like these, all zero; the document's three dense layers, if they are those."""

    class Network(mindspore.nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            zeros = {name: mindspore.ops.zeros(weights[name].shape, weights[name].dtype) for name in sorted(weights)}
            self.made = mindspore.ParameterTuple([mindspore.Parameter(zero, name=name) for name, zero in zeros.items()])

        def construct(self, inputs: int) -> Any:
            x = mindspore.ops.linspace(-1.0, 1.0, 4 * inputs).reshape(4, inputs)
            for bias, weight in zip(self.made[::2], self.made[1::2], strict=True):
                x = mindspore.ops.tanh((mindspore.ops.matmul(x, weight) + bias) / 2**16)
            return x

    return Network()


def main(command: str, *arguments: str) -> None:
    """Run one of the commands above."""
    makers = {"transform": transform, "stages": stages, "thin": save_thin, "unify": unify}
    writers = {
        "samples": samples,
        "rare": rare,
        "choose": choose,
        "convert": convert,
        "encrypted": encrypted,
        "train": training.train,
    }
    if command in makers:
        for number in arguments[1:]:
            makers[command](Path(arguments[0]) / number, transforms.make(int(number)))
    elif command == "distribute":
        lines = Path(arguments[0]).read_text(encoding="utf-8").splitlines()
        sys.stdout.write(json.dumps([distribute(*json.loads(line)) for line in lines]))
    elif command == "gather":
        folder = Path(arguments[0])
        sys.stdout.write(json.dumps({n: gather(folder / n, transforms.make(int(n))) for n in arguments[1:]}))
    elif command in writers:
        writers[command](Path(arguments[0]))
    elif command == "limits":
        sys.stdout.write(json.dumps(serialization.SLICE_SIZE * 1024))
    elif command == "exports":
        sys.stdout.write(json.dumps(exports()))
    elif command == "merge":
        sys.stdout.write(json.dumps(merge(Path(arguments[0]))))
    elif command == "online":
        sys.stdout.write(json.dumps(online(*arguments)))
    else:
        answer = {
            "load": lambda a: load(Path(a)),
            "segments": lambda a: described(mindspore.load_segmented_checkpoints(a)),
            "go_on": lambda a: training.go_on(Path(a.partition(":")[0]), a.partition(":")[2]),
            "layouts": lambda a: layouts(Path(a)),
            "groups": lambda a: groups(Path(a)),
            "signatures": signature,
        }[command]
        sys.stdout.write(json.dumps({argument: answer(argument) for argument in arguments}))


if __name__ == "__main__":
    main(*sys.argv[1:])
