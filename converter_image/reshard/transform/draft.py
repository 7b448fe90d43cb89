"""Create the draft of a task's manifest, without the files, which are not written yet."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from reshard.checkpoint.manifest import (
    SCHEMA,
    KindRecord,
    LayoutRecord,
    Manifest,
    ParameterRecord,
    ParameterTable,
    SourceRecord,
    StageRecord,
)
from reshard.engine.task import keys_of
from reshard.plan import bytes_needed, unapplied, unmatched_patterns
from reshard.spec.ranks import format_ranks
from reshard.spec.request import request_key
from reshard.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reshard.engine.task import Task
    from reshard.layout import Layout
    from reshard.plan import Kind, Model


def draft_manifest(task: Task, durations: Mapping[str, float], fingerprints: Mapping[str, str] | None = None) -> Manifest:
    """Return the manifest of a task without files. The commit adds them, and needs nothing else of the source.

    Args:
        task: task of the manifest.
        durations: seconds of each phase so far.
        fingerprints: fingerprints that parameters must have, by name, see `transform.fingerprint_check`.
    """
    model = task.model
    source = SourceRecord(
        url=task.source.url,
        format=model.inventory.format,
        ranks=model.source_ranks,
        nbytes=sum(file.size for file in model.inventory.files),
        versions=model.inventory.versions,
        listing=task.listing,
        step=task.request.options.step,
        files=task.request.options.files,
        some=task.selected.some,
    )
    needed = bytes_needed(task.planner, task.ranks)
    return Manifest(
        schema=SCHEMA,
        version=__version__,
        digest=task.digest,
        source=source,
        format=task.output.name,
        ranks="",
        target_ranks=model.target_ranks,
        options=request_key(task.request),
        bytes_needed=needed.total,
        bytes_distinct=needed.distinct,
        files=(),
        parameters=_parameters(model, fingerprints or {}),
        source_only=model.source_only,
        target_only=model.target_only,
        not_in_files=model.not_in_files,
        zero_size=model.zero_size,
        objects=model.objects,
        carried=model.inventory.carried,
        excluded=model.excluded,
        excluded_by_rename=model.excluded_by_rename,
        inconsistent_replicas=tuple(sorted(model.inconsistent_replicas)),
        may_be_slices=model.may_be_slices,
        layout=task.layout,
        notes=task.notes,
        durations=dict(durations),
        stages=() if task.stage is None else (_stage(task, task.stage, source),),
    )


def _stage(task: Task, stage: int, source: SourceRecord) -> StageRecord:
    names, options = task.model.source_names, task.request.options
    return StageRecord(
        stage=stage,
        digest=task.digest,
        source=source,
        ranks=format_ranks(task.ranks),
        stage_count=task.selected.stages,
        in_other_stages=task.model.in_other_stages,
        unmatched=unapplied(names, options.rename),
        unmatched_patterns=unmatched_patterns(names, (*options.include, *options.exclude)),
    )


def _parameters(model: Model, fingerprints: Mapping[str, str]) -> ParameterTable:
    numbers = {kind: number for number, kind in enumerate(model.kinds)}
    changed = {kind: None if kind.cast is None else 0 for kind in numbers}
    nested = model.inventory.keys
    return ParameterTable(
        tuple(map(_kind, numbers)),
        tuple(
            [
                ParameterRecord(
                    p.name,
                    numbers[p.kind],
                    p.source_name if p.source_name != p.name else None,
                    (keys_of(model, p) or None) if nested else None,
                    changed[p.kind],
                    changed[p.kind],
                    fingerprints.get(p.name),
                )
                for p in model.parameters
            ]
        ),
    )


def _kind(kind: Kind) -> KindRecord:
    source = None
    if kind.source is not None and prod(kind.source.device_matrix) > 1:
        source = _layout(kind.source, kind.source_stages)
    return KindRecord(
        dtype=kind.target_dtype,
        shape=kind.target_shape,
        role=kind.role.value,
        source=source,
        target=_layout(kind.target, kind.target_stages),
        source_dtype=None if kind.cast is None else kind.dtype,
        source_shape=None if kind.new_shape is None else kind.shape,
    )


def _layout(layout: Layout, stages: tuple[int, ...]) -> LayoutRecord:
    return LayoutRecord(layout.device_matrix, layout.tensor_map, layout.shard_step, layout.shard_size, layout.uneven, stages)
