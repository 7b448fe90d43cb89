"""Compare the parameters of a checkpoint with those of its source, by fingerprints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from reshard.checkpoint.manifest import MANIFEST_NAME, ParameterTable
from reshard.errors import BugError, DataError, listed
from reshard.plan import Role
from reshard.plan.rules import NamePattern
from reshard.source.described import read_manifest
from reshard.target.fingerprints import text_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reshard.checkpoint.manifest import Manifest
    from reshard.engine.task import Task
    from reshard.target.fingerprints import FingerprintSums


def expected_fingerprints(task: Task) -> dict[str, str]:
    """Return the fingerprints that parameters of the target must have, by name, as far as a manifest of the source states them.

    Parameters that are cast or padded have others in the target. Slices that are copied from the rank with the same number, and
    parameters whose copies may differ, have none. If the request selects files, they may have changed since the manifest.
    """
    options = task.request.options
    if options.files is not None or options.step is not None or task.source.stat(MANIFEST_NAME) is None:
        return {}
    manifest = read_manifest(task.source, {MANIFEST_NAME})
    if manifest is None or not {file.path for file in task.model.inventory.files} <= {file.path for file in manifest.files}:
        return {}
    known = {record.name: (kind, record.fingerprint) for record, kind in manifest.parameters if record.fingerprint is not None}
    found = {}
    for parameter in task.model.parameters:
        kind, fingerprint = known.get(parameter.source_name, (None, None))
        changed = parameter.cast is not None or parameter.new_shape is not None
        if kind is None or fingerprint is None or changed or parameter.role is Role.OWN or parameter.kind.per_rank:
            continue
        if (kind.dtype, kind.shape) == (parameter.dtype, parameter.shape):
            found[parameter.name] = fingerprint
    return found


def with_fingerprints(
    parameters: ParameterTable, sums: FingerprintSums, draft: Manifest, known: Manifest | None
) -> ParameterTable:
    """Return the parameters with the fingerprints of what was written, after a comparison with those of the source.

    Args:
        parameters: parameters of the checkpoint.
        sums: fingerprints in the records of the written ranks.
        draft: manifest of the task without files, with the fingerprints of the source.
        known: manifest that the task extends. None means that there is none.

    Raises:
        DataError: files of several ranks contain different copies of a slice.
        BugError: a parameter differs from the source.
    """
    _refuse_conflicts(draft, {conflict.name: conflict.ranks for conflict in sums.conflicts})
    found = {name: text_of(value) for name, value in sums.whole().items()}
    before = {} if known is None else {record.name: record.fingerprint for record in known.parameters.records}
    expected = {record.name: record.fingerprint for record in draft.parameters.records if record.fingerprint is not None}
    differing = [name for name, text in expected.items() if found.get(name, text) != text]
    if differing:
        raise BugError(
            "FingerprintsDiffer",
            f"the content that was written for {listed(differing)} has another fingerprint than in the manifest of the source",
            where=draft.source.url,
            fix="run `reshard verify` on the source, and restore it if it was changed; otherwise, check the storage for errors,"
            " delete the target and run the transform again",
        )
    return ParameterTable(
        parameters.kinds,
        tuple(
            msgspec.structs.replace(record, fingerprint=found.get(record.name, before.get(record.name)))
            for record in parameters.records
        ),
    )


def _refuse_conflicts(draft: Manifest, conflicts: Mapping[str, tuple[int, int]]) -> None:
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
