"""Ranks that hold the same parameters, by MindSpore's communication group files and by a strategy."""

from __future__ import annotations

import re

from reshard.mindspore.arguments import path_of
from reshard.mindspore.errors import documented
from reshard.online.network import current_rank
from reshard.source.strategies import read_restore_ranks, read_strategy_files
from reshard.storage import open_store, parent_and_name
from reshard.strategy import holders_of_the_same

_RANK = re.compile(r"rank_(\d+)")


@documented()
def restore_group_info_list(group_info_file_name: str) -> list[int]:
    """Return the ranks whose checkpoints can replace that of the rank that wrote a GROUP_INFO_FILE.

    Differences from MindSpore: a file without such a list is an error, and so is a strategy file, for which MindSpore returns
    characters.

    Args:
        group_info_file_name: path of the file.

    Raises:
        ReshardError: also a TypeError (the argument is not a path) or a ValueError (the file is missing, damaged, or has no such
            list).
    """
    return list(read_restore_ranks(path_of(group_info_file_name, "group_info_file_name")))


@documented()
def get_ckpt_path_with_strategy(cur_ckpt_path: str, cur_strategy_path: str) -> str | None:
    """Return the path of a checkpoint file that a rank can load: its own, or that of a rank that holds the same parameters.

    Differences from MindSpore: works without MindSpore, for the rank in the path. Finds every rank that holds the same slices of
    all parameters, even if groups of ranks are not nested. `rank_1` does not match a part of `rank_10`.

    Args:
        cur_ckpt_path: path of the rank's file, such as `rank_5/net-1_40.ckpt`.
        cur_strategy_path: strategy file of the rank's pipeline stage, or a merged one.

    Returns:
        The first of these files that exists, or None if none exists. A path without `rank_<r>` is returned if the file
        exists.

    Raises:
        ReshardError: also a TypeError (an argument is not a path) or a ValueError (the strategy is missing or damaged, or lacks
            the rank).
    """
    path = path_of(cur_ckpt_path, "cur_ckpt_path")
    strategy = path_of(cur_strategy_path, "cur_strategy_path")
    named = _RANK.search(path)
    if named is None:
        return path if _is_file(path) else None
    rank = current_rank()
    if rank is None:
        rank = int(named[1])
    if rank == int(named[1]) and _is_file(path):
        return path
    for other in holders_of_the_same(read_strategy_files(strategy), rank):
        candidate = _RANK.sub(f"rank_{other}", path)
        if _is_file(candidate):
            return candidate
    return None


def _is_file(path: str) -> bool:
    folder, name = parent_and_name(path)
    found = open_store(folder).stat(name)
    return found is not None and not found.is_folder
