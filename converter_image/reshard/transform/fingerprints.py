"""Compare the parameters of a checkpoint with those of its source, by fingerprints."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from reshard.checkpoint.manifest import MANIFEST_NAME, ParameterTable
from reshard.errors import DataError, listed
from reshard.plan import Role
from reshard.plan.rules import NamePattern
from reshard.source.described import read_manifest
from reshard.spec.ranks import format_ranks
from reshard.target.documents import check_manifest
from reshard.target.fingerprints import text_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reshard.checkpoint.manifest import FileRecord, Manifest
    from reshard.engine.task import Task
    from reshard.target.fingerprints import FingerprintSums


def expected_fingerprints(task: Task) -> dict[str, str]:
    """Return the fingerprints that parameters of the target must have, by name, as far as a manifest of the source states them.

    Parameters that are cast or padded have others in the target. Slices that are copied from the rank with the same number, and
    parameters whose copies may differ, have none. Neither have names of several tensors. If the request selects files, they may
    have changed since the manifest.

    Raises:
        DataError: the manifest of the source has changed.
    """
    options = task.request.options
    if options.files is not None or options.step is not None or task.source.stat(MANIFEST_NAME) is None:
        return {}
    manifest = read_manifest(task.source, {MANIFEST_NAME})
    if manifest is None or not {file.path for file in task.model.inventory.files} <= {file.path for file in manifest.files}:
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
    _refuse_conflicts(draft, {conflict.name: conflict.ranks for conflict in sums.conflicts})
    found = {name: text_of(value) for name, value in sums.whole().items()}
    expected = {record.name: record.fingerprint for record in draft.parameters.records if record.fingerprint is not None}
    differing = [name for name, text in expected.items() if found.get(name, text) != text]
    if differing:
        raise DataError(
            "FingerprintsDiffer",
            f"the content that was written for {listed(differing)} has another fingerprint than in the manifest of the source",
            where=draft.source.url,
            fix="run `reshard verify` on the source, and restore it if it was changed; otherwise, check the storage for errors,"
            " delete the target and run the transform again",
        )
    if known is not None:
        stages = {file.stage for file in files}
        before = {(file.rank, file.stage): file.digest for file in known.files if file.stage in stages}
        if before == {(file.rank, file.stage): file.digest for file in files}:
            return parameters
        earlier = stated_fingerprints(known)
        added = format_ranks(tuple(file.rank for file in files if before.get((file.rank, file.stage)) != file.digest))
        differing = [name for name, text in found.items() if earlier.get(name, text) != text]
        _refuse_conflicts(draft, dict.fromkeys(differing, (format_ranks(tuple(sorted(rank for rank, _ in before))), added)))
        found = {name: text for name, text in found.items() if earlier.get(name) == text}
    written = {record.name for record in draft.parameters.records}  # the others belong to other stages
    return ParameterTable(
        parameters.kinds,
        tuple(
            msgspec.structs.replace(record, fingerprint=found.get(record.name)) if record.name in written else record
            for record in parameters.records
        ),
    )


def _refuse_conflicts(draft: Manifest, conflicts: Mapping[str, tuple[object, object]]) -> None:
    """Refuse target ranks that have different copies of a slice, unless the request accepts that or each rank has its own."""
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
