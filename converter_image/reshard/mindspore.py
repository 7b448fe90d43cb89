"""MindSpore's own function names and signatures (2.10), without MindSpore: change an import, keep the script.

What differs is written at each function; every difference is one that loses nothing. Wherever MindSpore takes a path, an address
like s3://bucket/prefix can stand too; it is reached as the AWS command line would.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from reshard.checkpoint import format_of
from reshard.checkpoint.inventory import Inventory, SourceFile, Structure, TensorEntry
from reshard.errors import MissingInputError, RequestError, UsageError
from reshard.gather import ReadCount
from reshard.job import job_of
from reshard.memory import budget
from reshard.plan import Planner, place
from reshard.progress import Cancellation, Silent
from reshard.rankfile import produce
from reshard.request import Options, Request
from reshard.segments import read_segments
from reshard.source import (
    Files,
    find_diverging,
    read_inventory,
    read_restore_ranks,
    read_strategy,
    read_strategy_files,
)
from reshard.storage import open_store, parent_and_name, root_and_path
from reshard.strategy import dump, merge
from reshard.transform import default_workers, transform_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from reshard.arrays import Array
    from reshard.strategy import Strategy

__all__ = [
    "load_segmented_checkpoints",
    "merge_pipeline_strategys",
    "rank_list_for_transform",
    "restore_group_info_list",
    "transform_checkpoint_by_rank",
    "transform_checkpoints",
]


def transform_checkpoints(
    src_checkpoints_dir: str,
    dst_checkpoints_dir: str,
    ckpt_prefix: str,
    src_strategy_file: str | None = None,
    dst_strategy_file: str | None = None,
    process_num: int = 1,
    output_format: str = "ckpt",
) -> None:
    """Reshard all ranks of a checkpoint.

    Unlike MindSpore's: any number of ranks to any other; every file is verified and appears whole; a manifest says when all are
    there; a strategy may be a folder of pipeline stages. Parameters that only the source's strategy names are left out.

    As with MindSpore's a single stage's strategy makes `rank_<r>/<ckpt_prefix><r>_part<stage>` of what that stage holds: if its
    number is not 0, or the target's strategy names all its parameters and more. Unlike there of safetensors too, and to a
    pipeline or one whole rank.

    Args:
        src_checkpoints_dir: the folder with `rank_0`, `rank_1`, ...
        dst_checkpoints_dir: the folder to write to. What is there is replaced.
        ckpt_prefix: files are named `rank_<r>/<ckpt_prefix><r>.<output_format>`.
        src_strategy_file: how the source is cut; None: one whole rank.
        dst_strategy_file: how the target is to be cut; None: one whole rank.
        process_num: ranks at a time.
        output_format: "ckpt" or "safetensors".

    Raises:
        ReshardError: of the kind that fits.
    """
    if output_format not in ("ckpt", "safetensors"):
        raise UsageError("InvalidFormat", f"{output_format!r} is neither 'ckpt' nor 'safetensors'", where="output_format")
    request = Request(
        source=src_checkpoints_dir,
        target=dst_checkpoints_dir,
        source_strategy=src_strategy_file,
        target_strategy=dst_strategy_file,
        options=Options(
            format="Ckpt" if output_format == "ckpt" else "Safetensors",
            layout="Part" if _is_one_stage_of_several(src_strategy_file, dst_strategy_file) else "PerRank",
            prefix=ckpt_prefix,
            overwrite="Replace",
        ),
    )
    transform_checkpoint(request, workers=process_num)


def _is_one_stage_of_several(source: str | None, target: str | None) -> bool:
    """MindSpore's rule; it does not look at the number."""
    described = read_strategy_files(source) if source else []
    stages = {stage for file in described for stage in file.stages}
    if len(stages) != 1 or not all(file.nodes for file in described):
        return False
    if target is None or stages != {0}:
        return stages != {0}
    wanted = _telling(name for stage in read_strategy(target).stages for name in stage)
    return _telling(name for layouts in described[0].stages.values() for name in layouts) < wanted


def _telling(names: Iterable[str]) -> set[str]:
    return {name for name in names if not name.startswith(("accu_grads", "adam_v", "adam_m"))}


def load_segmented_checkpoints(
    ckpt_file_dir: str,
    net: Any = None,  # noqa: ANN401 - a mindspore.nn.Cell
    strict_load: bool = False,
    filter_prefix: str | list[str] | tuple[str, ...] | None = None,
    dec_key: bytes | None = None,
    dec_mode: str = "AES-GCM",  # noqa: ARG001 - it goes with the key
    specify_prefix: str | list[str] | tuple[str, ...] | None = None,
    choice_func: Callable[[str], bool] | None = None,
) -> dict[str, Any]:
    """Read all checkpoint files of one folder, such as `rank_0/` with the part of each pipeline stage.

    Unlike MindSpore's: safetensors too; of a parameter that several files hold the first counts, in the order of their numbers.

    Args:
        ckpt_file_dir: the folder.
        net: the network to load into, by MindSpore's `load_param_into_net`.
        strict_load: whether types must be equal there.
        filter_prefix: parameters whose names begin so are left out.
        dec_key: is refused.
        dec_mode: goes with it.
        specify_prefix: only parameters whose names begin so are read.
        choice_func: only parameters are read for whose names it is true; if neither prefix is given.

    Returns:
        By name a `mindspore.Parameter` where the script has imported MindSpore or gives a network, else a numpy array (BFloat16
        by ml_dtypes); and text as `str`.

    Raises:
        ReshardError: of the kind that fits.
    """
    if dec_key is not None:
        raise UsageError("InvalidOption", "encrypted files cannot be read", where="dec_key", fix="decrypt them with MindSpore")
    only, without = _prefixes(specify_prefix), _prefixes(filter_prefix)
    chosen = choice_func if choice_func is not None and not (only or without) else lambda _: True
    found = {
        name: array.item() if array.dtype.kind == "U" else array
        for name, array in read_segments(
            ckpt_file_dir,
            lambda name: name.startswith(only or ("",)) and not (without and name.startswith(without)) and chosen(name),
        )
    }
    if not found:
        raise MissingInputError("NothingToLoad", "no file has a parameter that was asked for", where=ckpt_file_dir)
    package = import_module("mindspore") if net is not None else sys.modules.get("mindspore")
    if package is not None:
        found = {name: value if isinstance(value, str) else _parameter(package, name, value) for name, value in found.items()}
    if net is not None and package is not None:
        package.load_param_into_net(net, found, strict_load)
    return found


def _prefixes(given: str | list[str] | tuple[str, ...] | None) -> tuple[str, ...]:
    prefixes = (given,) if isinstance(given, str) else tuple(given or ())
    if "" in prefixes:
        raise UsageError("InvalidOption", "a prefix is empty", where="filter_prefix or specify_prefix", fix="leave it out")
    return prefixes


def _parameter(mindspore: Any, name: str, array: Array) -> Any:  # noqa: ANN401 - of a package that need not be there
    """BFloat16 goes through float32, which holds all its values."""
    if array.dtype.name != "bfloat16":
        return mindspore.Parameter(mindspore.Tensor.from_numpy(array), name=name)
    return mindspore.Parameter(mindspore.Tensor(array.astype("float32")).astype(mindspore.bfloat16), name=name)


def rank_list_for_transform(
    rank_id: int, src_strategy_file: str | None = None, dst_strategy_file: str | None = None
) -> list[int]:
    """The source ranks whose files a target rank needs, ascending.

    Unlike MindSpore's: only those that are needed, and plain integers.

    Raises:
        DataError: the strategies are damaged, or do not fit each other.
        RequestError: there is no such rank.
    """
    source = read_strategy(src_strategy_file) if src_strategy_file else None
    target = read_strategy(dst_strategy_file) if dst_strategy_file else None
    model = place(_imagined(source, target), source, target, allow_missing=True)
    return list(Planner(model).sources(rank_id)) or [0]


def transform_checkpoint_by_rank(
    rank_id: int,
    checkpoint_files_map: Mapping[int, str],
    save_checkpoint_file_name: str,
    src_strategy_file: str | None = None,
    dst_strategy_file: str | None = None,
) -> None:
    """Make one target rank's file.

    Unlike MindSpore's: safetensors too, by the name's extension; missing folders are made.

    Args:
        rank_id: the target rank.
        checkpoint_files_map: from source rank to file, at least those of `rank_list_for_transform`; of a source whose redundancy
            was removed all, for which of them has a slice only the files tell.
        save_checkpoint_file_name: the file to write.
        src_strategy_file: how the source is cut; None: one whole rank.
        dst_strategy_file: how the target is to be cut; None: one whole rank.

    Raises:
        ReshardError: of the kind that fits; nothing is written then.
    """
    output = format_of(save_checkpoint_file_name)
    if output is None:
        raise UsageError("InvalidFormat", "the name must end in .ckpt or .safetensors", where=save_checkpoint_file_name)
    root, files = _in_one_storage(checkpoint_files_map)
    written = open_store(save_checkpoint_file_name).around()[0]
    if any(open_store(path).around()[0] == written for path in checkpoint_files_map.values()):
        raise RequestError("TargetOverlapsSource", "the file to write is one of the source's", where=save_checkpoint_file_name)
    store, share = open_store(root), budget(1)
    request = Request(
        source=root,
        target=save_checkpoint_file_name,
        source_strategy=src_strategy_file,
        target_strategy=dst_strategy_file,
        options=Options(format="Ckpt" if output == "ckpt" else "Safetensors"),
    )
    source = read_strategy(src_strategy_file) if src_strategy_file else None
    target = read_strategy(dst_strategy_file) if dst_strategy_file else None
    workers = default_workers()
    model = place(read_inventory(store, Files(files), workers=workers), source, target, only=rank_id)
    model = replace(model, diverging=find_diverging(store, model, workers=workers))
    job = job_of(request, store, model, source, target)
    folder, name = parent_and_name(save_checkpoint_file_name)
    writer = open_store(folder).create(
        name,
        temporary=f"{name}.{os.getpid()}.tmp",
        mode=request.options.file_mode,
        size=job.file_sizes([rank_id])[rank_id],
        memory=share.upload,
    )
    try:
        produce(
            job,
            job.planner.plan(rank_id),
            writer,
            count=ReadCount(),
            progress=Silent(),
            cancellation=Cancellation(),
            ahead=share.ahead,
        )
        writer.finish()
    finally:
        writer.abort()


def merge_pipeline_strategys(src_strategy_dirs: str, dst_strategy_file: str) -> None:
    """Merge the strategy files of all pipeline stages in a folder into one.

    Unlike MindSpore's: parameter names may hold any character; a missing stage is an error.

    Args:
        src_strategy_dirs: the folder.
        dst_strategy_file: the file to write; JSON if its name ends in .json.

    Raises:
        DataError: a file is damaged, or a stage is missing.
    """
    merged = merge(read_strategy_files(src_strategy_dirs))
    content = dump(merged, "json" if dst_strategy_file.endswith(".json") else "protobuf")
    folder, name = parent_and_name(dst_strategy_file)
    open_store(folder).write(name, content, mode=Options().file_mode)


def restore_group_info_list(group_info_file_name: str) -> list[int]:
    """The ranks whose checkpoints can replace that of the rank that wrote a file of communication groups (GROUP_INFO_FILE).

    Unlike MindSpore's: a file without such a list is an error, where MindSpore means to refuse it and returns no ranks.

    Args:
        group_info_file_name: the file.

    Raises:
        DataError: it is damaged, or has no such list.
        MissingInputError: there is no such file.
    """
    return list(read_restore_ranks(group_info_file_name))


def _in_one_storage(files: Mapping[int, str]) -> tuple[str, dict[int, str]]:
    """The storage that all files lie in, and where each is there.

    Raises:
        RequestError: there are none, or they are in several.
    """
    found = {int(rank): root_and_path(url) for rank, url in files.items()}
    roots = {root for root, _ in found.values()}
    if len(roots) != 1:
        what = f"the source's files are in {', '.join(sorted(roots))}" if roots else "it names no file"
        fix = "name the files of rank_list_for_transform, all in one bucket or all in file systems"
        raise RequestError("NotOneSource", what, where="checkpoint_files_map", fix=fix)
    return roots.pop(), {rank: path for rank, (_, path) in found.items()}


def _imagined(source: Strategy | None, target: Strategy | None) -> Inventory:
    """The files that fit two strategies: which ranks are needed does not depend on the shapes."""
    wanted = {name: layout for stage in (target.stages if target else ()) for name, layout in stage.items()}
    stages = source.stages if source else (wanted,)
    structures = []
    for stage in stages:
        tensors = []
        for name, layout in stage.items():
            after = wanted.get(name)
            shape = after.parts if after is not None and after.ndim == layout.ndim else (1,) * layout.ndim
            tensors.append(TensorEntry(name, "Float32", shape, ()))
        structures.append(Structure("ckpt", tuple(tensors)))
    devices = source.devices if source else 1
    files = tuple(SourceFile(rank, "", 0, "", rank // devices) for rank in range(len(stages) * devices))
    return Inventory(files, tuple(structures))
