"""The strategy in the manifest of a checkpoint, and its comparison with a source strategy."""

from __future__ import annotations

from functools import cache
from math import prod
from typing import TYPE_CHECKING

from reshard.errors import DataError
from reshard.layout import Layout
from reshard.plan import Role
from reshard.strategy import Strategy
from reshard.strategy.file import check_tables

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reshard.checkpoint.manifest import LayoutRecord, Manifest, ParameterTable
    from reshard.plan import Model

_MOST_STAGES = 1 << 16
# Parameters in all stages together, in addition to one stage for each. Few are in several stages.
_MOST_ENTRIES = 1 << 19
_RESTORE = "restore the manifest, or move it to another folder and specify the strategy of the files"


def recorded_strategy(manifest: Manifest, where: str) -> Strategy | None:
    """Return the strategy of a checkpoint, by its manifest.

    It names the parameters that the target strategy named. Without such a strategy, it names those that are divided. All others
    are whole on every rank.

    Args:
        manifest: manifest of files that contain the slices of ranks.
        where: name of the manifest, for messages.

    Returns:
        The strategy. Its layouts may be uneven. None: the only rank has all parameters, or the layouts are not known.

    Raises:
        DataError: the manifest contradicts itself.
    """
    chunks = manifest.options.get("targetRanks") is not None
    kinds = [
        kind
        for kind in manifest.parameters.kinds
        if kind.role == Role.CUT.value and not (chunks and not any(kind.target.tensor_map))
    ]
    if not kinds:
        own = any(kind.role == Role.OWN.value for kind in manifest.parameters.kinds)
        return None if own or manifest.target_ranks == 1 else Strategy(({},), manifest.target_ranks)
    devices = prod(kinds[0].target.device_matrix)
    count, rest = divmod(manifest.target_ranks, max(devices, 1))
    layouts = {kind.target: layout_of(kind.target) for kind in kinds}
    entries = sum(len(manifest.parameters.kinds[record.kind].target.stages) for record in manifest.parameters.records)
    agree = entries <= _MOST_ENTRIES + len(manifest.parameters.records)
    agree = agree and all(layout.devices == devices for layout in layouts.values())
    if rest or not (agree and 1 <= count <= _MOST_STAGES and {s for each in layouts for s in each.stages} <= set(range(count))):
        raise DataError(
            "ManifestInvalid",
            "the layouts in the manifest do not match its ranks",
            where=where,
            fix=_RESTORE,
        )
    check_tables(set(layouts.values()), where)
    stages: tuple[dict[str, Layout], ...] = tuple({} for _ in range(count))
    evened = {
        kind: (layout.evened(kind.shape) or layout) if (layout := layouts[kind.target]).uneven else layout for kind in kinds
    }
    by_number = [evened.get(kind) for kind in manifest.parameters.kinds]  # comparing kinds takes long
    for record in manifest.parameters.records:
        if (found := by_number[record.kind]) is not None:
            for stage in manifest.parameters.kinds[record.kind].target.stages:
                stages[stage][record.name] = found
    return Strategy(stages, devices)


def refuse_other_shapes(manifest: Manifest, model: Model, where: str) -> None:
    """Refuse a manifest whose layouts do not lead to the shapes that it states for the parameters in its files.

    Args:
        manifest: manifest of the files.
        model: parameters in the files, with the layouts in the manifest.
        where: name of the manifest, for messages.

    Raises:
        DataError: a shape differs, or the manifest does not list a parameter.
    """
    shapes = {record.name: kind.shape for record, kind in manifest.parameters}
    for parameter in model.parameters:
        if (stated := shapes.get(parameter.source_name)) != parameter.shape:
            raise DataError(
                "ManifestInvalid",
                f"the slices in the files add up to the shape {list(parameter.shape)}, but the manifest states"
                f" {'no shape' if stated is None else list(stated)}",
                where=f"{where}: parameter {parameter.source_name}",
                fix=_RESTORE,
            )


def layout_of(record: LayoutRecord) -> Layout:
    """Return the layout in a manifest."""
    return Layout(record.device_matrix, record.tensor_map, record.shard_step, record.shard_size, record.uneven)


def refuse_other_cuts(parameters: ParameterTable, source: Strategy | None, where: str, written_as: Mapping[int, int]) -> None:
    """Refuse a strategy that assigns a rank another slice of a parameter than the one in the rank's file.

    Args:
        parameters: parameters in the manifest. Empty if the source has no manifest.
        source: source strategy. None means that each file holds whole parameters.
        where: source, for messages.
        written_as: rank in the manifest of each file that is read as another rank.

    Raises:
        DataError: the strategy differs.
    """
    for record, kind in parameters:
        written, read = _written(kind.target), _read(record.name, kind.shape, source)
        if written_as:
            written = {rank: written[own] for rank, own in written_as.items() if own in written}
        rank = next((rank for rank, cell in written.items() if read.get(rank, cell) != cell), None)
        if rank is None:
            continue
        (parts, _), (others, _) = written[rank], read[rank]
        raise DataError(
            "StrategyMismatch",
            f"the strategy contradicts the manifest about the slice in the file of rank {rank}"
            f" (slices by dimension: {list(parts)} in the manifest, {list(others)} in the strategy)",
            where=f"{where}: parameter {record.name}",
            fix="use the strategy that the source was written with (--source-strategy, spec.source.strategy); to read the files"
            " without their manifest, select them with --files (spec.source.files.pattern)",
        )


_Cells = dict[int, tuple[tuple[int, ...], tuple[int, ...]]]  # by rank: slices along each dimension, position of the slice


@cache
def _written(record: LayoutRecord) -> _Cells:
    return _cells(layout_of(record), record.stages)


@cache
def _cells(layout: Layout, stages: tuple[int, ...]) -> _Cells:
    return {stage * layout.devices + i: (layout.parts, cell) for stage in stages for i, cell in enumerate(layout.cells)}


def _read(name: str, shape: tuple[int, ...], source: Strategy | None) -> _Cells:
    """Return the slice that a strategy assigns to each rank. Parameters that no strategy names are whole."""
    ndim = len(shape)
    if source is None:
        return _cells(Layout.whole(ndim), (0,))
    stages = range(source.first, source.first + len(source.stages))
    named = [stage for stage in stages if name in source.stages[stage - source.first]]
    if not named:
        return _cells(Layout.whole(ndim, source.devices), tuple(stages))
    found: _Cells = {}
    for stage in named:
        found |= _cells(source.layout(stage, name, shape, sliced=False), (stage,))
    return found
