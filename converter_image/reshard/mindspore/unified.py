"""From ranks to unified safetensors, and from those to ranks."""

from __future__ import annotations

import glob
import re
from typing import TYPE_CHECKING, Any

import msgspec

from reshard.engine.memory import default_workers
from reshard.errors import UsageError
from reshard.mindspore.arguments import path_of, strategy_of, workers_of
from reshard.mindspore.errors import documented
from reshard.mindspore.keys import decryption_of
from reshard.online.load import tensors_of
from reshard.online.network import current_rank, load_params, param_dict
from reshard.progress import Silent
from reshard.spec.ranks import format_ranks
from reshard.spec.request import Options, RenameRule, Request
from reshard.target.lock import retry_until_unlocked
from reshard.transform.complete import commit_if_complete
from reshard.transform.loose import prepare_loose, refuse_own_files, write_loose
from reshard.transform.plan import plan_transform
from reshard.transform.prepare import prepare, source_names
from reshard.transform.run import transform_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from reshard.spec.request import OutputFormat

# The forms in which MindSpore takes a name's end for a task, an epoch and a step, and what it then looks for.
_SUFFIXES = (
    (re.compile(r"_?([0-9]+-[0-9]+_[0-9]+)"), "_"),
    (re.compile(r"-?([0-9]+_[0-9]+)"), "-"),
    (re.compile(r"_?([0-9]+)"), "_"),
)
# Another that looks whether the checkpoint is complete takes a moment.
_MOST_PATIENCE_SECONDS = 15.0
_FORMATS: dict[str, OutputFormat] = {"ckpt": "Ckpt", "safetensors": "Safetensors"}


@documented()
def unified_safetensors(
    src_dir: str,
    src_strategy_file: str | None,
    dst_dir: str,
    merge_with_redundancy: bool = True,  # noqa: ARG001 - what the files hold says it better
    file_suffix: str | None = None,
    max_process_num: int = 64,
    choice_func: Callable[[str], bool | str] | None = None,
    split_dst_file: tuple[()] | tuple[int, int] = (),
) -> None:
    """Join the parameters of all ranks, and spread them whole over `part<n>.safetensors` of at most 3 GiB.

    Unlike MindSpore's: parameters that no strategy names are taken from whichever rank has them, so those of a later stage are
    not lost; gradients (`accu_grads*`) are joined, and what `choice_func` refuses is left out, where MindSpore puts rank 0's
    slices of both among the parameters in no strategy; a part's tensors are neighbours; a source may be in `.ckpt`.

    Args:
        src_dir: the folder with `rank_0`, `rank_1`, ...
        src_strategy_file: the source's strategy; None: one whole rank.
        dst_dir: the folder to write to. What is there is replaced.
        merge_with_redundancy: makes no difference: each part of a parameter is read from a rank that has it.
        file_suffix: the end of the names of the files that are meant, without the extension; None: those of the newest step.
        max_process_num: parts at a time; no more than there are processors.
        choice_func: told the name of a parameter that a strategy names, whether it is wanted, or what to call it.
        split_dst_file: (number, total): of that many machines this is that one, counted from 1, and writes its share of the
            parts. Each may run at any time; whichever finds all parts there completes the checkpoint.

    Raises:
        ReshardError: also a TypeError (no path or number) or a ValueError (files are missing or damaged).
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
        _write_beside_others(_with(request, ranks=format_ranks(parts)), workers=workers, all_together=True)


@documented()
def load_distributed_checkpoint(
    network: Any,  # noqa: ANN401 - a Cell
    checkpoint_filenames: Sequence[str] | None = None,
    predict_strategy: str | None = None,
    train_strategy_filename: str | None = None,
    strict_load: bool = False,
    dec_key: bytes | None = None,
    dec_mode: str = "AES-GCM",
    format: str = "ckpt",  # noqa: A002 - MindSpore calls it so
    unified_safetensors_dir: str | None = None,
    dst_safetensors_dir: str | None = None,
    rank_id: int | None = None,
    output_format: str = "safetensors",
    name_map: Mapping[str, str] | None = None,
    max_process_num: int = 64,
    return_param_dict: bool = False,
) -> Any:  # noqa: ANN401 - as MindSpore's
    """Cut unified safetensors, or the files of other ranks: into a network, or for each rank to `rank_<r>/net.<output_format>`.

    Unlike MindSpore's: a parameter that the strategy names and no file holds is an error; `name_map` works where there are
    several files too; rank files are cut without a network as well; with a network `rank_id` counts, and strategies are files.

    Args:
        network: a `mindspore.nn.Cell` to load into, by `load_param_into_net`; None: files are written.
        checkpoint_filenames: one file for each rank, in their order, instead of unified safetensors.
        predict_strategy: the strategy that the target is to be cut by; None: one rank that holds everything whole.
        train_strategy_filename: the strategy of the files in `checkpoint_filenames`.
        strict_load: whether types must be equal in the network.
        dec_key: the key of encrypted files in `checkpoint_filenames`.
        dec_mode: "AES-GCM", "AES-CBC" or "SM4-CBC".
        format: "safetensors" for unified ones, as MindSpore asks.
        unified_safetensors_dir: the folder with `part0.safetensors`, ...
        dst_safetensors_dir: the folder to write to. What is there is replaced.
        rank_id: the one rank that is wanted; others may be written at the same time or later. None: all; of a network that of the
            process.
        output_format: "safetensors" or "ckpt".
        name_map: the name that a parameter has in the files, by the one that it is to have.
        max_process_num: ranks at a time; no more than there are processors.
        return_param_dict: whether to give a network's parameters back instead of loading them.

    Returns:
        As MindSpore's: of a network and unified safetensors what `load_param_into_net` returns, or the parameters; else True.

    Raises:
        ReshardError: also a TypeError (no path or number) or a ValueError (files are missing, damaged or do not fit each other).
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
            "a target folder is required if no network is passed",
            where="dst_safetensors_dir",
            fix="pass dst_safetensors_dir, or a network",
        )
    if (unified_safetensors_dir is None) == (checkpoint_filenames is None):
        raise UsageError(
            "InvalidOption",
            "one of the two arguments is required",
            where="unified_safetensors_dir, checkpoint_filenames",
            fix="pass one of these values",
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
    """The parameters of a rank; `files` instead of the request's source, if there are any."""
    request = _with(request, output="Index")
    job = prepare(request, Silent(), workers=workers) if files is None else prepare_loose(request, files)
    return param_dict(tensors_of(job, rank))


def _to_files(request: Request, files: Mapping[int, str] | None, ranks: str | None, output: OutputFormat, workers: int) -> None:
    """Write the files of these ranks (None: of all); from `files` instead of the request's source, if there are any."""
    request = _with(request, format=output, file_prefix="net", numbered=False, ranks=ranks, overwrite="Replace")
    if files is not None:
        _cut_files(request, files)
    elif ranks is None:
        transform_checkpoint(request, workers=workers)
    else:
        _write_beside_others(request, workers=workers, all_together=False)


def _with(request: Request, **options: Any) -> Request:  # noqa: ANN401 - as Options takes them
    return msgspec.structs.replace(request, options=msgspec.structs.replace(request.options, **options))


def _pattern(suffix: str | None) -> str | None:
    """The names that end so, before the extension; `1_100` is a step, and not the end of step 11_100."""
    if suffix is None:
        return None
    for form, beginning in _SUFFIXES:
        if found := form.fullmatch(suffix):
            suffix = beginning + found[1]
            break
    return f"*{glob.escape(suffix)}.*"


def _chosen(request: Request, choice: Callable[[str], bool | str]) -> Iterable[RenameRule]:
    """What `choice` says of the parameters that a strategy names; it knows no others, as MindSpore does not ask it for them."""
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
    """The parts of one of several machines, as MindSpore divides them: neighbours, the first machines one more."""
    each, more = divmod(total, of)
    first = each * position + min(position, more)
    return tuple(range(first, first + each + (position < more)))


def _write_beside_others(request: Request, *, workers: int, all_together: bool) -> None:
    """Write some of the target's ranks, and complete the checkpoint unless others still write theirs.

    With `all_together` it is complete once all ranks are there, else as soon as nobody writes; one that takes the place of
    another is never complete before.
    """
    result = retry_until_unlocked(lambda: transform_checkpoint(request, workers=workers, commit=False), _MOST_PATIENCE_SECONDS)
    if not result.complete:
        commit_if_complete(request.target, result.digest, all_ranks=all_together)


def _cut_files(request: Request, files: Mapping[int, str]) -> None:
    """Write the rank files of a target from files that lie anywhere."""
    job = prepare_loose(request, files)
    written = {rank: f"{request.target.rstrip('/')}/{job.path(rank)}" for rank in job.scope}
    refuse_own_files(files.values(), written.values())
    write_loose(job, written)
