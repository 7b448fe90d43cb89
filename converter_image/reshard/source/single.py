"""Refuse the file of one rank as a complete checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from reshard.errors import AccessError, DataError, RequestError
from reshard.formats.registry import detect
from reshard.source.listing import is_candidate, other_ranks, preview, rank_of, total_of
from reshard.storage import open_store, parent_and_name, without_links

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from reshard.spec.storage_options import StorageOptions
    from reshard.storage.protocol import ReadStore, Stat

# Number of folders that are searched for a checkpoint at a time.
_FOLDERS_AT_ONCE = 256
_FIX = (
    "use the folder of all ranks, with their strategy (--source-strategy, spec.source.strategy); if this rank"
    " has whole parameters, add --allow-single-rank (spec.source.allowSingleRank)"
)


class Others(NamedTuple):
    """The file of a rank, or its folder, next to those of other ranks.

    Attributes:
        rank: rank in the name. None means that there is none.
        where: folder of all of them.
        what: evidence of the other ranks, for messages.
    """

    rank: int | None
    where: str
    what: str


def others_of(store: ReadStore, path: str, storage_options: StorageOptions | None = None) -> Others | None:
    """Return the evidence that a file belongs to one of several ranks, or None if there is none.

    Args:
        store: store of the file.
        path: path of the file in it.
        storage_options: options of the object store, if the file is in one.
    """
    file = f"{store.url.rstrip('/')}/{path}"
    for place in dict.fromkeys((file, without_links(file))):  # by the name of a link, and by the name of its target
        folder = place
        for of_files in (True, False, False):  # the file, its folder, and the parent of a nested folder
            folder, name = parent_and_name(folder)
            if others := _other_ranks(folder, name, storage_options, of_files=of_files):
                what = f"{name} belongs to one rank, and the folder contains files of other ranks: {preview(others)}"
                return Others(rank_of(name, anywhere=of_files), folder, what)
            if of_files and (total := total_of(name)) > 1:
                return Others(rank_of(name), folder, f"the name {name} means that the file belongs to one of {total} ranks")
    return None


def refuse_one_of_several(
    store: ReadStore, path: str, storage_options: StorageOptions | None = None, *, rank: int | None = None, fix: str = _FIX
) -> None:
    """Refuse to read the file of one rank as a complete checkpoint if there are other ranks, see `others_of`.

    Args:
        store: store of the file.
        path: path of the file in it.
        storage_options: options of the object store, if the file is in one.
        rank: rank of the file according to the strategy. None means that the file is read as a complete checkpoint.
        fix: remedy, for the message.

    Raises:
        RequestError: files of other ranks exist.
    """
    others = others_of(store, path, storage_options)
    if others is not None and (rank is None or others.rank != rank):
        raise RequestError(
            "OneRankOfSeveral",
            others.what,
            where=others.where,
            fix=fix,
        )


def refuse_more_ranks(store: ReadStore, path: str, ranks: range) -> None:
    """Refuse a strategy that describes fewer ranks than there are files like this one.

    Args:
        store: store of the file.
        path: path of the file of any rank.
        ranks: ranks that the strategy describes.

    Raises:
        DataError: a rank that the strategy does not describe has a file that differs only in its rank.
    """
    folder, name = parent_and_name(f"{store.url.rstrip('/')}/{path}")
    around, of_rank = parent_and_name(folder)
    try:
        names = [entry.name for entry in open_store(folder).list("") if not entry.is_folder]
        others = [other for other in other_ranks(name, names) if rank_of(other) not in ranks]
        if not others and rank_of(of_rank) is not None:
            parent = open_store(around)
            folders = [entry.name for entry in parent.list("") if entry.is_folder]
            folders = [other for other in other_ranks(of_rank, folders) if rank_of(other) not in ranks]
            listed = zip(folders, parent.list_folders(folders), strict=True)
            each = ((f"{other}/{entry.name}", entry.name) for other, entries in listed for entry in entries)
            others = [path for path, own in each if own == name or other_ranks(name, [own])]
    except AccessError:  # without access to the parent folder, its entries are unknown
        return
    if others:
        raise DataError(
            "SourceRanksMismatch",
            f"the source strategy describes {len(ranks)} ranks, but other ranks have files like {name}: {preview(others)}",
            where=folder,
            fix="use the strategy and the files of all ranks, or move files of other runs to another folder",
        )


def _other_ranks(folder: str, name: str, storage_options: StorageOptions | None, *, of_files: bool) -> list[str]:
    """Return the files of other ranks next to the file of a rank, or the folders of other ranks if one contains a checkpoint."""
    if rank_of(name, anywhere=of_files) is None:
        return []
    store = open_store(folder, storage_options)
    try:
        others = other_ranks(name, [entry.name for entry in store.list("") if entry.is_folder != of_files], anywhere=of_files)
        if of_files:
            return others
        some = (others[i : i + _FOLDERS_AT_ONCE] for i in range(0, len(others), _FOLDERS_AT_ONCE))
        return others if any(folders_with_checkpoints(store, each) for each in some) else []
    except AccessError:  # without access to the parent folder, its entries are unknown
        return []


def folders_with_checkpoints(store: ReadStore, folders: Sequence[str]) -> list[str]:
    """Return the folders that contain checkpoint files, directly or one level below."""
    listed = dict(zip(folders, store.list_folders(folders), strict=True))
    found = {folder for folder, entries in listed.items() if _any_checkpoint(entries)}
    below = [(folder, entry.name) for folder in folders if folder not in found for entry in listed[folder] if entry.is_folder]
    inner = store.list_folders([f"{folder}/{name}" for folder, name in below])
    found |= {folder for (folder, _), entries in zip(below, inner, strict=True) if _any_checkpoint(entries)}
    return [folder for folder in folders if folder in found]


def _any_checkpoint(entries: Iterable[Stat]) -> bool:
    names = [entry.name for entry in entries if not entry.is_folder]
    return any(map(is_candidate, names)) or detect(names) is not None
