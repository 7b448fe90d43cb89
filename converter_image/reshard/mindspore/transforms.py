"""Offline transforms of rank files."""

from __future__ import annotations

from collections import defaultdict
from math import lcm
from typing import TYPE_CHECKING

from reshard.checkpoint import format_of
from reshard.checkpoint.inventory import Inventory, SourceFile, Structure, TensorEntry
from reshard.errors import UsageError
from reshard.layout import Layout
from reshard.mindspore.arguments import files_of, path_of, rank_of, strategy_of, workers_of
from reshard.mindspore.errors import documented
from reshard.plan import Planner, build_model
from reshard.source.strategies import read_strategy, read_strategy_files
from reshard.spec.request import Options, Request
from reshard.transform.run import transform_checkpoint
from reshard.transform.standalone import prepare_standalone, refuse_own_files, write_standalone

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from reshard.strategy import Strategy


@documented(folder_reason="SourceMissing")
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

    Differences from MindSpore: supports any number of source and target ranks. Every file is verified and appears atomically, and
    a manifest marks the checkpoint as complete. A strategy may be a folder of pipeline stages. Parameters that only the source
    strategy names are omitted.

    As in MindSpore, the strategy of a single stage creates `rank_<r>/<ckpt_prefix><r>_part<stage>` with the parameters of that
    stage, if its number is not 0, or if the target strategy names all its parameters and more. Unlike in MindSpore, this works
    for safetensors, and for a target with several stages or one whole rank.

    Args:
        src_checkpoints_dir: folder with `rank_0`, `rank_1`, ...
        dst_checkpoints_dir: folder to write to. An existing checkpoint is replaced.
        ckpt_prefix: prefix of the files `rank_<r>/<ckpt_prefix><r>.<output_format>`.
        src_strategy_file: source strategy. None means one rank with whole parameters.
        dst_strategy_file: target strategy. None means one rank with whole parameters.
        process_num: number of concurrent ranks.
        output_format: "ckpt" or "safetensors".

    Raises:
        ReshardError: also a NotADirectoryError (the source folder does not exist), a TypeError (an argument is not a path) or a
            ValueError (strategies or files are missing, damaged, or do not match).
    """
    source, target = path_of(src_checkpoints_dir, "src_checkpoints_dir"), path_of(dst_checkpoints_dir, "dst_checkpoints_dir")
    before = strategy_of(src_strategy_file, "src_strategy_file")
    after = strategy_of(dst_strategy_file, "dst_strategy_file")
    workers = workers_of(process_num, "process_num")
    if not isinstance(ckpt_prefix, str):
        raise UsageError(
            "InvalidType", f"{ckpt_prefix!r:.100} is not a string", where="ckpt_prefix", fix="pass the start of a file name"
        )
    if output_format not in ("ckpt", "safetensors"):
        raise UsageError(
            "InvalidFormat",
            f"{output_format!r} is neither 'ckpt' nor 'safetensors'",
            where="output_format",
            fix="pass one of these formats",
        )
    request = Request(
        source=source,
        target=target,
        source_strategy=before,
        target_strategy=after,
        options=Options(
            format="Ckpt" if output_format == "ckpt" else "Safetensors",
            output="Stage" if _is_one_stage_of_several(before, after) else "PerRank",
            file_prefix=ckpt_prefix,
            overwrite="Replace",
        ),
    )
    transform_checkpoint(request, workers=workers)


def _is_one_stage_of_several(source: str | None, target: str | None) -> bool:
    """Return whether to write stage files, by MindSpore's rule."""
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


@documented()
def rank_list_for_transform(
    rank_id: int, src_strategy_file: str | None = None, dst_strategy_file: str | None = None
) -> list[int]:
    """Return the source ranks whose files a target rank requires, in ascending order.

    Differences from MindSpore: returns only required ranks, as plain integers.

    Raises:
        ReshardError: also a TypeError (an argument is not an integer or a path) or a ValueError (strategies are missing, damaged
            or do not match, or there is no such rank).
    """
    rank = rank_of(rank_id, "rank_id")
    before = strategy_of(src_strategy_file, "src_strategy_file")
    after = strategy_of(dst_strategy_file, "dst_strategy_file")
    source = read_strategy(before) if before else None
    target = read_strategy(after) if after else None
    model = build_model(_imagined(source, target), source, target, allow_missing=True)
    return list(Planner(model).sources(rank)) or [0]


@documented()
def transform_checkpoint_by_rank(
    rank_id: int,
    checkpoint_files_map: Mapping[int, str],
    save_checkpoint_file_name: str,
    src_strategy_file: str | None = None,
    dst_strategy_file: str | None = None,
) -> None:
    """Write the file of one target rank.

    Differences from MindSpore: writes safetensors too, by the suffix of the name. Missing folders are created.

    Args:
        rank_id: number of the target rank.
        checkpoint_files_map: source files by rank: at least those of `rank_list_for_transform`, or all if redundancy was removed
            from the source, because only the files show which of them has a slice.
        save_checkpoint_file_name: path of the file to write.
        src_strategy_file: source strategy. None means one rank with whole parameters.
        dst_strategy_file: target strategy. None means one rank with whole parameters.

    Raises:
        ReshardError: also a TypeError (an argument is not an integer, path or dict) or a ValueError (files or strategies are
            missing, damaged, or do not match, or the name has another suffix). Nothing is written then.
    """
    rank = rank_of(rank_id, "rank_id")
    files = files_of(checkpoint_files_map, "checkpoint_files_map")
    target = path_of(save_checkpoint_file_name, "save_checkpoint_file_name")
    output = format_of(target)
    if output is None:
        raise UsageError(
            "InvalidFormat",
            "the file name has no supported suffix",
            where=target,
            fix="use a name that ends in .ckpt or .safetensors",
        )
    refuse_own_files(files.values(), [target])
    request = Request(
        source="/",
        target=target,
        source_strategy=strategy_of(src_strategy_file, "src_strategy_file"),
        target_strategy=strategy_of(dst_strategy_file, "dst_strategy_file"),
        options=Options(format="Ckpt" if output == "ckpt" else "Safetensors"),
    )
    task = prepare_standalone(request, files, only=rank)
    write_standalone(task, {rank: target})


rank_list_for_convert = rank_list_for_transform
convert_checkpoint_by_rank = transform_checkpoint_by_rank
convert_checkpoints = transform_checkpoints


def _imagined(source: Strategy | None, target: Strategy | None) -> Inventory:
    """Return an inventory that matches two strategies. The required ranks do not depend on the shapes."""
    wanted = {name: layout for stage in (target.stages if target else ()) for name, layout in stage.items()}
    if source is None and target is None:
        wanted = {"everything": Layout.whole(1)}
    stages = source.stages if source else (wanted,)
    parts: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    for stage in (*stages, *(target.stages if target else ())):
        for name, layout in stage.items():
            parts[name].append(layout.parts)
    structures = []
    for stage in stages:
        tensors = []
        for name, layout in stage.items():
            alike = (each for each in parts[name] if len(each) == layout.ndim)
            whole = tuple(lcm(*counts) for counts in zip(*alike, strict=True))
            shape = tuple(n // k for n, k in zip(whole, layout.parts, strict=True)) if source else whole
            tensors.append(TensorEntry(name, "Float32", shape, ()))
        structures.append(Structure("ckpt", tuple(tensors)))
    devices = source.devices if source else 1
    files = tuple(SourceFile(rank, "", 0, "", rank // devices) for rank in range(len(stages) * devices))
    return Inventory(files, tuple(structures))
