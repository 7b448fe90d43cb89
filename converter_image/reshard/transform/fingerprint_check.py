"""Compare the parameters of a checkpoint with those of its source, by fingerprints."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise, starmap
from operator import attrgetter, eq
from typing import TYPE_CHECKING

import msgspec

from reshard.checkpoint.manifest import MANIFEST_NAME, ParameterTable
from reshard.checkpoint.unified import is_map
from reshard.errors import DataError, listed
from reshard.plan import Role
from reshard.plan.rules import NamePattern
from reshard.source.described import listed_and_unchanged, read_manifest
from reshard.spec.ranks import format_ranks
from reshard.storage import parent_and_name
from reshard.target.documents import check_manifest
from reshard.target.fingerprint_sums import texts_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reshard.checkpoint.manifest import FileRecord, Manifest, ParameterRecord
    from reshard.engine.task import Task
    from reshard.target.fingerprint_sums import FingerprintSums


def expected_fingerprints(task: Task) -> dict[str, str]:
    """Return the fingerprints that parameters of the target must have, by name, as far as a manifest of the source states them.

    Parameters that are cast or padded have others in the target. Slices that are copied from the rank with the same number, and
    parameters whose copies may differ, have none. Neither have names of several tensors. If the request selects files, or
    names a file or an index of files that have changed, the manifest does not describe them.

    Raises:
        DataError: the manifest of the source has changed.
    """
    options = task.request.options
    if options.files is not None or options.step is not None or task.source.stat(MANIFEST_NAME) is None:
        return {}
    manifest = read_manifest(task.source, {MANIFEST_NAME})
    inventory = task.model.inventory
    paths = {file.path for file in inventory.files[: len(inventory.files) - inventory.documents]}
    if manifest is None or not paths <= {file.path for file in manifest.files}:
        return {}
    chosen = parent_and_name(task.request.source)[1]
    if (is_map(chosen) or chosen in paths) and listed_and_unchanged(task.source, manifest, paths) != paths:
        return {}
    fingerprints = stated_fingerprints(manifest)
    if not fingerprints:
        return {}
    check_manifest(task.source, fix="restore the file, or write the source again")
    known = {record.name: kind for record, kind in manifest.parameters}
    found = {}
    for parameter in task.model.parameters:
        name = parameter.source_name
        changed = parameter.cast is not None or parameter.new_shape is not None
        if name not in fingerprints or changed or parameter.role is Role.OWN or parameter.kind.per_rank:
            continue
        kind = known[name]
        if (kind.dtype, kind.shape) == (parameter.dtype, parameter.shape):
            found[parameter.name] = fingerprints[name]
    return found


def stated_fingerprints(manifest: Manifest) -> dict[str, str]:
    """Return the fingerprints in a manifest by name. Names of several tensors are left out."""
    count = Counter(record.name for record in manifest.parameters.records)
    stated = ((record.name, record.fingerprint) for record in manifest.parameters.records if count[record.name] == 1)
    return {name: text for name, text in stated if text is not None}


def with_fingerprints(
    parameters: ParameterTable, sums: FingerprintSums, draft: Manifest, files: Sequence[FileRecord], known: Manifest | None
) -> ParameterTable:
    """Return the parameters with the fingerprints of what was written, after a comparison with those of the source.

    If files were added to those of a manifest, nothing compares their slices with those of the earlier files. A parameter keeps
    its fingerprint only if both have all of its elements, and are equal.

    Args:
        parameters: parameters of the checkpoint.
        sums: fingerprints in the records of the written ranks.
        draft: manifest of the task without files, with the fingerprints of the source.
        files: files of the task.
        known: manifest that the task extends. None means that there is none.

    Raises:
        DataError: files of several ranks contain different copies of a slice, or a parameter differs from the source.
    """
    records = draft.parameters.records
    _refuse_conflicts(draft, {records[number].name: ranks for number, ranks in sums.conflicts.items()})
    found = _written(records, sums)
    differing = [
        record.name
        for record, text in zip(records, found, strict=True)
        if record.fingerprint is not None and text is not None and record.fingerprint != text
    ]
    if differing:
        raise DataError(
            "FingerprintsDiffer",
            f"the content that was written for {listed(differing)} has another fingerprint than in the manifest of the source",
            where=draft.source.url,
            fix="run `reshard verify` on the source, and restore it if it was changed; otherwise, check the storage for errors,"
            " delete the target and run the transform again",
        )
    if known is None:
        stated = zip(parameters.records, found, strict=True)
        return ParameterTable(
            parameters.kinds, tuple([msgspec.structs.replace(record, fingerprint=text) for record, text in stated])
        )
    return _extended(parameters, dict(zip((record.name for record in records), found, strict=True)), draft, files, known)


def _written(records: Sequence[ParameterRecord], sums: FingerprintSums) -> list[str | None]:
    """Return the fingerprint of each parameter that was written whole. Tensors with the same name have one if it is equal."""
    values, valid = sums.whole()
    found = [text if is_valid else None for text, is_valid in zip(texts_of(values), valid.tolist(), strict=True)]
    if not any(starmap(eq, pairwise(sorted(map(attrgetter("name"), records))))):  # a set would take more memory
        return found
    texts = defaultdict[str, set[str | None]](set)
    for record, text in zip(records, found, strict=True):
        texts[record.name].add(text)
    return [text if len(texts[record.name]) == 1 else None for record, text in zip(records, found, strict=True)]


def _extended(
    parameters: ParameterTable,
    found: Mapping[str, str | None],
    draft: Manifest,
    files: Sequence[FileRecord],
    known: Manifest,
) -> ParameterTable:
    """Return the parameters of a checkpoint whose files were added to those of a manifest, see `with_fingerprints`."""
    stages = {file.stage for file in files}
    before = {(file.rank, file.stage): file.digest for file in known.files if file.stage in stages}
    if before == {(file.rank, file.stage): file.digest for file in files}:
        return parameters
    earlier = stated_fingerprints(known)
    added = format_ranks(tuple(file.rank for file in files if before.get((file.rank, file.stage)) != file.digest))
    differing = [name for name, text in found.items() if text is not None and earlier.get(name, text) != text]
    _refuse_conflicts(draft, dict.fromkeys(differing, (format_ranks(tuple(sorted(rank for rank, _ in before))), added)))
    return ParameterTable(
        parameters.kinds,
        tuple(
            # The others belong to other stages.
            msgspec.structs.replace(record, fingerprint=_equal(found[record.name], earlier.get(record.name)))
            if record.name in found
            else record
            for record in parameters.records
        ),
    )


def _equal(one: str | None, other: str | None) -> str | None:
    return one if one == other else None


def _refuse_conflicts(draft: Manifest, conflicts: Mapping[str, tuple[object, object]]) -> None:
    """Refuse target ranks that have different copies of a slice, unless the request accepts that or each rank has its own."""
    if not conflicts:
        return
    patterns = [NamePattern(pattern) for pattern in draft.options["allowInconsistent"]]
    for record, kind in draft.parameters:
        source_name = record.source_name or record.name
        accepted = kind.role == Role.OWN.value or record.name in draft.inconsistent_replicas
        if record.name not in conflicts or accepted or any(pattern.matches(source_name) for pattern in patterns):
            continue
        first, second = conflicts[record.name]
        raise DataError(
            "ReplicasDiffer",
            f"target ranks {first} and {second} got different copies of the same slice, because replicas in the source differ",
            where=f"parameter {record.name}",
            fix="run the transform again with --verification full (spec.verification: Full), which names the source ranks, or"
            " read each slice from the lowest rank with --replicas lowest-rank (spec.source.replicas: LowestRank)",
        )
