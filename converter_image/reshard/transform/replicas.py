"""Compare all copies of the parameters of a checkpoint, without a transform."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from reshard.engine.memory import default_workers
from reshard.progress import Silent
from reshard.spec.request import Options
from reshard.telemetry import phase
from reshard.transform.consistency import differing_copies
from reshard.transform.inputs import cancellable, inputs_to_read
from reshard.transform.prepare import prepare
from reshard.transform.shards import check_shards

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reshard.progress import Cancellation, Progress
    from reshard.spec.keys import Encryption
    from reshard.spec.storage_options import StorageOptions
    from reshard.transform.consistency import Mismatch


def differing_replicas(  # noqa: PLR0913 - one for each option
    url: str,
    *,
    parameters: Sequence[str] = (),
    strategy: str | None = None,
    step: int | None = None,
    files: str | None = None,
    storage_options: StorageOptions | None = None,
    decryption: Encryption | None = None,
    progress: Progress | None = None,
    cancellation: Cancellation | None = None,
) -> tuple[Mismatch, ...]:
    """Compare every byte of all copies of each parameter. Return those that differ, with their first differing element.

    Args:
        url: checkpoint: folder, or s3://bucket/prefix.
        parameters: patterns of names. None means all parameters.
        strategy: strategy file, folder of strategy files, or layout file. None means the layouts in the manifest.
        step: training step to read. None means the newest step that every rank has.
        files: glob pattern of the files to read.
        storage_options: options of the object store.
        decryption: key of an encrypted checkpoint.
        progress: receiver of the progress.
        cancellation: object that cancels the work from another thread.

    Raises:
        DataError, MissingInputError, RequestError: files or strategies are damaged, missing, or do not match; or copies of a
            shard that metadata locates differ.
        AccessError, StorageError: a file cannot be read.
    """
    progress = progress or Silent()
    # Every difference is accepted at first, so that all of them can be listed.
    options = Options(
        output="Index",
        include=tuple(parameters),
        step=step,
        files=files,
        source_only="Keep",
        verification="None",
        replicas="LowestRank",
        allow_inconsistent=("*",),
        allow_equal_slices=True,
    )
    inputs = inputs_to_read(
        url, options, strategy=strategy, storage_options=storage_options, decryption=decryption, cancellation=cancellation
    )
    task = prepare(inputs, progress, workers=default_workers())
    with phase("compare_replicas"):
        store = cancellable(task.source, cancellation)
        found = tuple(differing_copies(store, task.model, progress, workers=default_workers()))
        strict = replace(task.model, lowest_replica=False)
        check_shards(store, strict, Options(verification="Full"), workers=default_workers())
        return found
