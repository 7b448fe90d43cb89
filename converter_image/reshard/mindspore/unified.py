"""Transform rank files to unified safetensors, and unified safetensors to rank files."""

from __future__ import annotations

import glob
import re
from typing import TYPE_CHECKING, Any

import msgspec

from reshard.engine.memory import default_workers
from reshard.errors import UsageError
from reshard.mindspore.arguments import decryption_of, path_of, strategy_of, workers_of
from reshard.mindspore.errors import documented
from reshard.online.load import tensors_of
from reshard.online.network import current_rank, load_params, param_dict
from reshard.progress import Silent
from reshard.spec.ranks import format_ranks
from reshard.spec.request import Options, Request
from reshard.spec.rules import RenameRule
from reshard.target.lock import retry_until_unlocked
from reshard.transform.complete import commit_if_complete
from reshard.transform.inputs import Inputs, source_names
from reshard.transform.plan import plan_transform
from reshard.transform.prepare import prepare
from reshard.transform.run import transform_checkpoint
from reshard.transform.standalone import prepare_standalone, refuse_own_files, write_standalone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from reshard.spec.request import OutputFormat

# The forms of suffixes that MindSpore interprets as task, epoch and step, and the separator that it then requires.
_SUFFIXES = (
    (re.compile(r"_?([0-9]+-[0-9]+_[0-9]+)"), "_"),
    (re.compile(r"-?([0-9]+_[0-9]+)"), "-"),
    (re.compile(r"_?([0-9]+)"), "_"),
)
# Another process that checks whether the checkpoint is complete holds the lock only briefly.
_MOST_PATIENCE_SECONDS = 15.0
_FORMATS: dict[str, OutputFormat] = {"ckpt": "Ckpt", "safetensors": "Safetensors"}


@documented()
def unified_safetensors(
    src_dir: str,
    src_strategy_file: str | None,
    dst_dir: str,
    merge_with_redundancy: bool = True,  # noqa: ARG001 - the files show it
    file_suffix: str | None = None,
    max_process_num: int = 64,
    choice_func: Callable[[str], bool | str] | None = None,
    split_dst_file: tuple[()] | tuple[int, int] = (),
) -> None:
    """Join the parameters of all ranks, and write them whole to files `part<n>.safetensors` of at most 3 GiB.

    Differences from MindSpore: parameters that no strategy names are read from any rank that has them, so parameters of later
    stages are not lost. Gradients (`accu_grads*`) are joined, and parameters that `choice_func` rejects are omitted. MindSpore
    writes rank 0's slices of both to the file of parameters that no strategy names. A part contains consecutive tensors. The
    source may contain `.ckpt` files.

    Args:
        src_dir: folder with `rank_0`, `rank_1`, ...
        src_strategy_file: source strategy. None means one rank with whole parameters.
        dst_dir: folder to write to. An existing checkpoint is replaced.
        merge_with_redundancy: ignored. Each slice is read from a rank that has it.
        file_suffix: suffix of the names of the files to read, without the extension. None means the files of the newest step.
        max_process_num: maximum number of parts written at a time. It is limited by the number of processors.
        choice_func: function that receives a name in the strategy, and returns whether to write the parameter, or its new name.
        split_dst_file: (number, total) if each of several machines writes some of the parts. Machines are numbered from 1, and
            may run at any time. The machine that finds all parts completes the checkpoint.

    Raises:
        ReshardError: also a TypeError (an argument is not a path or number) or a ValueError (files are missing or damaged).
    """
    src_dir, dst_dir = path_of(src_dir, "src_dir"), path_of(dst_dir, "dst_dir")
    src_strategy_file = strategy_of(src_strategy_file, "src_strategy_file")
    max_process_num = workers_of(max_process_num, "max_process_num")
    options = Options(output="Unified", files=_pattern(file_suffix), overwrite="Replace")
    request = Request(src_dir, dst_dir, src_strategy_file, options=options)
    if choice_func is not None:
        request = _with(request, rename=tuple(_chosen(request, choice_func)))
    workers = min(max_process_num, default_workers())
    if not split_dst_file:
        transform_checkpoint(request, workers=workers)
        return
    number, total = split_dst_file
    if not 1 <= number <= total:
        raise UsageError(
            "InvalidOption",
            f"machine {number} is out of range; the number of machines is {total}",
            where="split_dst_file",
            fix=f"number the machines from 1 to {total}",
        )
    planned = retry_until_unlocked(lambda: plan_transform(request, workers=workers, write=True), _MOST_PATIENCE_SECONDS)
    if parts := _share(planned.summary.target_ranks, number - 1, total):
        _write_beside_others(_with(request, only_ranks=format_ranks(parts)), workers=workers, all_together=True)


@documented()
def load_distributed_checkpoint(
    network: Any,  # noqa: ANN401 - a mindspore.nn.Cell
    checkpoint_filenames: Sequence[str] | None = None,
    predict_strategy: str | None = None,
    train_strategy_filename: str | None = None,
    strict_load: bool = False,
    dec_key: bytes | None = None,
    dec_mode: str = "AES-GCM",
    format: str = "ckpt",  # noqa: A002 - MindSpore's name
    unified_safetensors_dir: str | None = None,
    dst_safetensors_dir: str | None = None,
    rank_id: int | None = None,
    output_format: str = "safetensors",
    name_map: Mapping[str, str] | None = None,
    max_process_num: int = 64,
    return_param_dict: bool = False,
) -> Any:  # noqa: ANN401 - MindSpore's signature
    """Reshard unified safetensors, or the files of other ranks, into a network or into files `rank_<r>/net.<output_format>`.

    Differences from MindSpore: a parameter that the strategy names and no file holds is an error. `name_map` supports several
    files. Rank files are resharded without a network too. With a network, `rank_id` is used, and strategies are files.

    Args:
        network: `mindspore.nn.Cell` to load into, with `load_param_into_net`. None means that files are written.
        checkpoint_filenames: one file per rank, in the order of the ranks, instead of unified safetensors.
        predict_strategy: target strategy. None means one rank with whole parameters.
        train_strategy_filename: strategy of the files in `checkpoint_filenames`.
        strict_load: whether types must be equal in the network.
        dec_key: key of encrypted files in `checkpoint_filenames`.
        dec_mode: "AES-GCM", "AES-CBC" or "SM4-CBC".
        format: "safetensors" for unified safetensors, as in MindSpore.
        unified_safetensors_dir: folder with `part0.safetensors`, ...
        dst_safetensors_dir: folder to write to. An existing checkpoint is replaced.
        rank_id: number of the target rank to write or load. Others may be written at the same time or later. None means all
            ranks; with a network, the rank of the process.
        output_format: "safetensors" or "ckpt".
        name_map: name of a parameter in the files, by its new name.
        max_process_num: maximum number of ranks written at a time. It is limited by the number of processors.
        return_param_dict: whether to return a network's parameters instead of loading them.

    Returns:
        For a network and unified safetensors: the result of `load_param_into_net`, or the parameters. Otherwise True, as in
        MindSpore.

    Raises:
        ReshardError: also a TypeError (an argument is not a path or number) or a ValueError (files are missing, damaged or do not
            match).
    """
    max_process_num = workers_of(max_process_num, "max_process_num")
    predict_strategy = strategy_of(predict_strategy, "predict_strategy")
    train_strategy_filename = strategy_of(train_strategy_filename, "train_strategy_filename")
    for name, value in (("format", format), ("output_format", output_format)):
        if value not in _FORMATS:
            raise UsageError(
                "InvalidFormat", f"{value!r} is neither 'ckpt' nor 'safetensors'", where=name, fix="pass one of these values"
            )
    into_memory = network is not None or return_param_dict
    if dst_safetensors_dir is None and not into_memory:
        raise UsageError(
            "InvalidOption",
            "a target folder is required unless a network is passed",
            where="dst_safetensors_dir",
            fix="pass dst_safetensors_dir, or a network",
        )
    if (unified_safetensors_dir is None) == (checkpoint_filenames is None):
        raise UsageError(
            "InvalidOption",
            "exactly one of unified_safetensors_dir and checkpoint_filenames is required",
            where="unified_safetensors_dir",
            fix="pass one of these arguments",
        )
    files = None if checkpoint_filenames is None else dict(enumerate(checkpoint_filenames))
    request = Request(
        source="/" if files is not None else str(unified_safetensors_dir),
        target=dst_safetensors_dir or "",
        source_strategy=train_strategy_filename,
        target_strategy=predict_strategy,
        options=Options(rename=tuple(RenameRule(to=new, name=old) for new, old in (name_map or {}).items())),
        decryption=decryption_of(dec_key, dec_mode),
    )
    workers = min(max_process_num, default_workers())
    if into_memory:
        found = _params(request, files, (current_rank() or 0) if rank_id is None else rank_id, workers)
        if return_param_dict:
            return found
        outcome = load_params(network, found, strict_load=strict_load)
        return outcome if files is None else True
    _to_files(request, files, None if rank_id is None else str(rank_id), _FORMATS[output_format], workers)
    return True


def _params(request: Request, files: Mapping[int, str] | None, rank: int, workers: int) -> dict[str, Any]:
    """Return the parameters of a rank, from `files` instead of the request's source if they are set."""
    request = _with(request, output="Index")
    task = prepare(Inputs(request), Silent(), workers=workers) if files is None else prepare_standalone(request, files)
    return param_dict(tensors_of(task, rank))


def _to_files(request: Request, files: Mapping[int, str] | None, ranks: str | None, output: OutputFormat, workers: int) -> None:
    """Write the files of these ranks (None means all), from `files` instead of the request's source if they are set."""
    request = _with(request, format=output, file_prefix="net", numbered=False, only_ranks=ranks, overwrite="Replace")
    if files is not None:
        _cut_files(request, files)
    elif ranks is None:
        transform_checkpoint(request, workers=workers)
    else:
        _write_beside_others(request, workers=workers, all_together=False)


def _with(request: Request, **options: Any) -> Request:  # noqa: ANN401 - fields of Options
    return msgspec.structs.replace(request, options=msgspec.structs.replace(request.options, **options))


def _pattern(suffix: str | None) -> str | None:
    """Return the glob pattern of names with a suffix before the extension. `1_100` is a step, not a suffix of step 11_100."""
    if suffix is None:
        return None
    for form, beginning in _SUFFIXES:
        if found := form.fullmatch(suffix):
            suffix = beginning + found[1]
            break
    return f"*{glob.escape(suffix)}.*"


def _chosen(request: Request, choice: Callable[[str], bool | str]) -> Iterable[RenameRule]:
    """Yield the rules that `choice` implies for parameters in the strategy. Like MindSpore, do not call it for others."""
    for name in (name for name, named in source_names(request, workers=default_workers()).items() if named):
        answer = choice(name)
        if not isinstance(answer, bool | str) or answer == "":
            raise UsageError(
                "InvalidOption",
                f"{answer!r} is neither a name nor a bool",
                where=f"choice_func({name!r})",
                fix="return the new name, or True to keep and False to skip the parameter",
            )
        if answer is False:
            yield RenameRule(to=None, name=name)
        elif isinstance(answer, str) and answer != name:
            yield RenameRule(to=answer, name=name)


def _share(total: int, position: int, of: int) -> tuple[int, ...]:
    """Return the parts of one of several machines, as MindSpore divides them: consecutive, the first machines have one more."""
    each, more = divmod(total, of)
    first = each * position + min(position, more)
    return tuple(range(first, first + each + (position < more)))


def _write_beside_others(request: Request, *, workers: int, all_together: bool) -> None:
    """Write some of the target's ranks, and complete the checkpoint unless other processes still write ranks.

    With `all_together`, the checkpoint is complete once all ranks exist, otherwise once no process writes. A checkpoint that
    replaces another always requires all ranks.
    """
    result = retry_until_unlocked(lambda: transform_checkpoint(request, workers=workers, commit=False), _MOST_PATIENCE_SECONDS)
    if not result.complete:
        commit_if_complete(request.target, result.digest, ranks=range(result.target_ranks) if all_together else None)


def _cut_files(request: Request, files: Mapping[int, str]) -> None:
    """Write the rank files of a target from individual files."""
    task = prepare_standalone(request, files)
    written = {rank: f"{request.target.rstrip('/')}/{task.path(rank)}" for rank in task.scope}
    refuse_own_files(files.values(), written.values())
    write_standalone(task, written)
