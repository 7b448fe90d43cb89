"""Combine the stages of a checkpoint that is written stage by stage."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import TYPE_CHECKING

import msgspec

from reshard.checkpoint.manifest import Loss, Manifest, ParameterTable, SourceRecord
from reshard.errors import MissingInputError, RequestError, listed
from reshard.spec.ranks import format_ranks, parse_ranks

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from reshard.checkpoint.manifest import FileRecord, KindRecord, ParameterRecord, StageRecord
    from reshard.spec.rules import RenameRule


def all_there(parts: Sequence[StageRecord]) -> bool:
    """Return whether the records of different stages make up a complete checkpoint.

    The number of stages decides, if one of the records has it (the largest if they differ, so that the checkpoint is never
    completed too early). Otherwise, the stages must hold all names in the target strategy together.
    """
    stages = max((record.stage_count or 0 for record in parts), default=0)
    if stages:
        return len({part.stage for part in parts} & set(range(stages))) == stages
    return bool(parts) and not _uncovered(parts)


def is_whole(manifest: Manifest) -> bool:
    """Return whether a manifest describes a complete checkpoint, rather than a stage of an unfinished one."""
    return not manifest.stages or all_there(manifest.stages)


def final_notes(manifest: Manifest) -> tuple[str, ...]:
    """Return the notes that are only known once all ranks and stages of a checkpoint are finished."""
    notes = []
    if all_there(manifest.stages):
        notes += [f"the rename rule for {rule.pattern} applies to no parameter" for rule in _unapplied(manifest.stages)]
        notes += [f"the pattern {pattern} matches no parameter" for pattern in _unmatched_patterns(manifest.stages)]
    losses = losses_of(manifest)
    if losses:
        changed = [f"{name} ({loss.rounded:,})" for name, loss in losses.items()]
        notes.append(f"casts changed {sum(loss.rounded for loss in losses.values()):,} elements: {listed(changed)}")
    if overflows := [f"{name} ({loss.overflowed:,})" for name, loss in losses.items() if loss.overflowed]:
        notes.append(f"casts made finite elements infinite, as they are too large for the new type: {listed(overflows)}")
    return tuple(notes)


def losses_of(manifest: Manifest) -> dict[str, Loss]:
    """Return the changes of the parameters of which casts have changed elements, by name, in order of names."""
    found: dict[str, Loss] = {}
    for parameter in manifest.parameters.records:
        if (loss := parameter.loss) is not None and loss.rounded:
            found[parameter.name] = found.get(parameter.name, Loss()).plus(loss)
    return dict(sorted(found.items()))


def with_losses(parameters: ParameterTable, losses: Mapping[str, Loss]) -> ParameterTable:
    """Return parameters with further changes of casts, by name."""
    left = dict(losses)
    if not left:
        return parameters

    def changed(parameter: ParameterRecord) -> ParameterRecord:
        loss = parameter.loss
        if loss is None or parameter.name not in left:
            return parameter
        return parameter.with_loss(loss.plus(left.pop(parameter.name)))

    return ParameterTable(parameters.kinds, tuple(map(changed, parameters.records)))


def unite(manifests: Sequence[Manifest]) -> Manifest:
    """Return the manifest of a checkpoint, given the manifests of all its stages.

    Args:
        manifests: manifests of the stages, each with the record of one stage.

    Raises:
        MissingInputError: no stage holds a name in the target strategy, and the request does not allow it, or no stage holds a
            parameter in a rename rule.
        RequestError: parameters of two stages are renamed to one name.
    """
    manifests = sorted(manifests, key=lambda manifest: manifest.stages[0].stage)
    parts = [part for manifest in manifests for part in manifest.stages]
    first, held = manifests[0], _origins(manifests).values()
    uncovered = _uncovered(parts)
    if uncovered and not first.options["allowMissing"]:
        names = sorted(uncovered)
        raise MissingInputError(
            "ParameterMissing",
            f"none of the {len(parts)} stages holds these parameters of the strategy: {listed(names)}",
            where="target strategy",
            fix="specify the number of stages (--stages, spec.source.stages), use matching strategies,"
            " or skip these parameters with --allow-missing (spec.parameters.allowMissing)",
        )
    unused = _unapplied(parts)
    if (absentee := next((rule.name for rule in unused if rule.name is not None), None)) is not None:
        raise MissingInputError(
            "RenamedMissing",
            f"a rename rule names this parameter, but none of the {len(parts)} stages holds it",
            where=f"parameter {absentee}",
            fix="list the parameters with `reshard inspect`, or specify the number of stages (--stages, spec.source.stages)",
        )
    absent = _names(manifest.not_in_files for manifest in manifests)
    united = msgspec.structs.replace(
        first,
        digest=hashlib.sha256(" ".join(part.digest for part in parts).encode()).hexdigest(),
        source=SourceRecord(
            url=first.source.url,
            format=first.source.format,
            ranks=sum(part.source.ranks for part in parts),
            nbytes=sum(part.source.nbytes for part in parts),
        ),
        bytes_needed=sum(manifest.bytes_needed for manifest in manifests),
        bytes_distinct=sum(manifest.bytes_distinct for manifest in manifests),
        parameters=_parameters(manifests),
        source_only=_names(manifest.source_only for manifest in manifests),
        excluded=_names(manifest.excluded for manifest in manifests),
        excluded_by_rename=_names(manifest.excluded_by_rename for manifest in manifests),
        target_only=_names([*(manifest.target_only for manifest in manifests), uncovered]),
        not_in_files=tuple(name for name in absent if name not in held),
        zero_size=_names(manifest.zero_size for manifest in manifests),
        inconsistent_replicas=_names(manifest.inconsistent_replicas for manifest in manifests),
        may_be_slices=_names(manifest.may_be_slices for manifest in manifests),
        notes=tuple(dict.fromkeys(note for manifest in manifests for note in manifest.notes)),
        durations={},
        stages=tuple(
            msgspec.structs.replace(part, in_other_stages=(), unmatched=unused, unmatched_patterns=_unmatched_patterns(parts))
            for part in parts
        ),
    )
    return with_files(united, [record for manifest in manifests for record in manifest.files])


def _parameters(manifests: Sequence[Manifest]) -> ParameterTable:
    """Return the parameters of all stages. Equal parameters of several stages are one, with the changes of casts in all."""
    kinds: dict[KindRecord, int] = {}
    found: dict[ParameterRecord, Loss | None] = {}
    fingerprints: dict[ParameterRecord, set[str | None]] = defaultdict(set)
    for parameter, kind in (pair for manifest in manifests for pair in manifest.parameters):
        number = kinds.setdefault(kind, len(kinds))
        loss = parameter.loss
        plain = msgspec.structs.replace(parameter, kind=number, rounded=None, overflowed=None, fingerprint=None)
        fingerprints[plain].add(parameter.fingerprint)
        before = found.setdefault(plain, None)
        if loss is not None:
            found[plain] = (before or Loss()).plus(loss)
    records = (
        msgspec.structs.replace(
            parameter if loss is None else parameter.with_loss(loss),
            fingerprint=fingerprints[parameter].pop() if len(fingerprints[parameter]) == 1 else None,
        )
        for parameter, loss in found.items()
    )
    return ParameterTable(tuple(kinds), tuple(records))


def _origins(manifests: Sequence[Manifest]) -> dict[str, str]:
    """Return the source name of each parameter."""
    found: dict[str, str] = {}
    for parameter in (parameter for manifest in manifests for parameter in manifest.parameters.records):
        origin = parameter.source_name or parameter.name
        if (other := found.setdefault(parameter.name, origin)) != origin:
            raise RequestError(
                "NamesClash",
                f"{other} and {origin} of different stages would both be renamed to {parameter.name}",
                where="rename",
                fix="give one of them another name, in the transforms of all stages",
            )
    return found


def with_files(manifest: Manifest, files: Iterable[FileRecord]) -> Manifest:
    """Return a manifest with these files. A rank is listed once it has the files of all stages that hold parameters for it."""
    manifest = msgspec.structs.replace(manifest, files=tuple(sorted(files, key=lambda record: (record.rank, record.stage or 0))))
    return msgspec.structs.replace(manifest, ranks=listed_ranks(manifest))


def listed_ranks(manifest: Manifest) -> str:
    """Return the ranks all of whose files a manifest lists, such as "0-5"."""
    if not manifest.stages:
        return format_ranks(tuple(sorted({record.rank for record in manifest.files})))
    here = {(record.rank, record.stage) for record in manifest.files}
    lacking = {rank for part in manifest.stages for rank in _ranks_of(part) if (rank, part.stage) not in here}
    return format_ranks(tuple(rank for rank in range(manifest.target_ranks) if rank not in lacking))


def _ranks_of(part: StageRecord) -> tuple[int, ...]:
    return parse_ranks(part.ranks) if part.ranks else ()


def _uncovered(parts: Sequence[StageRecord]) -> set[str]:
    """Return the names in the target strategy that no stage holds."""
    return set(parts[0].in_other_stages).intersection(*(part.in_other_stages for part in parts[1:]))


def _unapplied(parts: Sequence[StageRecord]) -> tuple[RenameRule, ...]:
    """Return the rename rules that apply in no stage."""
    first, *others = (part.unmatched for part in parts)
    common = set(first).intersection(*others)
    return tuple(rule for rule in first if rule in common)


def _unmatched_patterns(parts: Sequence[StageRecord]) -> tuple[str, ...]:
    """Return the patterns that match in no stage."""
    first, *others = (part.unmatched_patterns for part in parts)
    common = set(first).intersection(*others)
    return tuple(pattern for pattern in first if pattern in common)


def _names(several: Iterable[Collection[str]]) -> tuple[str, ...]:
    return tuple(sorted({name for names in several for name in names}))
