"""Commit finished ranks as a complete checkpoint."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import msgspec

from reshard.checkpoint.manifest import INDEX_NAME, FileRecord, IndexRecord, Manifest, ParameterTable
from reshard.errors import MissingInputError, RequestError
from reshard.parallel import parallel
from reshard.plan import Role
from reshard.source.files import Files
from reshard.source.reading import read_inventory
from reshard.spec.outputs import output_of
from reshard.spec.ranks import format_ranks, parse_ranks
from reshard.spec.request import STRICTNESS
from reshard.storage.cancellable import CancellableStore
from reshard.storage.digest import ContentDigest
from reshard.target.cast_losses import LossSums
from reshard.target.documents import LOCK
from reshard.target.fingerprint_sums import FingerprintSums
from reshard.target.lock import serialized
from reshard.target.parts import all_there, unite, with_files, with_losses
from reshard.target.snapshot import TaskRecord
from reshard.telemetry import durations, phase
from reshard.transform.consistency import SharedParameter, check_stages
from reshard.transform.documents import documents_of
from reshard.transform.fingerprint_check import with_fingerprints

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from reshard.engine.task import Task
    from reshard.progress import Cancellation
    from reshard.spec.request import Verification
    from reshard.target.folder import TargetFolder
    from reshard.target.snapshot import Identity, TargetSnapshot
    from reshard.target.task import RankRecord

_COMPARED_AT_ONCE = 8


def finished(
    task: Task, target: TargetFolder, snapshot: TargetSnapshot, cancellation: Cancellation, *, thorough: bool = False
) -> dict[int, FileRecord]:
    """Return the finished ranks of a task: those that are recorded, verified at the requested level, and have a file.

    With `thorough`, the files are read again to detect changes since they were recorded.
    """
    wanted = STRICTNESS[task.request.options.verification]
    document = snapshot.find_task(task.digest) or TaskRecord(
        task.digest, task.key, staged=False, stage=task.stage, whole=task.whole
    )
    known = recorded(target, document, snapshot, task.scope, cancellation, thorough=thorough)
    return {rank: record for rank, record in known.items() if STRICTNESS[record.verified] >= wanted}


@phase("commit")
def commit_task(
    target: TargetFolder,
    document: TaskRecord,
    snapshot: TargetSnapshot,
    wanted: tuple[int, ...] | None,
    cancellation: Cancellation,
    *,
    verification: Verification = "None",
) -> Manifest:
    """Commit a task. The target's lock must be held. Safe to repeat after a crash at any point.

    Args:
        target: target of the task.
        document: record of the task.
        snapshot: state of the target since the lock is held and all ranks are written.
        wanted: ranks that make the checkpoint complete. None means all that get a file.
        cancellation: object that cancels the commit from another thread. The next commit completes it.
        verification: ranks that are verified less than this count as not finished.

    Returns:
        The manifest of the checkpoint. For a stage that is not the last: the manifest of the stage, which remains with the
        unfinished tasks.

    Raises:
        DataError: files of several ranks contain different copies of a slice, or a parameter differs from the source.
        MissingInputError: a rank is not finished; or the stage was the last one, and all stages together lack a parameter.
        RequestError: only some ranks would replace a checkpoint.
    """
    manifest = _manifest_of(target, document, snapshot, wanted, cancellation, verification)
    if document.stage is None:
        return _complete(target, document, snapshot, manifest, cancellation)
    with serialized(target, f"{LOCK}-commit", cancellation.check):  # only one of two last stages completes the checkpoint
        target.task(document.digest).finish_stage(manifest)
        return _complete_with_siblings(target, document, manifest, cancellation)


def _manifest_of(
    target: TargetFolder,
    document: TaskRecord,
    snapshot: TargetSnapshot,
    wanted: tuple[int, ...] | None,
    cancellation: Cancellation,
    verification: Verification,
) -> Manifest:
    """Return the manifest of a task with its finished files, see `commit_task`."""
    state = target.task(document.digest)
    draft = state.draft()
    every = ranks_of(draft)
    ranks = every if wanted is None else tuple(sorted({*wanted} & {*every}))
    if document.replaces:
        refuse_loss(target, snapshot, ranks, every, shape_of(draft))
    table = draft.parameters
    kinds = (record.kind for record in table.records)
    extended = snapshot.manifest_for(document)
    before = _ranks_in(extended, document) if extended is not None else set()
    # Equal tasks make equal changes, so a file that was written again adds nothing to the numbers in the manifest.
    continued = extended.parameters if extended is not None and before <= {*ranks} else None
    losses = LossSums([record.name for record in table.records], before if continued is not None else ())
    fingerprints = FingerprintSums([kind.shape for kind in table.kinds], kinds, state.fingerprints, cancellation.check)

    def add(record: RankRecord) -> None:
        losses.add(record.file.rank, record.losses)
        fingerprints.add(record.file.rank, record.fingerprints)

    records = recorded(target, document, snapshot, ranks, cancellation, add=add)
    least = STRICTNESS[verification]
    missing = tuple(rank for rank in ranks if rank not in records or STRICTNESS[records[rank].verified] < least)
    if missing:
        raise ranks_unfinished(target, ranks, missing)
    files = tuple(records[rank] for rank in ranks)
    if continued is None and not {record.rank for record in files if record.rounded} <= losses.ranks:
        # The numbers of ranks that are left out are not known.
        parameters = ParameterTable(table.kinds, tuple([record.with_loss(None) for record in table.records]))
    else:
        parameters = with_losses(table if continued is None else continued, losses.by_name())
    parameters = with_fingerprints(parameters, fingerprints, draft, files, extended)
    return msgspec.structs.replace(
        draft, ranks=format_ranks(ranks), files=files, parameters=parameters, key_check=document.key_check
    )


def _complete_with_siblings(target: TargetFolder, document: TaskRecord, own: Manifest, cancellation: Cancellation) -> Manifest:
    """Complete the checkpoint that a finished task writes a stage of, if the other stages are finished too."""
    snapshot = target.observe()  # another stage may have been finished while this process waited for the lock
    known = snapshot.manifest_for(document)
    if known is not None:  # some of its files were written again or added
        written = {record.rank for record in {*own.files}.difference(known.files)}
        others = [record for record in known.files if record.stage != document.stage]
        rest = TaskRecord(known.digest, {}, staged=False)
        parts = [(document, own), *((rest, part) for part in _split(known) if part.stages[0].stage != document.stage)]
        differing = _inconsistent(target, parts, cancellation, only=written)
        united = msgspec.structs.replace(known, parameters=own.parameters if written else known.parameters)
        manifest = _with_inconsistent(with_files(united, [*others, *own.files]), differing)
        return _complete(target, document, snapshot, manifest, cancellation)
    parts = [(document, own)]
    for sibling in snapshot.siblings(document):
        if (finished := target.task(sibling.digest).finished_stage()) is not None:
            _check_files(target, sibling, finished, cancellation)
            parts.append((sibling, finished))
    if not all_there([part for _, manifest in parts for part in manifest.stages]):
        return own
    united = unite([manifest for _, manifest in parts])
    if not united.ranks:  # the stages were written for different ranks
        return own
    differing = _inconsistent(target, parts, cancellation)
    return _complete(target, document, snapshot, _with_inconsistent(united, differing), cancellation)


def _complete(
    target: TargetFolder, document: TaskRecord, snapshot: TargetSnapshot, manifest: Manifest, cancellation: Cancellation
) -> Manifest:
    """Complete a checkpoint after all its files are finished."""
    state = target.task(document.digest)
    staged = [task for task in (document, *snapshot.siblings(document)) if task.staged]
    if staged:
        state.begin_commit(format_ranks(tuple(record.rank for record in manifest.files if record.stage == document.stage)))
        state.retire_old_manifest()
        for task in staged:
            mine = [record for record in manifest.files if record.stage == task.stage]
            target.task(task.digest).publish(mine, cancellation.check)
        snapshot = snapshot.without_manifest(document.digest)
    content = None if output_of(manifest.options).writes_files else state.index()
    if content is not None:
        manifest = msgspec.structs.replace(manifest, index=IndexRecord(len(content), str(ContentDigest(content))))
    maps = documents_of(manifest)
    kept = {*(record.path for record in manifest.listed), *maps}
    state.take_away(sorted(target.replaced_files(snapshot, document.digest) - kept), prune=True)
    if maps:
        state.begin_documents()
    for file in manifest.carried:
        target.publish(file.path, [state.carried(file)], state.folder)
    for name, text in maps.items():
        target.publish(name, [text], state.folder)
    if content is not None:
        target.publish(INDEX_NAME, [content], state.folder)
    manifest = msgspec.structs.replace(manifest, durations=manifest.durations | durations())
    target.write_manifest(manifest, state.folder)
    digests = {document.digest, *(task.digest for task in snapshot.tasks)}
    target.forget_tasks(digests, [*(record.path for record in manifest.files), *(file.path for file in manifest.carried), *maps])
    return manifest


def ranks_unfinished(target: TargetFolder, ranks: Sequence[int], missing: Sequence[int]) -> MissingInputError:
    """Return the error for ranks that are not finished."""
    return MissingInputError(
        "RanksUnfinished",
        f"{len(missing)} of {len(ranks)} ranks are not finished or have changed: {format_ranks(tuple(missing))}",
        where=target.store.url,
        fix="run the transform for these ranks, then commit again",
    )


def finish_interrupted(target: TargetFolder, cancellation: Cancellation) -> TargetSnapshot:
    """Complete a commit that was interrupted while it replaced files. Otherwise the target would remain damaged.

    Returns:
        Snapshot of the target after that.
    """
    snapshot = target.observe()
    if not snapshot.committing:
        return snapshot
    for found in snapshot.unfinished:
        if found.committing and (ranks := target.task(found.task.digest).started_commit()) is not None:
            commit_task(target, found.task, snapshot, parse_ranks(ranks) if ranks else (), cancellation)
    return target.observe()  # the commit has written to it


def refuse_loss(
    target: TargetFolder, snapshot: TargetSnapshot, ranks: tuple[int, ...], every: tuple[int, ...], shape: tuple[str, int]
) -> None:
    """Refuse a commit that would remove ranks of a complete checkpoint, see `would_lose`.

    Raises:
        RequestError: ranks would be lost.
    """
    if would_lose(target, snapshot, ranks, every, shape):
        raise RequestError(
            "PartialReplacement",
            f"{f'rank {format_ranks(ranks)} of {len(every)}' if ranks else 'an index'} cannot replace a complete checkpoint",
            where=target.store.url,
            fix="omit --only-ranks (spec.target.onlyRanks), or choose another target" if ranks else "choose another target",
        )


def would_lose(
    target: TargetFolder, snapshot: TargetSnapshot, ranks: tuple[int, ...], every: tuple[int, ...], shape: tuple[str, int]
) -> bool:
    """Return whether some ranks of a checkpoint, or an index, would replace other ranks that they do not include.

    `shape` is the kind of output and the number of ranks: rank 0 of another shape is another rank.
    """
    if ranks and set(ranks) >= set(every):
        return False
    there = [found for found in (snapshot.manifest, *target.replaced(snapshot)) if found is not None and found.files]
    return any(shape_of(found) != shape or {record.rank for record in found.files} - set(ranks) for found in there)


def shape_of(manifest: Manifest) -> tuple[str, int]:
    """Return the kind of output and the number of target ranks."""
    return output_of(manifest.options).name, manifest.target_ranks


def covers(manifest: Manifest | None, task: Task) -> bool:
    """Return whether a manifest lists all requested ranks."""
    return manifest is not None and set(task.scope) <= _ranks_in(manifest, task)


def _ranks_in(manifest: Manifest, task: Identity) -> set[int]:
    """Return the ranks of this task whose files a manifest lists."""
    return {record.rank for record in manifest.files if record.stage == task.stage}


def written_ranks(task: Identity, target: TargetFolder, snapshot: TargetSnapshot) -> set[int]:
    """Return the finished ranks of a task, and those of the complete checkpoint that it extends."""
    manifest = snapshot.manifest_for(task)
    before = _ranks_in(manifest, task) if manifest is not None else set()
    return before | target.task(task.digest).recorded_ranks()


def ranks_of(draft: Manifest) -> tuple[int, ...]:
    """Return the ranks that get a file, by the draft of the manifest."""
    if not output_of(draft.options).writes_files:
        return ()
    if not draft.stages:
        return tuple(range(draft.target_ranks))
    return parse_ranks(draft.stages[0].ranks, draft.target_ranks) if draft.stages[0].ranks else ()


def _check_files(target: TargetFolder, document: TaskRecord, manifest: Manifest, cancellation: Cancellation) -> None:
    """Check that the files of a finished stage still exist.

    Raises:
        MissingInputError: a file does not exist.
    """
    there = target.task(document.digest).locate(manifest.files, staged=document.staged, check=cancellation.check)
    for record in manifest.files:
        if record.path not in there:
            raise MissingInputError(
                "FileMissing",
                f"a finished file of stage {document.stage} was deleted",
                where=record.path,
                fix="run the transform of that stage again",
            )


def _with_inconsistent(manifest: Manifest, names: frozenset[str]) -> Manifest:
    """Return a manifest that also lists these parameters as inconsistent."""
    return msgspec.structs.replace(manifest, inconsistent_replicas=tuple(sorted(names.union(manifest.inconsistent_replicas))))


def _split(manifest: Manifest) -> list[Manifest]:
    """Return the manifests of the stages of a checkpoint. Each lists the parameters of all stages."""
    return [
        msgspec.structs.replace(manifest, stages=(part,), files=tuple(r for r in manifest.files if r.stage == part.stage))
        for part in manifest.stages
    ]


def _inconsistent(
    target: TargetFolder,
    parts: Sequence[tuple[TaskRecord, Manifest]],
    cancellation: Cancellation,
    *,
    only: Collection[int] | None = None,
) -> frozenset[str]:
    """Return the parameters that several stages hold with different content, which the request accepts.

    A parameter that no strategy names is equal on all ranks of a stage, so one file of each stage is compared. The ranks of the
    files may differ: the stages may be written for different ranks so far.

    Args:
        target: target of the stages.
        parts: manifests of the stages, and the tasks that wrote them.
        cancellation: object that cancels the comparison from another thread.
        only: ranks whose slices are compared. None means all, and the parameters that no strategy names.

    Raises:
        DataError: the request does not accept the difference.
    """
    manifests = [manifest for _, manifest in parts]
    count = Counter(name for manifest in manifests for name in {parameter.name for parameter in manifest.parameters.records})
    shared = {
        p.name: SharedParameter(p.source_name or p.name, kind.role == Role.CUT.value)
        for manifest in manifests
        for p, kind in manifest.parameters
        if count[p.name] > 1
    }
    cut = {name: found for name, found in shared.items() if found.named}
    paths: dict[int, dict[int, str]] = defaultdict(dict)
    for document, manifest in parts if shared else ():
        files = [record for record in manifest.files if only is None or record.rank in only]
        there = target.task(document.digest).locate(files, staged=document.staged, check=cancellation.check)
        for record in files:
            if record.path in there:
                paths[record.rank][manifest.stages[0].stage] = there[record.path]
    compared = [(paths[rank], cut) for rank in sorted(paths)]
    if only is None and compared:
        lowest = {stage: path for rank in sorted(paths, reverse=True) for stage, path in paths[rank].items()}
        if lowest == compared[0][0]:
            compared[0] = (lowest, shared)
        else:
            compared.append((lowest, {name: found for name, found in shared.items() if name not in cut}))
    store = CancellableStore(target.store, cancellation.check)

    def compare(each: tuple[dict[int, str], dict[str, SharedParameter]]) -> frozenset[str]:
        files, names = each
        inventory = read_inventory(store, Files(files), workers=1)
        return check_stages(store, inventory, names, manifests[0].options)

    several = [(files, names) for files, names in compared if len(files) > 1 and names]
    return frozenset[str]().union(*parallel(compare, several, at_once=_COMPARED_AT_ONCE))


def recorded(
    target: TargetFolder,
    document: TaskRecord,
    snapshot: TargetSnapshot,
    ranks: tuple[int, ...] | None,
    cancellation: Cancellation,
    *,
    thorough: bool = False,
    add: Callable[[RankRecord], None] | None = None,
) -> dict[int, FileRecord]:
    """Return the finished ranks of a task, including those of a manifest that it extends.

    `add` gets the records that are not yet a part of a manifest, which does not contain all that they do.
    """
    state, manifest = target.task(document.digest), snapshot.manifest_for(document)
    known: dict[int, FileRecord] = {}
    if manifest is not None:
        known = {record.rank: record for record in manifest.files if record.stage == document.stage}
    known |= state.records(ranks, cancellation.check, add)
    there = state.locate(known.values(), staged=document.staged, thorough=thorough, check=cancellation.check)
    return {rank: found for rank, found in known.items() if found.path in there}
