"""Refuse source ranks that hold the same content although the strategy gives them different slices."""

from __future__ import annotations

from collections import defaultdict
from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING

import xxhash

from reshard.checkpoint.dtypes import DTYPES
from reshard.errors import DataError
from reshard.parallel import parallel
from reshard.plan.copies import equal_files
from reshard.plan.slice_blocks import SliceBlock, Slices
from reshard.spec.ranks import format_ranks
from reshard.storage.ahead import files_at_once, prefetched

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reshard.plan import Model
    from reshard.spec.request import Options
    from reshard.storage.protocol import ReadStore

_MOST_RANKS = 4096
_MOST_REMOTE_RANKS = 64
_MOST_REMOTE_RANKS_OF_ONE = 16  # when only one target rank is written, other processes read the same source at the same time
_FILE_AHEAD = 8 << 20
# Blocks whose distinct elements have fewer bytes, such as two of type Bool, may be equal by chance.
_LEAST_EVIDENCE = 8


def check_slices(store: ReadStore, model: Model, options: Options, *, workers: int, single: bool = False) -> None:
    """Compare a block of each of the largest sharded parameters between the ranks of a pipeline stage.

    Ranks are refused if all these blocks are equal, and at least one block that is not constant belongs to different slices.

    Args:
        store: store of the source.
        model: parameters and their layouts.
        options: options of the request.
        workers: number of files read at a time.
        single: whether only one target rank is written, instead of the ranks in the options.

    Raises:
        DataError: ranks hold the same content instead of different slices.
    """
    if options.allow_equal_slices:
        return
    slices, paths = Slices(model), {file.rank: file.path for file in model.inventory.files}
    most = (_MOST_REMOTE_RANKS_OF_ONE if single else _MOST_REMOTE_RANKS) if store.remote else _MOST_RANKS
    blocks = {rank: found for rank in slices.ranks(most, equal_files(model)) if (found := slices.blocks(rank))}

    def digests(rank: int) -> tuple[tuple[str, int], ...]:
        contents = _read(store, paths[rank], blocks[rank])
        return tuple((block.name, xxhash.xxh3_128_intdigest(contents[block.name])) for block in blocks[rank])

    equal: dict[tuple[int, tuple[tuple[str, int], ...]], list[int]] = defaultdict(list)
    at_once = files_at_once(workers, remote=store.remote)
    for rank, content in zip(blocks, parallel(digests, blocks, at_once=at_once), strict=True):
        equal[slices.stage(rank), content].append(rank)
    for ranks in equal.values():
        cells = zip(*([block.cell for block in blocks[rank]] for rank in ranks), strict=True)
        different = [block for block, each in zip(blocks[ranks[0]], cells, strict=True) if len(set(each)) > 1]
        contents = _read(store, paths[ranks[0]], different)
        if evident := [block.name for block in different if _is_evidence(contents[block.name], block)]:
            whole = model.source_stages == 1 and not options.kind.one_stage
            raise slices_equal(evident[0], ranks, whole=whole)


def _read(store: ReadStore, path: str, blocks: Sequence[SliceBlock]) -> dict[str, bytes]:
    """Return the content of blocks of a file, by parameter name."""
    if not blocks:
        return {}
    ordered = sorted(blocks, key=lambda block: block.entry.extents[0])
    reads = {block.name: tuple(block.entry.located(block.start, block.length)) for block in ordered}
    ahead = chain.from_iterable(reads.values())
    with closing(store.open(path)) as reader, prefetched(reader, ahead, _FILE_AHEAD, remote=store.remote) as fetched:
        return {name: b"".join(fetched.read(*read) for read in each) for name, each in reads.items()}


def _is_evidence(content: bytes, block: SliceBlock) -> bool:
    """Return whether a block has so many distinct elements that another slice is unlikely to have the same."""
    size = DTYPES[block.entry.dtype].itemsize
    distinct = {content[i : i + size] for i in range(0, len(content), size)}
    return len(distinct) > 1 and len(distinct) * size >= _LEAST_EVIDENCE


def slices_equal(name: str, ranks: Sequence[int], *, whole: bool) -> DataError:
    """Return the error for ranks that hold the same content.

    Args:
        name: parameter of which they should hold different slices.
        ranks: ranks with equal content.
        whole: whether the file of one rank, with whole tensors, is a complete checkpoint.
    """
    fix = "if the files contain whole tensors (MindSpore's integrated_save), "
    if whole:
        fix += "use one rank's folder as the source with --allow-single-rank and without --source-strategy"
        fix += " (spec.source.allowSingleRank, no spec.source.strategy)"
    else:
        fix += "save them again with integrated_save=False"
    return DataError(
        "SlicesEqual",
        f"the source strategy assigns different slices to ranks {format_ranks(tuple(ranks))}, but all compared blocks of"
        " their files are equal",
        where=f"parameter {name}",
        fix=f"{fix}; if a file was overwritten with a copy of another rank's, restore it; if the slices are indeed equal,"
        " add --allow-equal-slices (spec.source.allowEqualSlices)",
    )
