"""Check that a strategy agrees with the manifest of a source."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from reshard.errors import DataError
from reshard.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reshard.checkpoint.manifest import LayoutRecord, ParameterRecord
    from reshard.strategy import Strategy


def refuse_other_cuts(
    parameters: Sequence[ParameterRecord], source: Strategy | None, where: str, written_as: Mapping[int, int]
) -> None:
    """Refuse a strategy that assigns a rank another slice of a parameter than the one in the rank's file.

    Args:
        parameters: records of the parameters in the manifest. Empty if the source has no manifest.
        source: source strategy. None means that each file holds whole parameters.
        where: source, for messages.
        written_as: rank in the manifest of each file that is read as another rank.

    Raises:
        DataError: the strategy differs.
    """
    for record in parameters:
        written, read = _written(record.target), _read(record, source)
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
    layout = Layout(record.device_matrix, record.tensor_map, record.shard_step, record.shard_size)
    return _cells(layout, record.stages)


@cache
def _cells(layout: Layout, stages: tuple[int, ...]) -> _Cells:
    return {stage * layout.devices + i: (layout.parts, cell) for stage in stages for i, cell in enumerate(layout.cells)}


def _read(record: ParameterRecord, source: Strategy | None) -> _Cells:
    """Return the slice that a strategy assigns to each rank. Parameters that no strategy names are whole."""
    ndim = len(record.shape)
    if source is None:
        return _cells(Layout.whole(ndim), (0,))
    stages = range(source.first, source.first + len(source.stages))
    named = [stage for stage in stages if record.name in source.stages[stage - source.first]]
    if not named:
        return _cells(Layout.whole(ndim, source.devices), tuple(stages))
    found: _Cells = {}
    for stage in named:
        found |= _cells(source.layout(stage, record.name, record.shape, sliced=False), (stage,))
    return found
