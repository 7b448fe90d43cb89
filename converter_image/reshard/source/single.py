"""Detect one rank's file that would be read as a whole checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reshard.errors import AccessError, RequestError
from reshard.source.listing import is_candidate, other_ranks, preview, rank_of
from reshard.storage import open_store, parent_and_name, without_links

if TYPE_CHECKING:
    from reshard.spec.access import Access
    from reshard.storage.protocol import ReadStore

# Number of other ranks' folders that are searched for a checkpoint.
_MOST_FOLDERS = 16


def refuse_one_of_several(store: ReadStore, path: str, access: Access | None = None, *, rank: int | None = None) -> None:
    """Reject the file of one rank as a whole checkpoint if files of other ranks are next to it or to its folder.

    Args:
        store: the storage that holds the file.
        path: the path of the file there.
        access: the way to it, if it is in an object store.
        rank: the rank that the strategy says it is of; None: it is taken for a whole checkpoint.

    Raises:
        RequestError: there are others.
    """
    others: list[str] = []
    file = f"{store.url}/{path}"
    for place in dict.fromkeys((file, without_links(file))):  # by a link's own name, and by that of what is read
        folder = place
        for of_files in (True, False, False):  # the file, its folder, and that around a nested one
            folder, name = parent_and_name(folder)
            if others := _other_ranks(folder, name, access, of_files=of_files):
                break
        if others:
            break
    if others and (rank is None or rank_of(name) != rank):
        raise RequestError(
            "OneRankOfSeveral",
            f"{name} belongs to one rank, and the folder contains files of other ranks: {preview(others)}",
            where=folder,
            fix="use the folder of all ranks, with their strategy (--source-strategy, spec.source.strategy); if this rank"
            " has whole parameters, add --allow-single-rank (spec.source.allowSingleRank)",
        )


def _other_ranks(folder: str, name: str, access: Access | None, *, of_files: bool) -> list[str]:
    """Return what is next to the file or folder of a rank and of other ranks; of folders, if they hold checkpoints."""
    if rank_of(name) is None:
        return []
    store = open_store(folder, access)
    try:
        others = other_ranks(name, [entry.name for entry in store.list("") if entry.is_folder != of_files])
        return others if of_files or any(holds_checkpoint(store, other) for other in others[:_MOST_FOLDERS]) else []
    except AccessError:  # without access to the others, they cannot be listed
        return []


def holds_checkpoint(store: ReadStore, folder: str) -> bool:
    """Return whether there are checkpoint files in a folder, or one level below."""
    entries = store.list(folder)
    if any(not entry.is_folder and is_candidate(entry.name) for entry in entries):
        return True
    return any(
        not each.is_folder and is_candidate(each.name)
        for entry in entries[:_MOST_FOLDERS]
        if entry.is_folder
        for each in store.list(f"{folder}/{entry.name}")
    )
