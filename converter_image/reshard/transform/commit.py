"""From finished ranks to a complete checkpoint."""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import TYPE_CHECKING

import msgspec

from reshard.checkpoint.dtypes import DTYPES
from reshard.checkpoint.manifest import (
    INDEX_NAME,
    MANIFEST_NAME,
    FileRecord,
    IndexRecord,
    Manifest,
)
from reshard.checkpoint.unified import HYPER_NAME, MAP_NAME, map_of, maps_beside
from reshard.errors import DataError, MissingInputError, RequestError
from reshard.plan import Role
from reshard.source.contents import compare_copies
from reshard.source.files import Files
from reshard.source.reading import read_inventory
from reshard.spec.ranks import format_ranks, parse_ranks
from reshard.storage.digest import ContentDigest, matches
from reshard.target.folder import LOCK, JobDocument
from reshard.target.lock import in_turn
from reshard.target.parts import all_there, unite, with_files

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet

    from reshard.engine.job import Job
    from reshard.target.folder import JobState, TargetFolder

_NOT_MAPPED = (HYPER_NAME, MAP_NAME)
_STRICTNESS = {"None": 0, "Sample": 1, "Full": 2}


def finished(job: Job, target: TargetFolder, state: JobState, *, thorough: bool = False) -> dict[int, FileRecord]:
    """The ranks of a job that are done: recorded, their file there, and verified as much as is asked for.

    `thorough` reads the files again, to find what has changed since.
    """
    wanted = _STRICTNESS[job.request.options.verification]
    document = state.read() or JobDocument(job.digest, job.key, staged=False, part=job.part, whole=job.whole)
    known = _recorded(target, state, document, job.scope, thorough=thorough)
    return {rank: record for rank, record in known.items() if _STRICTNESS[record.verified] >= wanted}


def commit_job(target: TargetFolder, state: JobState, document: JobDocument, wanted: tuple[int, ...] | None) -> Manifest:
    """Declare a job complete. To be called with the target's lock held; safe to repeat after a crash at any point.

    Args:
        target: where.
        state: of the job.
        document: of the job.
        wanted: the ranks that make it complete; None: all that get a file.

    Returns:
        The manifest of the checkpoint; of a part that is not the last its own, which is nowhere but among the unfinished yet.

    Raises:
        MissingInputError: a rank is not finished; or it was the last part, and all together lack a parameter.
        RequestError: only some ranks would take the place of a checkpoint.
    """
    draft = state.draft()
    every = _ranks_of(draft)
    there = frozenset(every)
    ranks = every if wanted is None else tuple(rank for rank in wanted if rank in there)
    if document.replaces:
        refuse_loss(target, state, ranks, every, shape_of(draft))
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
    if document.part is None:
        return _complete(target, state, document, ranks, manifest)
    with in_turn(target, f"{LOCK}-commit"):  # of two that are both the last, one completes the checkpoint
        state.finish_part(manifest)
        return _complete_with_siblings(target, state, document, ranks, manifest)


def _complete_with_siblings(
    target: TargetFolder, state: JobState, document: JobDocument, ranks: tuple[int, ...], own: Manifest
) -> Manifest:
    """Complete the checkpoint of which a finished job is a part, if the others are finished too."""
    known = own_manifest(target, document)
    if known is not None:  # some files of it were written again, or are there in addition
        others = [record for record in known.files if record.part != document.part]
        return _complete(target, state, document, ranks, with_files(known, [*others, *own.files]))
    parts = [own]
    for sibling in target.siblings(document.whole, document.part):
        if (finished := target.job(sibling.digest).finished_part()) is not None:
            _check_files(target, sibling, finished)
            parts.append(finished)
    if not all_there([part for manifest in parts for part in manifest.parts]):
        return own
    return _complete(target, state, document, ranks, unite(parts, _diverging(target, parts)))


def _complete(
    target: TargetFolder, state: JobState, document: JobDocument, ranks: tuple[int, ...], manifest: Manifest
) -> Manifest:
    """Declare a checkpoint complete, all of whose files are finished."""
    staged = [job for job in (document, *target.siblings(document.whole, document.part)) if job.staged]
    if staged:
        state.begin_commit(format_ranks(ranks))
        state.retire_old_manifest()
        for job in staged:
            for record in manifest.files:
                if record.part == job.part:
                    target.job(job.digest).publish(record)
    content = state.index() if _is_index(manifest) else None
    if content is not None:
        manifest = msgspec.structs.replace(manifest, index=IndexRecord(len(content), str(ContentDigest(content))))
    maps = _maps(manifest)
    _remove_replaced(target, state, kept={*(record.path for record in manifest.listed), *maps})
    for name, text in maps.items():
        target.store.write(name, text, mode=target.mode)
    if content is not None:
        target.store.write(INDEX_NAME, content, mode=target.mode)
    target.write_manifest(manifest)
    target.forget_jobs(record.path for record in manifest.files)
    return manifest


def finish_interrupted(target: TargetFolder) -> None:
    """Bring a commit to its end that was interrupted while it replaced files: nothing else can make the target whole again."""
    for document in target.jobs():
        state = target.job(document.digest)
        if (ranks := state.begun_commit()) is not None:
            commit_job(target, state, document, parse_ranks(ranks) if ranks else ())


def refuse_loss(
    target: TargetFolder, state: JobState, ranks: tuple[int, ...], every: tuple[int, ...], shape: tuple[str, int]
) -> None:
    """Some ranks of a checkpoint may not take the place of ranks that are not among them, nor may an index.

    The `shape` is its layout and how many ranks that has: rank 0 of another one is something else.

    Raises:
        RequestError: they would.
    """
    if ranks and set(ranks) >= set(every):
        return
    there = [found for found in (target.manifest(), *state.replaced()) if found is not None and found.files]
    if any(shape_of(found) != shape or {record.rank for record in found.files} - set(ranks) for found in there):
        raise RequestError(
            "PartialReplacement",
            f"{f'rank {format_ranks(ranks)} of {len(every)}' if ranks else 'an index'} cannot replace a whole checkpoint",
            where=target.store.url,
            fix="leave out --ranks (spec.target.ranks), or choose another target",
        )


def shape_of(manifest: Manifest) -> tuple[str, int]:
    """Its layout, and how many ranks that has."""
    return str(manifest.options.get("layout")), manifest.target_ranks


def own_manifest(target: TargetFolder, job: Job | JobDocument) -> Manifest | None:
    """The manifest at the target, if this job has made the checkpoint or a part of it, and no other part is being replaced."""
    manifest = target.manifest()
    if manifest is None or job.digest not in manifest.jobs:
        return None
    replaced = any(sibling.digest not in manifest.jobs for sibling in target.siblings(job.whole, job.part))
    return None if replaced else manifest


def covers(manifest: Manifest | None, job: Job) -> bool:
    """Whether all ranks are there that are asked for."""
    return manifest is not None and set(job.scope) <= _ranks_in(manifest, job)


def _ranks_in(manifest: Manifest, job: Job) -> set[int]:
    """The ranks whose files of this job a manifest lists."""
    return {record.rank for record in manifest.files if record.part == job.part}


def committed_ranks(job: Job, target: TargetFolder, state: JobState) -> tuple[int, ...]:
    """The ranks that a commit covers: those that were asked for, and those that are written already."""
    manifest = own_manifest(target, job)
    before = _ranks_in(manifest, job) if manifest is not None else set()
    return tuple(sorted({*job.scope, *before, *state.records(None)}))


def _is_index(draft: Manifest) -> bool:
    return draft.options.get("layout") == "Index"


def _ranks_of(draft: Manifest) -> tuple[int, ...]:
    """The ranks that get a file of what is being made."""
    if _is_index(draft):
        return ()
    if not draft.parts:
        return tuple(range(draft.target_ranks))
    return parse_ranks(draft.parts[0].ranks, draft.target_ranks) if draft.parts[0].ranks else ()


def _check_files(target: TargetFolder, document: JobDocument, manifest: Manifest) -> None:
    """That the files of a finished part are still there.

    Raises:
        MissingInputError: one is not.
    """
    state = target.job(document.digest)
    for record in manifest.files:
        if state.find(record, staged=document.staged) is None:
            raise MissingInputError(
                "FileMissing",
                f"a finished file of part {document.part} is gone",
                where=record.path,
                fix="run the transform of that stage again",
            )


def _diverging(target: TargetFolder, parts: list[Manifest]) -> frozenset[str]:
    """Parameters that several parts hold, and not alike. What no strategy names is alike on all ranks of a part."""
    holders: dict[str, list[Manifest]] = defaultdict(list)
    for manifest in parts:
        for name in {parameter.name for parameter in manifest.parameters}:
            holders[name].append(manifest)
    shared = {name for name, found in holders.items() if len(found) > 1}
    cut = {p.name for manifest in parts for p in manifest.parameters if p.name in shared and p.role == Role.CUT.value}
    found: set[str] = set()
    for number, rank in enumerate(sorted({record.rank for manifest in parts for record in manifest.files})):
        names = cut if number else shared
        if names:
            paths = {p.parts[0].stage: _where(target, p, r) for p in parts for r in p.files if r.rank == rank}
            inventory = read_inventory(target.store, Files(paths), workers=1)
            found |= compare_copies(target.store, inventory, names, workers=1)
    return frozenset(found)


def _where(target: TargetFolder, manifest: Manifest, record: FileRecord) -> str:
    state = target.job(manifest.digest)
    return state.find(record, staged=True) or record.path


def _recorded(
    target: TargetFolder, state: JobState, document: JobDocument, ranks: tuple[int, ...], *, thorough: bool = False
) -> dict[int, FileRecord]:
    """The finished ranks of a job, those of a manifest that it extends included."""
    manifest = own_manifest(target, document)
    known: dict[int, FileRecord] = {}
    if manifest is not None:
        known = {record.rank: record for record in manifest.files if record.part == document.part}
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
    begin(manifest.nbytes)
    maps = [name for name, content in _maps(manifest).items() if target.store.read(name, len(content) + 1) != content]

    def check(record: FileRecord | IndexRecord) -> str | None:
        reader = target.store.open(record.path)
        try:
            if reader.size != record.size:
                return f"{record.path} has {reader.size} bytes instead of {record.size}"
            same = matches(reader, record.digest, advance, remote=target.store.remote)
            return None if same else f"{record.path} has another content"
        finally:
            reader.close()

    with ThreadPoolExecutor(workers) as pool:
        damaged = [found for found in pool.map(check, manifest.listed) if found]
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


def _remove_replaced(target: TargetFolder, state: JobState, *, kept: AbstractSet[str]) -> None:
    """Take away the files of what this job replaces, a complete checkpoint or an unfinished job, that it has no file for."""
    for path in sorted(set(state.replaced_files()) - kept):
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
        if unknown := next((p for p in shown if p.dtype not in DTYPES), None):
            raise DataError("UnknownType", f"there is no type {unknown.dtype[:32]!r}", where=f"parameter {unknown.name}")
        nbytes = sum(prod(p.shape) * DTYPES[p.dtype].itemsize for p in shown)
        maps[name] = map_of({p.name: files[p.target.stages[0]] for p in shown}, nbytes)
    return maps
