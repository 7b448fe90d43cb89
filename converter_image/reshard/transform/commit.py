"""From finished ranks to a complete checkpoint."""

from __future__ import annotations

from collections import defaultdict
from math import prod
from typing import TYPE_CHECKING

import msgspec

from reshard.checkpoint.dtypes import DTYPES
from reshard.checkpoint.manifest import INDEX_NAME, FileRecord, IndexRecord, Manifest
from reshard.checkpoint.unified import HYPER_NAME, MAP_NAME, map_of, maps_beside
from reshard.errors import DataError, MissingInputError, RequestError
from reshard.parallel import parallel
from reshard.plan import Role
from reshard.source.files import Files
from reshard.source.reading import read_inventory
from reshard.spec.ranks import format_ranks, parse_ranks
from reshard.spec.request import STRICTNESS
from reshard.storage.cancellable import CancellableStore
from reshard.storage.digest import ContentDigest
from reshard.target.folder import LOCK
from reshard.target.lock import serialized
from reshard.target.parts import all_there, unite, with_files
from reshard.target.standing import JobDocument
from reshard.telemetry import durations, phase
from reshard.transform.consistency import check_stages

if TYPE_CHECKING:
    from reshard.engine.job import Job
    from reshard.progress import Cancellation
    from reshard.target.folder import TargetFolder
    from reshard.target.standing import Identity, Standing

_NOT_MAPPED = (HYPER_NAME, MAP_NAME)
_COMPARED_AT_ONCE = 8


def finished(
    job: Job, target: TargetFolder, standing: Standing, cancellation: Cancellation, *, thorough: bool = False
) -> dict[int, FileRecord]:
    """The ranks of a job that are done: recorded, their file there, and verified as much as is asked for.

    `thorough` reads the files again, to find what has changed since.
    """
    wanted = STRICTNESS[job.request.options.verification]
    document = standing.begun(job.digest) or JobDocument(job.digest, job.key, staged=False, stage=job.stage, whole=job.whole)
    known = recorded(target, document, standing, job.scope, cancellation, thorough=thorough)
    return {rank: record for rank, record in known.items() if STRICTNESS[record.verified] >= wanted}


@phase("commit")
def commit_job(
    target: TargetFolder, document: JobDocument, wanted: tuple[int, ...] | None, cancellation: Cancellation
) -> Manifest:
    """Declare a job complete. To be called with the target's lock held; safe to repeat after a crash at any point.

    Args:
        target: the target that it was written to.
        document: the job as it was begun.
        wanted: the ranks that make it complete; None: all that get a file.
        cancellation: cancels it; the next commit finishes it.

    Returns:
        The manifest of the checkpoint; of a part that is not the last its own, which is nowhere but among the unfinished yet.

    Raises:
        MissingInputError: a rank is not finished; or it was the last part, and all together lack a parameter.
        RequestError: only some ranks would take the place of a checkpoint.
    """
    state, standing = target.job(document.digest), target.observe()
    draft = state.draft()
    every = ranks_of(draft)
    ranks = every if wanted is None else tuple(sorted({*wanted} & {*every}))
    if document.replaces:
        refuse_loss(target, standing, ranks, every, shape_of(draft))
    records = recorded(target, document, standing, ranks, cancellation)
    missing = tuple(rank for rank in ranks if rank not in records)
    if missing:
        raise MissingInputError(
            "RanksUnfinished",
            f"not all {len(ranks)} ranks are finished and unchanged; these are not: {format_ranks(missing)}",
            where=target.store.url,
            fix="run the transform for these ranks, then commit again",
        )
    manifest = msgspec.structs.replace(
        draft, ranks=format_ranks(ranks), files=tuple(records[rank] for rank in ranks), key_check=document.key_check
    )
    if document.stage is None:
        return _complete(target, document, standing, manifest, cancellation)
    with serialized(target, f"{LOCK}-commit", cancellation.check):  # of two that are both the last, one completes the checkpoint
        state.finish_stage(manifest)
        return _complete_with_siblings(target, document, manifest, cancellation)


def _complete_with_siblings(target: TargetFolder, document: JobDocument, own: Manifest, cancellation: Cancellation) -> Manifest:
    """Complete the checkpoint of which a finished job is a part, if the others are finished too."""
    standing = target.observe()
    known = standing.own(document)
    if known is not None:  # some files of it were written again, or are there in addition
        others = [record for record in known.files if record.stage != document.stage]
        return _complete(target, document, standing, with_files(known, [*others, *own.files]), cancellation)
    parts = [own]
    for sibling in standing.siblings(document):
        if (finished := target.job(sibling.digest).finished_stage()) is not None:
            _check_files(target, sibling, finished, cancellation)
            parts.append(finished)
    if not all_there([part for manifest in parts for part in manifest.stages]):
        return own
    return _complete(target, document, standing, unite(parts, _inconsistent(target, parts, cancellation)), cancellation)


def _complete(
    target: TargetFolder, document: JobDocument, standing: Standing, manifest: Manifest, cancellation: Cancellation
) -> Manifest:
    """Declare a checkpoint complete, all of whose files are finished."""
    state = target.job(document.digest)
    staged = [job for job in (document, *standing.siblings(document)) if job.staged]
    if staged:
        state.begin_commit(format_ranks(tuple(record.rank for record in manifest.files if record.stage == document.stage)))
        state.retire_old_manifest()
        for job in staged:
            mine = [record for record in manifest.files if record.stage == job.stage]
            target.job(job.digest).publish(mine, cancellation.check)
        standing = target.observe()
    content = state.index() if _is_index(manifest) else None
    if content is not None:
        manifest = msgspec.structs.replace(manifest, index=IndexRecord(len(content), str(ContentDigest(content))))
    maps = maps_of(manifest)
    kept = {*(record.path for record in manifest.listed), *maps}
    target.store.delete_files(sorted(target.replaced_files(standing, document.digest) - kept), prune=True)
    for name, text in maps.items():
        target.store.write(name, text, mode=target.mode)
    if content is not None:
        target.store.write(INDEX_NAME, content, mode=target.mode)
    manifest = msgspec.structs.replace(manifest, durations=manifest.durations | durations())
    target.write_manifest(manifest)
    target.forget_jobs([*(record.path for record in manifest.files), *maps])
    return manifest


def finish_interrupted(target: TargetFolder, cancellation: Cancellation) -> Standing:
    """Bring a commit to its end that was interrupted while it replaced files: nothing else can make the target whole again.

    Returns:
        What is at the target then.
    """
    standing = target.observe()
    if not standing.committing:
        return standing
    for found in standing.unfinished:
        if found.committing and (ranks := target.job(found.job.digest).begun_commit()) is not None:
            commit_job(target, found.job, parse_ranks(ranks) if ranks else (), cancellation)
    return target.observe()


def refuse_loss(
    target: TargetFolder, standing: Standing, ranks: tuple[int, ...], every: tuple[int, ...], shape: tuple[str, int]
) -> None:
    """See `would_lose`.

    Raises:
        RequestError: they would.
    """
    if would_lose(target, standing, ranks, every, shape):
        raise RequestError(
            "PartialReplacement",
            f"{f'rank {format_ranks(ranks)} of {len(every)}' if ranks else 'an index'} cannot replace a complete checkpoint",
            where=target.store.url,
            fix="omit --ranks (spec.target.ranks), or choose another target",
        )


def would_lose(
    target: TargetFolder, standing: Standing, ranks: tuple[int, ...], every: tuple[int, ...], shape: tuple[str, int]
) -> bool:
    """Whether some ranks of a checkpoint, or an index, would take the place of ranks that are not among them.

    The `shape` is its kind of output and number of ranks: rank 0 of another one is something else.
    """
    if ranks and set(ranks) >= set(every):
        return False
    there = [found for found in (standing.manifest, *target.replaced(standing)) if found is not None and found.files]
    return any(shape_of(found) != shape or {record.rank for record in found.files} - set(ranks) for found in there)


def shape_of(manifest: Manifest) -> tuple[str, int]:
    """Its kind of output, and the number of target ranks."""
    return str(manifest.options.get("output")), manifest.target_ranks


def covers(manifest: Manifest | None, job: Job) -> bool:
    """Whether all ranks are there that are asked for."""
    return manifest is not None and set(job.scope) <= _ranks_in(manifest, job)


def _ranks_in(manifest: Manifest, job: Identity) -> set[int]:
    """The ranks whose files of this job a manifest lists."""
    return {record.rank for record in manifest.files if record.stage == job.stage}


def written_ranks(job: Identity, target: TargetFolder, standing: Standing) -> set[int]:
    """The ranks of a job that are finished, or of the complete checkpoint that it is to add to."""
    manifest = standing.own(job)
    before = _ranks_in(manifest, job) if manifest is not None else set()
    return before | target.job(job.digest).recorded_ranks()


def _is_index(draft: Manifest) -> bool:
    return draft.options.get("output") == "Index"


def ranks_of(draft: Manifest) -> tuple[int, ...]:
    """The ranks that get a file of what is being made."""
    if _is_index(draft):
        return ()
    if not draft.stages:
        return tuple(range(draft.target_ranks))
    return parse_ranks(draft.stages[0].ranks, draft.target_ranks) if draft.stages[0].ranks else ()


def _check_files(target: TargetFolder, document: JobDocument, manifest: Manifest, cancellation: Cancellation) -> None:
    """That the files of a finished part are still there.

    Raises:
        MissingInputError: one is not.
    """
    there = target.job(document.digest).locate(manifest.files, staged=document.staged, check=cancellation.check)
    for record in manifest.files:
        if record.path not in there:
            raise MissingInputError(
                "FileMissing",
                f"a finished file of stage {document.stage} was deleted",
                where=record.path,
                fix="run the transform of that stage again",
            )


def _inconsistent(target: TargetFolder, parts: list[Manifest], cancellation: Cancellation) -> frozenset[str]:
    """The parameters that several parts hold with different content, as the user accepts.

    A parameter that no strategy names is the same on all ranks of a part, so one rank is compared.

    Raises:
        DataError: the user does not accept it.
    """
    holders: dict[str, list[Manifest]] = defaultdict(list)
    for manifest in parts:
        for name in {parameter.name for parameter in manifest.parameters}:
            holders[name].append(manifest)
    shared = {p.name: p for manifest in parts for p in manifest.parameters if len(holders[p.name]) > 1}
    cut = {name: p for name, p in shared.items() if p.role == Role.CUT.value}
    paths: dict[int, dict[int, str]] = defaultdict(dict)
    for manifest in parts if shared else ():
        there = target.job(manifest.digest).locate(manifest.files, staged=True, check=cancellation.check)
        for record in manifest.files:
            paths[record.rank][manifest.stages[0].stage] = there.get(record.path, record.path)
    ranks = sorted(paths)
    store = CancellableStore(target.store, cancellation.check)

    def compare(rank: int) -> frozenset[str]:
        names = shared if rank == ranks[0] else cut
        if not names:
            return frozenset()
        inventory = read_inventory(store, Files(paths[rank]), workers=1)
        return check_stages(store, inventory, names, parts[0].options)

    return frozenset[str]().union(*parallel(compare, ranks, at_once=_COMPARED_AT_ONCE))


def recorded(
    target: TargetFolder,
    document: JobDocument,
    standing: Standing,
    ranks: tuple[int, ...] | None,
    cancellation: Cancellation,
    *,
    thorough: bool = False,
) -> dict[int, FileRecord]:
    """The finished ranks of a job, those of a manifest that it extends included."""
    state, manifest = target.job(document.digest), standing.own(document)
    known: dict[int, FileRecord] = {}
    if manifest is not None:
        known = {record.rank: record for record in manifest.files if record.stage == document.stage}
    known |= state.records(ranks, cancellation.check)
    there = state.locate(known.values(), staged=document.staged, thorough=thorough, check=cancellation.check)
    return {rank: found for rank, found in known.items() if found.path in there}


def maps_of(manifest: Manifest) -> dict[str, bytes]:
    """What lies beside unified files and says which parameter is in which.

    MindSpore reads the file of those in no strategy by itself. To Hugging Face's libraries it is one like the others: who has no
    map entry is not there, and such a parameter may well be one of the model's.
    """
    files = {record.rank: record.path for record in manifest.files}
    maps = {}
    for name in maps_beside(manifest.options):
        shown = [p for p in manifest.parameters if (path := files.get(p.target.stages[0])) and (path, name) != _NOT_MAPPED]
        if unknown := next((p for p in shown if p.dtype not in DTYPES), None):
            raise DataError(
                "UnknownType",
                f"the type {unknown.dtype[:32]!r} is unknown",
                where=f"parameter {unknown.name}",
                fix="use the version of reshard that wrote it",
            )
        nbytes = sum(prod(p.shape) * DTYPES[p.dtype].itemsize for p in shown)
        maps[name] = map_of({p.name: files[p.target.stages[0]] for p in shown}, nbytes)
    return maps
