"""Refuse the file of one rank as a complete checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reshard.errors import AccessError, RequestError
from reshard.source.listing import is_candidate, other_ranks, preview, rank_of
from reshard.storage import open_store, parent_and_name, without_links

if TYPE_CHECKING:
    from reshard.spec.storage_options import StorageOptions
    from reshard.storage.protocol import ReadStore

# Number of other ranks' folders that are searched for a checkpoint.
_MOST_FOLDERS = 16


def refuse_one_of_several(
    store: ReadStore, path: str, storage_options: StorageOptions | None = None, *, rank: int | None = None
) -> None:
    """Refuse to read the file of one rank as a complete checkpoint if files of other ranks are next to it or to its folder.

    Args:
        store: store of the file.
        path: path of the file in it.
        storage_options: options of the object store, if the file is in one.
        rank: rank of the file according to the strategy. None: the file is read as a complete checkpoint.

    Raises:
        RequestError: files of other ranks exist.
    """
    others: list[str] = []
    file = f"{store.url}/{path}"
    for place in dict.fromkeys((file, without_links(file))):  # by the name of a link, and by the name of its target
        folder = place
        for of_files in (True, False, False):  # the file, its folder, and the parent of a nested folder
            folder, name = parent_and_name(folder)
            if others := _other_ranks(folder, name, storage_options, of_files=of_files):
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


def _other_ranks(folder: str, name: str, storage_options: StorageOptions | None, *, of_files: bool) -> list[str]:
    """Return the files of other ranks next to the file of a rank, or the folders of other ranks that contain checkpoints."""
    if rank_of(name) is None:
        return []
    store = open_store(folder, storage_options)
    try:
        others = other_ranks(name, [entry.name for entry in store.list("") if entry.is_folder != of_files])
        return others if of_files or any(holds_checkpoint(store, other) for other in others[:_MOST_FOLDERS]) else []
    except AccessError:  # without access to the parent folder, its entries are unknown
        return []


def holds_checkpoint(store: ReadStore, folder: str) -> bool:
    """Return whether a folder contains checkpoint files, directly or one level below."""
    entries = store.list(folder)
    if any(not entry.is_folder and is_candidate(entry.name) for entry in entries):
        return True
    return any(
        not each.is_folder and is_candidate(each.name)
        for entry in entries[:_MOST_FOLDERS]
        if entry.is_folder
        for each in store.list(f"{folder}/{entry.name}")
    )
