"""Online load: read one target rank directly from the source into memory. Nothing is written."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

import numpy as np

from reshard.checkpoint.output import Span
from reshard.engine.execute import fill
from reshard.engine.gather import Gatherer
from reshard.engine.memory import TILE_BYTES, budget, default_workers
from reshard.engine.moves import moves, reads_of_spans
from reshard.online.frameworks import tensor_maker
from reshard.plan import prove
from reshard.progress import Silent
from reshard.spec.request import Options, Request
from reshard.spec.storage_options import RequestStorageOptions
from reshard.transform.inputs import Inputs, cancellable
from reshard.transform.prepare import prepare

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from reshard.checkpoint.arrays import Array
    from reshard.engine.task import Task
    from reshard.online.frameworks import Framework, Maker
    from reshard.plan import RankPlan
    from reshard.progress import Cancellation
    from reshard.spec.keys import Encryption
    from reshard.spec.request import Replicas, SourceOnly, Verification
    from reshard.spec.rules import CastRule, PadRule, RenameRule
    from reshard.storage.traffic import Meter


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


@overload
def load(
    source: str,
    source_strategy: str | None = None,
    target_strategy: str | None = None,
    rank: int = 0,
    *,
    framework: Literal["numpy"] = "numpy",
    **how: Unpack[LoadOptions],
) -> dict[str, Array]: ...


@overload
def load(
    source: str,
    source_strategy: str | None = None,
    target_strategy: str | None = None,
    rank: int = 0,
    *,
    framework: Framework,
    **how: Unpack[LoadOptions],
) -> dict[str, Any]: ...


def load(
    source: str,
    source_strategy: str | None = None,
    target_strategy: str | None = None,
    rank: int = 0,
    *,
    framework: Framework = "numpy",
    **how: Unpack[LoadOptions],
) -> dict[str, Any]:
    """Load a target rank, and return its tensors by name. Arguments and errors are the same as for `iter_tensors`."""
    return dict(iter_tensors(source, source_strategy, target_strategy, rank, framework=framework, **how))


@overload
def iter_tensors(
    source: str,
    source_strategy: str | None = None,
    target_strategy: str | None = None,
    rank: int = 0,
    *,
    framework: Literal["numpy"] = "numpy",
    **how: Unpack[LoadOptions],
) -> Iterator[tuple[str, Array]]: ...


@overload
def iter_tensors(
    source: str,
    source_strategy: str | None = None,
    target_strategy: str | None = None,
    rank: int = 0,
    *,
    framework: Framework,
    **how: Unpack[LoadOptions],
) -> Iterator[tuple[str, Any]]: ...


def iter_tensors(  # noqa: PLR0913 - one for each option
    source: str,
    source_strategy: str | None = None,
    target_strategy: str | None = None,
    rank: int = 0,
    *,
    framework: Framework = "numpy",
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
) -> Iterator[tuple[str, Any]]:
    """Yield the tensors of a target rank, in the order of the source's files.

    Headers are read and checked before this function returns. Only the content that the rank requires is read. The iterator needs
    memory for one tensor of the rank, and up to 56 MiB for data that is prefetched from an object store.

    Args:
        source: folder of a checkpoint of any format, a single file, or s3://bucket/prefix.
        source_strategy: strategy file, folder with one file per pipeline stage, or layout file. None means the layouts in the
            manifest of the source. Without a manifest, it means one rank with whole parameters.
        target_strategy: strategy file, folder or layout file of the target. None means one rank with whole parameters.
        rank: number of the target rank.
        framework: "numpy" for numpy arrays, "torch" for torch tensors over the same memory.
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

    Returns:
        Names and tensors. Each tensor owns its memory. docs/online-load.md lists the types of each framework.

    Raises:
        DataError, MissingInputError, RequestError, UsageError: files, strategies or options are damaged, missing, or do not
            match, or the framework is not installed or lacks a type. A change of the source during the load may be reported only
            after the last tensor. Do not use the tensors until the iterator is exhausted.
        AccessError, StorageError: a file cannot be read.
    """
    request = Request(
        source=source,
        target="",
        source_strategy=source_strategy,
        target_strategy=target_strategy,
        options=Options(
            output="Index",
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
        ),
        storage_options=storage_options or RequestStorageOptions(),
        index=index,
        decryption=decryption,
    )
    task = prepare(Inputs(request, cancellation), Silent(), workers=default_workers(), single=True)
    return tensors_of(replace(task, source=cancellable(task.source, cancellation)), rank, framework=framework)


def tensors_of(task: Task, rank: int, meter: Meter | None = None, *, framework: Framework = "numpy") -> Iterator[tuple[str, Any]]:
    """Yield the tensors of a task's target rank like `iter_tensors`. `meter` counts what is fetched of the source's tensors."""
    plan = task.planner.plan(rank)
    prove(plan)
    makers = [tensor_maker(framework, each.parameter.target_dtype, each.parameter.name) for each in plan.tensors]
    return _read(task, plan, makers, meter)


def _read(task: Task, plan: RankPlan, makers: Sequence[Maker], meter: Meter | None) -> Iterator[tuple[str, Any]]:
    spans = [Span(number, 0, tensor.written_nbytes) for number, tensor in enumerate(plan.tensors)]
    with closing(task.source_files(meter)) as files:
        gatherer = Gatherer(files, TILE_BYTES)
        files.expect(reads_of_spans(plan, spans), budget(1))
        for tensor, span, make in zip(plan.tensors, spans, makers, strict=True):
            content = np.empty(span.length, np.uint8)
            if span.length:
                fill(moves(plan, [span]), gatherer, memoryview(content.data))
            yield tensor.parameter.name, make(content, tensor.shape)
        files.check_unchanged()
