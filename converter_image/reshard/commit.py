"""From finished ranks to a complete checkpoint."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import TYPE_CHECKING

import msgspec

from reshard.checkpoint.dtypes import DTYPES
from reshard.digest import matches
from reshard.errors import DataError, MissingInputError, RequestError
from reshard.manifest import MANIFEST_NAME, SCHEMA, FileRecord, LayoutRecord, Manifest, ParameterRecord, SourceRecord
from reshard.ranks import format_ranks, parse_ranks
from reshard.request import request_key
from reshard.target import JobDocument
from reshard.unified import HYPER_NAME, MAP_NAME, map_of, maps_beside
from reshard.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from reshard.job import Job
    from reshard.layout import Layout
    from reshard.plan import Parameter
    from reshard.target import JobState, TargetFolder

_NOT_MAPPED = (HYPER_NAME, MAP_NAME)
_STRICTNESS = {"None": 0, "Sample": 1, "Full": 2}


def finished(job: Job, target: TargetFolder, state: JobState, *, thorough: bool = False) -> dict[int, FileRecord]:
    """The ranks of a job that are done: recorded, their file there, and verified as much as is asked for.

    `thorough` reads the files again, to find what has changed since.
    """
    wanted = _STRICTNESS[job.request.options.verification]
    document = state.read() or JobDocument(job.digest, job.key, staged=False)
    known = _recorded(target, state, document, job.scope, thorough=thorough)
    return {rank: record for rank, record in known.items() if _STRICTNESS[record.verified] >= wanted}


def commit_job(target: TargetFolder, state: JobState, document: JobDocument, wanted: tuple[int, ...] | None) -> Manifest:
    """Declare a job complete. To be called with the target's lock held; safe to repeat after a crash at any point.

    Args:
        target: where.
        state: of the job.
        document: of the job.
        wanted: the ranks that make it complete; None: all that the target's layout has.

    Raises:
        MissingInputError: a rank is not finished.
        RequestError: a part of the ranks would take the place of a checkpoint.
    """
    draft = state.draft()
    ranks = wanted if wanted is not None else tuple(range(draft.target_ranks))
    if document.replaces:
        refuse_partial_replacement(target, ranks, draft.target_ranks)
    records = _recorded(target, state, document, ranks)
    missing = tuple(rank for rank in ranks if rank not in records)
    if missing:
        raise MissingInputError(
            "RanksUnfinished",
            f"rank {format_ranks(missing)} of {len(ranks)} ranks is not finished",
            where=target.store.url,
            fix="run the transform for these ranks, then commit again",
        )
    manifest = msgspec.structs.replace(draft, ranks=format_ranks(ranks), files=tuple(records[rank] for rank in ranks))
    if document.staged:
        state.begin_commit(format_ranks(ranks))
        state.retire_old_manifest()
        for record in manifest.files:
            state.publish(record)
    maps = _maps(manifest)
    _remove_replaced(target, state, kept={*(record.path for record in manifest.files), *maps})
    for name, content in maps.items():
        target.store.write(name, content, mode=target.mode)
    target.write_manifest(manifest)
    target.forget_jobs(record.path for record in manifest.files)
    return manifest


def finish_interrupted(target: TargetFolder) -> None:
    """Bring a commit to its end that was interrupted while it replaced files: nothing else can make the target whole again."""
    for document in target.jobs():
        state = target.job(document.digest)
        if (ranks := state.begun_commit()) is not None:
            commit_job(target, state, document, parse_ranks(ranks))


def refuse_partial_replacement(target: TargetFolder, ranks: tuple[int, ...], target_ranks: int) -> None:
    """A part of a checkpoint may not take the place of a whole one.

    Raises:
        RequestError: it would.
    """
    if len(ranks) < target_ranks:
        raise RequestError(
            "PartialReplacement",
            f"rank {format_ranks(ranks)} of {target_ranks} cannot replace a whole checkpoint",
            where=target.store.url,
            fix="leave out --ranks (spec.target.ranks), or choose another target",
        )


def _recorded(
    target: TargetFolder, state: JobState, document: JobDocument, ranks: tuple[int, ...], *, thorough: bool = False
) -> dict[int, FileRecord]:
    """The finished ranks of a job, those of a manifest that it extends included."""
    manifest = target.manifest()
    known: dict[int, FileRecord] = {}
    if manifest is not None and manifest.digest == document.digest:
        known = {record.rank: record for record in manifest.files}
    known |= state.records(ranks)
    staged = document.staged
    return {rank: found for rank, found in known.items() if state.find(found, staged=staged, thorough=thorough) is not None}


def verify_checkpoint(
    target: TargetFolder, *, workers: int, begin: Callable[[int], None], advance: Callable[[int], None]
) -> Manifest:
    """Check a finished checkpoint against its manifest: every file's size and content digest.

    Raises:
        MissingInputError: there is no manifest, or a file is gone.
        DataError: a file has changed.
    """
    manifest = target.manifest()
    if manifest is None:
        raise MissingInputError(
            "ManifestMissing",
            f"there is no {MANIFEST_NAME}: this is no finished checkpoint",
            where=target.store.url,
            fix="run the transform again, finished ranks are kept",
        )
    begin(sum(record.size for record in manifest.files))
    maps = [name for name, content in _maps(manifest).items() if target.store.read(name, len(content) + 1) != content]

    def check(record: FileRecord) -> str | None:
        reader = target.store.open(record.path)
        try:
            if reader.size != record.size:
                return f"{record.path} has {reader.size} bytes instead of {record.size}"
            same = matches(reader, record.digest, advance, remote=target.store.remote)
            return None if same else f"{record.path} has another content"
        finally:
            reader.close()

    with ThreadPoolExecutor(workers) as pool:
        damaged = [found for found in pool.map(check, manifest.files) if found]
    damaged += [f"{name} has another content" for name in maps]
    if damaged:
        more = f" (and {len(damaged) - 1} more files)" if len(damaged) > 1 else ""
        raise DataError(
            "ContentChanged",
            damaged[0] + more,
            where=target.store.url,
            fix="restore it, or run the same transform again with --overwrite, which writes what has changed",
        )
    return manifest


def _remove_replaced(target: TargetFolder, state: JobState, *, kept: Container[str]) -> None:
    """Take away the files of what this job replaces, a complete checkpoint or an unfinished job, that it has no file for."""
    for path in state.replaced_files():
        if path in kept:
            continue
        target.store.delete(path)
        folder = path.rpartition("/")[0]
        if folder and not target.store.list(folder):
            target.store.delete(folder)


def _maps(manifest: Manifest) -> dict[str, bytes]:
    """What lies beside unified files and says which parameter is in which.

    MindSpore reads the file of those in no strategy by itself. To Hugging Face's libraries it is one like the others: who has no
    map entry is not there, and such a parameter may well be one of the model's.
    """
    files = {record.rank: record.path for record in manifest.files}
    maps = {}
    for name in maps_beside(manifest.options):
        shown = [p for p in manifest.parameters if (path := files.get(p.target.stages[0])) and (path, name) != _NOT_MAPPED]
        nbytes = sum(prod(p.shape) * DTYPES[p.dtype].itemsize for p in shown)
        maps[name] = map_of({p.name: files[p.target.stages[0]] for p in shown}, nbytes)
    return maps


def draft_manifest(job: Job) -> Manifest:
    """The manifest of a job, but for the files: the commit puts them in, and needs nothing else of the source."""
    model = job.model
    return Manifest(
        schema=SCHEMA,
        version=__version__,
        digest=job.digest,
        source=SourceRecord(
            url=job.source.url,
            format=model.inventory.format,
            ranks=model.source_ranks,
            nbytes=sum(file.size for file in model.inventory.files),
        ),
        format=job.format,
        ranks="",
        target_ranks=model.target_ranks,
        options=request_key(job.request),
        files=(),
        parameters=tuple(_parameter(parameter) for parameter in model.parameters),
        unplaced=model.unplaced,
        missing=model.missing,
        absent=model.absent,
        empty=model.empty,
        dropped=model.dropped,
        diverging=tuple(sorted(model.diverging)),
    )


def _parameter(parameter: Parameter) -> ParameterRecord:
    source = None
    if parameter.source is not None and prod(parameter.source.device_matrix) > 1:
        source = _layout(parameter.source, parameter.source_stages)
    return ParameterRecord(
        name=parameter.name,
        dtype=parameter.dtype,
        shape=parameter.shape,
        role=parameter.role.value,
        source=source,
        target=_layout(parameter.target, parameter.target_stages),
        source_name=parameter.source_name if parameter.source_name != parameter.name else None,
    )


def _layout(layout: Layout, stages: tuple[int, ...]) -> LayoutRecord:
    return LayoutRecord(layout.device_matrix, layout.tensor_map, layout.shard_step, layout.shard_size, stages)
