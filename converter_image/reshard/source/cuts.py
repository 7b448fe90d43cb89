"""Check that the files and the strategy of a source are all of those that its manifest says it was written with."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from reshard.errors import DataError, RequestError
from reshard.layout import Layout
from reshard.spec.ranks import format_ranks

if TYPE_CHECKING:
    from reshard.checkpoint.manifest import LayoutRecord, ParameterRecord
    from reshard.source.files import Files
    from reshard.strategy import Strategy


def refuse_part(found: Files, devices: int, where: str) -> None:
    """Refuse files as a complete checkpoint if their manifest says that they are only some of its ranks.

    Args:
        found: files of the source.
        devices: number of ranks that the source strategy describes. 1 without a strategy.
        where: source, for messages.

    Raises:
        RequestError: the file of one rank would be read as a complete checkpoint.
        DataError: the strategy describes another number of ranks.
    """
    listed, total = len(found.by_rank), found.total
    if not found.some and (listed >= total or devices == total):
        return
    ranks = format_ranks(tuple(sorted(found.written_as.get(rank, rank) for rank in found.by_rank)))
    if listed == 1 and (devices == 1 or found.some):
        what = f"rank {ranks} of {total}" if total > 1 else "one of several ranks"
        raise RequestError(
            "OneRankOfSeveral",
            f"the manifest says that the file belongs to {what}",
            where=where,
            fix="use a checkpoint with all ranks, with their strategy (--source-strategy, spec.source.strategy); if this rank"
            " has whole parameters, add --allow-single-rank (spec.source.allowSingleRank) without a source strategy",
        )
    if devices == 1 and not found.some:
        return  # several files without a strategy are refused in any case
    raise DataError(
        "SourceRanksMismatch",
        f"the manifest lists ranks {ranks} of "
        + (f"{total}, but the source strategy describes {devices}" if not found.some else "a checkpoint with more ranks"),
        where=where,
        fix="use a checkpoint with all ranks, and the strategy that it was written with (--source-strategy,"
        " spec.source.strategy)",
    )


def refuse_other_cuts(found: Files, source: Strategy | None, where: str) -> None:
    """Refuse a strategy that assigns to a rank another slice of a parameter than its file was written with.

    Args:
        found: files of the source, with the records of the parameters in their manifest.
        source: source strategy. None: each file holds whole parameters.
        where: source, for messages.

    Raises:
        DataError: the strategy differs.
    """
    for record in found.parameters:
        written, read = _written(record.target), _read(record, source)
        if found.written_as:
            written = {rank: written[own] for rank, own in found.written_as.items() if own in written}
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
