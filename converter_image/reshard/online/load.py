"""Online load: read one target rank directly from the source into memory. Nothing is written."""

from __future__ import annotations

from collections import deque
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

from reshard.engine.memory import default_workers
from reshard.online.buffers import check_apart, given_places, new_places
from reshard.online.reading import read
from reshard.plan import prove
from reshard.progress import Silent
from reshard.spec.request import Options, Request
from reshard.spec.storage_options import RequestStorageOptions
from reshard.transform.inputs import Inputs, cancellable
from reshard.transform.prepare import prepare

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reshard.checkpoint.arrays import Array
    from reshard.engine.task import Task
    from reshard.online.buffers import Buffers, Place
    from reshard.online.frameworks import Framework
    from reshard.plan import RankPlan
    from reshard.progress import Cancellation
    from reshard.spec.keys import Encryption
    from reshard.spec.request import Replicas, SourceOnly, Verification
    from reshard.spec.rules import CastRule, PadRule, RenameRule
    from reshard.storage.traffic import Meter

# An iterator reads this many bytes ahead of the tensor that the caller uses.
_AHEAD_BYTES = 12 << 20


class LoadOptions(TypedDict, total=False):
    """Keyword arguments of a load into any framework, see `iter_tensors`."""

    target_ranks: int | None
    source_format: str | None
    step: int | None
    files: str | None
    allow_single_rank: bool
    allow_equal_slices: bool
    source_only: SourceOnly
    allow_missing: bool
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    rename: tuple[RenameRule, ...]
    cast: tuple[CastRule, ...]
    pad: tuple[PadRule, ...]
    allow_inconsistent: tuple[str, ...]
    replicas: Replicas
    verification: Verification
    index: str | None
    storage_options: RequestStorageOptions | None
    decryption: Encryption | None
    cancellation: Cancellation | None
    workers: int | None


@overload
def load(
    source: str,
    source_strategy: str | None = None,
    target_strategy: str | None = None,
    rank: int = 0,
    *,
    framework: Literal["numpy"] = "numpy",
    out: None = None,
    **how: Unpack[LoadOptions],
) -> dict[str, Array]: ...


@overload
def load(
    source: str,
    source_strategy: str | None = None,
    target_strategy: str | None = None,
    rank: int = 0,
    *,
    framework: Framework = "numpy",
    out: Buffers | None = None,
    **how: Unpack[LoadOptions],
) -> dict[str, Any]: ...


def load(
    source: str,
    source_strategy: str | None = None,
    target_strategy: str | None = None,
    rank: int = 0,
    *,
    framework: Framework = "numpy",
    out: Buffers | None = None,
    **how: Unpack[LoadOptions],
) -> dict[str, Any]:
    """Load a target rank, and return its tensors by name. Arguments and errors are the same as for `iter_tensors`.

    In addition to its result, a load needs memory for the reads of its threads and for prefetched data: at most 64 MB in total.
    """
    if unknown := how.keys() - LoadOptions.__annotations__.keys():
        msg = f"load() got an unexpected keyword argument {min(unknown)!r}"
        raise TypeError(msg)
    workers = how.pop("workers", None)
    task = _task(source, source_strategy, target_strategy, **how)
    return dict(tensors_of(task, rank, framework=framework, out=out, workers=workers, together=True))


@overload
def iter_tensors(
    source: str,
    source_strategy: str | None = None,
    target_strategy: str | None = None,
    rank: int = 0,
    *,
    framework: Literal["numpy"] = "numpy",
    out: None = None,
    **how: Unpack[LoadOptions],
) -> Iterator[tuple[str, Array]]: ...


@overload
def iter_tensors(
    source: str,
    source_strategy: str | None = None,
    target_strategy: str | None = None,
    rank: int = 0,
    *,
    framework: Framework = "numpy",
    out: Buffers | None = None,
    **how: Unpack[LoadOptions],
) -> Iterator[tuple[str, Any]]: ...


def iter_tensors(  # noqa: PLR0913 - one for each option
    source: str,
    source_strategy: str | None = None,
    target_strategy: str | None = None,
    rank: int = 0,
    *,
    framework: Framework = "numpy",
    out: Buffers | None = None,
    target_ranks: int | None = None,
    source_format: str | None = None,
    step: int | None = None,
    files: str | None = None,
    allow_single_rank: bool = False,
    allow_equal_slices: bool = False,
    source_only: SourceOnly = "Drop",
    allow_missing: bool = False,
    include: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
    rename: tuple[RenameRule, ...] = (),
    cast: tuple[CastRule, ...] = (),
    pad: tuple[PadRule, ...] = (),
    allow_inconsistent: tuple[str, ...] = (),
    replicas: Replicas = "Identical",
    verification: Verification = "Sample",
    index: str | None = None,
    storage_options: RequestStorageOptions | None = None,
    decryption: Encryption | None = None,
    cancellation: Cancellation | None = None,
    workers: int | None = None,
) -> Iterator[tuple[str, Any]]:
    """Yield the tensors of a target rank, in the order of the source's files.

    Headers are read and checked before this function returns. Only the content that the rank requires is read. The iterator needs
    memory for one tensor of the rank, and up to 64 MB for the reads of its threads and for prefetched data.

    Args:
        source: folder of a checkpoint of any format, a single file, or s3://bucket/prefix.
        source_strategy: strategy file, folder with one file per pipeline stage, or layout file. None means one rank with whole
            parameters.
        target_strategy: strategy file, folder or layout file of the target. None means one rank with whole parameters.
        rank: number of the target rank.
        framework: "numpy" for numpy arrays, "torch" for torch tensors over the same memory.
        out: memory to load into, instead of new tensors: a mapping with a buffer for each tensor by name, or a function that
            returns one. A buffer is a contiguous numpy array, torch tensor, or object with host memory that supports DLPack, of
            the shape and type of the tensor. It is returned as it is. The function is called with the name, the shape, and the
            numpy or torch type of each tensor, and by `iter_tensors` one tensor at a time, so that it may return the same
            memory again. After an error, the content of the buffers is undefined.
        target_ranks: number of target ranks, instead of a target strategy. Rank r gets chunk r of dimension 0 of every tensor, as
            in FSDP: ceil(length / target_ranks) rows, while there are any. Scalars are whole on every rank.
        source_format: format of the source, such as "torch-dcp". None means that its files determine it.
        step: training step to read. None means the newest step that every rank has.
        files: glob pattern of the files to read. A pattern with a `/` matches paths in the source, otherwise names.
        allow_single_rank: whether to read the folder or file of one rank as a complete checkpoint, even if other ranks are next
            to it.
        allow_equal_slices: whether to accept ranks with equal content, even if the source strategy assigns them different slices.
        source_only: handling of parameters that only the source strategy names. "Drop" omits them. "Keep" loads them whole.
        allow_missing: whether to omit parameters that only the target strategy names, instead of raising an error.
        include: patterns of parameters to load, by their names in the source. `*` matches any characters. Empty means all.
        exclude: patterns of parameters to omit, among those. A target strategy may name them.
        rename: rules that rename parameters.
        cast: rules that cast parameters to another floating-point type. The first rule that matches a name in the source applies.
        pad: rules that pad dimensions of parameters with zeros, or trim zeros.
        allow_inconsistent: patterns of parameters that no strategy names and whose copies may differ between source ranks.
        replicas: handling of slices that several source ranks hold, see `Options`.
        verification: amount of the source that is checked first. "Full" checks the CRC32s of all files and all copies of each
            parameter. "Sample" checks blocks of copies. "None" checks only copies of parameters that no strategy names. The
            source of an index was checked when the index was created.
        index: target of a transform of this source with output "Index". It contains the strategies and the versions of the files,
            so that only files that this rank needs are opened.
        storage_options: options of object stores.
        decryption: key of the source. None means that it is not encrypted.
        cancellation: object that cancels the load from another thread, before its next read.
        workers: number of threads that read. None means the available processors, at most 8. From an object store, at least 8
            threads read.

    Returns:
        Names and tensors. Each tensor owns its memory. docs/online-load.md lists the types of each framework.

    Raises:
        DataError, MissingInputError, RequestError, UsageError: files, strategies or options are damaged, missing, or do not
            match, or the framework is not installed or lacks a type. A change of the source during the load may be reported only
            after the last tensor. Do not use the tensors until the iterator is exhausted.
        AccessError, StorageError: a file cannot be read.
    """
    task = _task(
        source,
        source_strategy,
        target_strategy,
        storage_options=storage_options,
        index=index,
        decryption=decryption,
        cancellation=cancellation,
        target_ranks=target_ranks,
        source_format=source_format,
        step=step,
        files=files,
        allow_single_rank=allow_single_rank,
        allow_equal_slices=allow_equal_slices,
        source_only=source_only,
        allow_missing=allow_missing,
        include=include,
        exclude=exclude,
        rename=rename,
        cast=cast,
        pad=pad,
        allow_inconsistent=allow_inconsistent,
        replicas=replicas,
        verification=verification,
    )
    return tensors_of(task, rank, framework=framework, out=out, workers=workers)


def _task(
    source: str,
    source_strategy: str | None,
    target_strategy: str | None,
    *,
    storage_options: RequestStorageOptions | None = None,
    index: str | None = None,
    decryption: Encryption | None = None,
    cancellation: Cancellation | None = None,
    **options: Any,  # noqa: ANN401 - fields of Options
) -> Task:
    request = Request(
        source=source,
        target="",
        source_strategy=source_strategy,
        target_strategy=target_strategy,
        options=Options(output="Index", **options),
        storage_options=storage_options or RequestStorageOptions(),
        index=index,
        decryption=decryption,
    )
    task = prepare(Inputs(request, cancellation), Silent(), workers=default_workers(), single=True)
    return replace(task, source=cancellable(task.source, cancellation))


def tensors_of(
    task: Task,
    rank: int,
    meter: Meter | None = None,
    *,
    framework: Framework = "numpy",
    out: Buffers | None = None,
    workers: int | None = None,
    together: bool = False,
) -> Iterator[tuple[str, Any]]:
    """Yield the tensors of a task's target rank like `iter_tensors`.

    Args:
        task: task whose source is read.
        rank: number of the target rank.
        meter: meter of what is fetched of the source's tensors.
        framework: see `iter_tensors`.
        out: see `iter_tensors`.
        workers: see `iter_tensors`.
        together: whether the caller keeps all tensors, so that any of them can be read at any time.
    """
    plan = task.planner.plan(rank)
    prove(plan)
    places = new_places(plan, framework) if out is None else given_places(plan, framework, out)
    # A function may return the same memory again, when the caller asks for the next tensor.
    ahead = None if together else 0 if callable(out) else _AHEAD_BYTES
    if together and callable(out):
        found = list(places)
        check_apart(plan, found)
        places = iter(found)
    return _read(task, plan, places, meter, workers or default_workers(), ahead)


def _read(
    task: Task, plan: RankPlan, places: Iterator[Place], meter: Meter | None, workers: int, ahead: int | None
) -> Iterator[tuple[str, Any]]:
    taken: deque[Place] = deque()

    def contents() -> Iterator[Array]:
        for place in places:
            taken.append(place)
            yield place.content

    with closing(task.source_files(meter)) as files:
        complete = read(files, plan, contents(), workers=workers, ahead=ahead)
        for parameter, _ in zip(plan.parameters, complete, strict=True):
            yield parameter.name, taken.popleft().tensor()
        files.check_unchanged()
