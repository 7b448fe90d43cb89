"""From ranks to unified safetensors, and from those to ranks."""

from __future__ import annotations

import glob
import re
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random

from reshard.engine.memory import budget, default_workers
from reshard.engine.rankfile import write_alone
from reshard.errors import LockedError, MissingInputError, RequestError, UsageError
from reshard.mindspore.keys import decryption_of
from reshard.mindspore.transforms import job_of_files, refuse_own_files
from reshard.online.load import tensors_of
from reshard.online.network import param_dict
from reshard.progress import Silent
from reshard.source.files import find_files, open_source
from reshard.source.reading import read_inventory
from reshard.source.strategies import read_strategy
from reshard.spec.ranks import format_ranks
from reshard.spec.request import Options, RenameRule, Request
from reshard.transform.complete import commit_checkpoint
from reshard.transform.plan import plan_transform
from reshard.transform.prepare import prepare
from reshard.transform.run import transform_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from reshard.spec.request import OutputFormat

# The forms in which MindSpore takes a name's end for a task, an epoch and a step, and what it then looks for.
_SUFFIXES = (
    (re.compile(r"_?(\d+-\d+_\d+)"), "_"),
    (re.compile(r"-?(\d+_\d+)"), "-"),
    (re.compile(r"_?(\d+)"), "_"),
)
_MOST_PATIENCE_SECONDS = 15.0
_FORMATS: dict[str, OutputFormat] = {"ckpt": "Ckpt", "safetensors": "Safetensors"}

T = TypeVar("T")


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
        src_strategy_file: how the source is cut; None: one whole rank.
        dst_dir: the folder to write to. What is there is replaced.
        merge_with_redundancy: makes no difference: each part of a parameter is read from a rank that has it.
        file_suffix: the end of the names of the files that are meant, without the extension; None: those of the newest step.
        max_process_num: parts at a time; no more than there are processors.
        choice_func: told the name of a parameter that a strategy names, whether it is wanted, or what to call it.
        split_dst_file: (number, total): of that many machines this is that one, counted from 1, and writes its share of the
            parts. Each may run at any time; whichever finds all parts there completes the checkpoint.

    Raises:
        ReshardError: of the kind that fits.
    """
    options = Options(layout="Unified", pattern=_pattern(file_suffix), overwrite="Replace")
    if choice_func is not None:
        options = msgspec.structs.replace(options, rename=tuple(_chosen(src_dir, src_strategy_file, options, choice_func)))
    request = Request(src_dir, dst_dir, src_strategy_file, options=options)
    workers = min(max_process_num, default_workers())
    if not split_dst_file:
        transform_checkpoint(request, workers=workers)
        return
    number, total = split_dst_file
    if not 1 <= number <= total:
        raise UsageError("InvalidOption", f"there is no machine {number} of {total}", where="split_dst_file")
    planned = _patiently(lambda: plan_transform(request, workers=workers, write=True))
    if parts := _share(planned.summary.target_ranks, number - 1, total):
        options = msgspec.structs.replace(options, ranks=format_ranks(parts))
        _write_beside_others(msgspec.structs.replace(request, options=options), workers=workers, all_together=True)


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
        predict_strategy: how the target is to be cut; None: one rank that holds everything whole.
        train_strategy_filename: how the files in `checkpoint_filenames` are cut.
        strict_load: whether types must be equal in the network.
        dec_key: of encrypted files in `checkpoint_filenames`.
        dec_mode: "AES-GCM", "AES-CBC" or "SM4-CBC".
        format: "safetensors" for unified ones, as MindSpore asks.
        unified_safetensors_dir: the folder with `part0.safetensors`, ...
        dst_safetensors_dir: the folder to write to. What is there is replaced.
        rank_id: only this rank; others may be written at the same time or later. None: all; of a network that of the process.
        output_format: "safetensors" or "ckpt".
        name_map: from the name that a parameter is to have to the one that it has in the files.
        max_process_num: ranks at a time; no more than there are processors.
        return_param_dict: with a network, give its parameters back instead of loading them.

    Returns:
        As MindSpore's: of a network and unified safetensors what `load_param_into_net` returns, or the parameters; else True.

    Raises:
        ReshardError: of the kind that fits.
    """
    for name, value in (("format", format), ("output_format", output_format)):
        if value not in _FORMATS:
            raise UsageError("InvalidFormat", f"{value!r} is neither 'ckpt' nor 'safetensors'", where=name)
    into_memory = network is not None or return_param_dict
    if dst_safetensors_dir is None and not into_memory:
        raise UsageError("InvalidOption", "without a network, a folder to write to is needed", where="dst_safetensors_dir")
    if (unified_safetensors_dir is None) == (checkpoint_filenames is None):
        raise UsageError("InvalidOption", "one of the two is needed", where="unified_safetensors_dir, checkpoint_filenames")
    rules = tuple(RenameRule(to=new, name=old) for new, old in (name_map or {}).items())
    options = Options(
        format=_FORMATS[output_format],
        prefix="net",
        numbered=False,
        rename=rules,
        ranks=None if rank_id is None else str(rank_id),
        overwrite="Replace",
    )
    request = Request(
        source="/" if checkpoint_filenames is not None else str(unified_safetensors_dir),
        target=dst_safetensors_dir or "",
        source_strategy=train_strategy_filename,
        target_strategy=predict_strategy,
        options=Options(layout="Index", rename=rules) if into_memory else options,
        decryption=decryption_of(dec_key, dec_mode),
    )
    workers = min(max_process_num, default_workers())
    if into_memory:
        if checkpoint_filenames is not None:
            job = job_of_files(request, dict(enumerate(checkpoint_filenames)))
        else:
            job = prepare(request, Silent(), workers=workers)
        found = param_dict(tensors_of(job, _own_rank() if rank_id is None else rank_id))
        if return_param_dict:
            return found
        outcome = import_module("mindspore").load_param_into_net(network, found, strict_load)
        return True if checkpoint_filenames is not None else outcome
    if checkpoint_filenames is not None:
        _cut_files(request, checkpoint_filenames)
    elif rank_id is None:
        transform_checkpoint(request, workers=workers)
    else:
        _write_beside_others(request, workers=workers, all_together=False)
    return True


def _own_rank() -> int:
    """Of this process, as MindSpore knows it; 0 where it runs alone."""
    try:
        return int(import_module("mindspore.communication").get_rank())
    except (ImportError, RuntimeError):
        return 0


def _pattern(suffix: str | None) -> str | None:
    """The names that end so, before the extension; `1_100` is a step, and not the end of step 11_100."""
    if suffix is None:
        return None
    for form, beginning in _SUFFIXES:
        if found := form.fullmatch(suffix):
            suffix = beginning + found[1]
            break
    return f"*{glob.escape(suffix)}.*"


def _chosen(source: str, strategy: str | None, options: Options, choice: Callable[[str], bool | str]) -> Iterable[RenameRule]:
    """What `choice` says of the parameters that a strategy names; it knows no others, as MindSpore does not ask it for them."""
    store, chosen = open_source(source)
    inventory = read_inventory(store, find_files(store, chosen, pattern=options.pattern), workers=default_workers())
    named = {name for stage in read_strategy(strategy).stages for name in stage} if strategy else None
    for name in dict.fromkeys(entry.name for structure in inventory.structures for entry in structure.tensors):
        if named is not None and name not in named:
            continue
        answer = choice(name)
        if not isinstance(answer, bool | str) or answer == "":
            raise UsageError("InvalidOption", f"{answer!r} is neither a name nor bool", where=f"choice_func({name!r})")
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
    result = _patiently(lambda: transform_checkpoint(request, workers=workers, commit=False))
    if result.complete:
        return
    try:
        # Of those who are done, the last finds nobody writing any more, and all records.
        commit_checkpoint(request.target, finished=not all_together, alone=True, digest=result.digest)
    except (LockedError, MissingInputError, RequestError) as error:
        if error.reason not in {"TargetLocked", "RanksUnfinished", "PartialReplacement", "PlanMissing"}:
            raise


def _patiently(work: Callable[[], T]) -> T:
    """Wait for another that looks whether the checkpoint is complete, which takes a moment."""
    retrying = Retrying(
        retry=retry_if_exception_type(LockedError),
        stop=stop_after_delay(_MOST_PATIENCE_SECONDS),
        wait=wait_random(0, 0.5),
        reraise=True,
    )
    return retrying(work)


def _cut_files(request: Request, paths: Sequence[str]) -> None:
    """Write the rank files of a target from files that lie anywhere."""
    job = job_of_files(request, dict(enumerate(paths)))
    written = {rank: f"{request.target.rstrip('/')}/{job.path(rank)}" for rank in job.scope}
    refuse_own_files(paths, written.values())
    for rank, path in written.items():
        write_alone(job, rank, path, share=budget(1))
