"""Online load: what one target rank gets, straight from the source into memory. Nothing is written anywhere."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, TypedDict, Unpack

import numpy as np

from reshard.checkpoint import Span
from reshard.checkpoint.arrays import array_of
from reshard.engine.execute import TILE_BYTES, fill, moves, reads_of_spans
from reshard.engine.gather import Gatherer, ReadCount
from reshard.engine.memory import budget, default_workers
from reshard.plan import prove
from reshard.progress import Silent
from reshard.spec.access import Accesses
from reshard.spec.request import Options, Request
from reshard.transform.prepare import cancellable, prepare

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reshard.checkpoint.arrays import Array
    from reshard.engine.job import Job
    from reshard.plan import RankPlan
    from reshard.progress import Cancellation
    from reshard.spec.keys import Encryption
    from reshard.spec.request import RenameRule, Replicas, SourceOnly, Verification


class LoadOptions(TypedDict, total=False):
    """What can be said of a load by name only; see `iter_tensors`."""

    step: int | None
    files: str | None
    allow_single_rank: bool
    allow_equal_slices: bool
    source_only: SourceOnly
    allow_missing: bool
    rename: tuple[RenameRule, ...]
    allow_inconsistent: tuple[str, ...]
    replicas: Replicas
    verification: Verification
    index: str | None
    access: Accesses | None
    decryption: Encryption | None
    cancellation: Cancellation | None


def load(
    source: str,
    source_strategy: str | None = None,
    target_strategy: str | None = None,
    rank: int = 0,
    **how: Unpack[LoadOptions],
) -> dict[str, Array]:
    """What a target rank gets, by name: at once all that `iter_tensors` gives, whose arguments and errors these are."""
    return dict(iter_tensors(source, source_strategy, target_strategy, rank, **how))


def iter_tensors(  # noqa: PLR0913 - one for each option
    source: str,
    source_strategy: str | None = None,
    target_strategy: str | None = None,
    rank: int = 0,
    *,
    step: int | None = None,
    files: str | None = None,
    allow_single_rank: bool = False,
    allow_equal_slices: bool = False,
    source_only: SourceOnly = "Drop",
    allow_missing: bool = False,
    rename: tuple[RenameRule, ...] = (),
    allow_inconsistent: tuple[str, ...] = (),
    replicas: Replicas = "Identical",
    verification: Verification = "Sample",
    index: str | None = None,
    access: Accesses | None = None,
    decryption: Encryption | None = None,
    cancellation: Cancellation | None = None,
) -> Iterator[tuple[str, Array]]:
    """What a target rank gets, tensor by tensor, in the order of the source's files.

    Headers are read and checked before this returns; of the contents only what the rank needs is read. Memory: that of one
    tensor's slice beside what the caller keeps, and with an object store up to 56 MiB that are fetched ahead.

    Args:
        source: the folder with `rank_<r>/`, or one file; or s3://bucket/prefix.
        source_strategy: a file or a folder of stages; None: the source is one whole rank.
        target_strategy: a strategy of the layout that is wanted, likewise.
        rank: the rank of that layout.
        step: the training step whose files are read; None: the newest that every rank has.
        files: the shell pattern that the files' names match, or their paths if there is a `/` in it.
        allow_single_rank: whether to read the file of one rank as a whole checkpoint although other ranks are next to it.
        allow_equal_slices: whether ranks may hold equal content where the source's strategy gives them different slices.
        source_only: what happens to parameters that only the source's strategy names.
        allow_missing: whether to leave out what only the target's strategy names.
        rename: what parameters are to be called.
        allow_inconsistent: patterns of the names of parameters in no strategy whose copies may differ between source ranks.
        replicas: the choice among several copies of a slice, see `Options`.
        verification: how much of the source is checked first. "Full": the CRC32s of all files and all copies of a parameter;
            "Sample": blocks of copies; "None": only copies of parameters in no strategy. An index was checked when it was made.
        index: the folder where `output: Index` has indexed this source. It says which strategies count, and which versions of
            which files, so that none is opened that holds nothing of this rank.
        access: the way to those of them that are in an object store.
        decryption: the key of the source's files; None: they are not encrypted.
        cancellation: cancels the load from another thread, before its next read.

    Returns:
        Names and arrays of their own memory, in MindSpore's types as numpy and ml_dtypes have them (docs/online-load.md).

    Raises:
        ReshardError: of the kind that fits. That the source has changed meanwhile can come as late as behind the last tensor:
            until then none of them should be relied on.
    """
    request = Request(
        source=source,
        target="",
        source_strategy=source_strategy,
        target_strategy=target_strategy,
        options=Options(
            output="Index",
            step=step,
            files=files,
            allow_single_rank=allow_single_rank,
            allow_equal_slices=allow_equal_slices,
            source_only=source_only,
            allow_missing=allow_missing,
            rename=rename,
            allow_inconsistent=allow_inconsistent,
            replicas=replicas,
            verification=verification,
        ),
        access=access or Accesses(),
        index=index,
        decryption=decryption,
    )
    job = prepare(request, Silent(), workers=default_workers(), single=True, cancellation=cancellation)
    return tensors_of(replace(job, source=cancellable(job.source, cancellation)), rank)


def tensors_of(job: Job, rank: int, count: ReadCount | None = None) -> Iterator[tuple[str, Array]]:
    """The tensors of a job's target rank, as `iter_tensors` gives them; `count` is told what is read of the source."""
    plan = job.planner.plan(rank)
    prove(plan)
    return _read(job, plan, count)


def _read(job: Job, plan: RankPlan, count: ReadCount | None) -> Iterator[tuple[str, Array]]:
    spans = [Span(number, 0, tensor.parameter.slice_nbytes) for number, tensor in enumerate(plan.tensors)]
    with closing(job.source_files(count)) as files:
        gatherer = Gatherer(files, TILE_BYTES)
        files.expect(reads_of_spans(plan, spans), budget(1).ahead)
        for tensor, span in zip(plan.tensors, spans, strict=True):
            content = np.empty(span.length, np.uint8)
            if span.length:
                fill(moves(plan, [span]), gatherer, memoryview(content.data))
            parameter = tensor.parameter
            yield parameter.name, array_of(content, parameter.dtype, tensor.shape, parameter.name)
        files.check_unchanged()
