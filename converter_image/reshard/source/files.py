"""Which files a checkpoint consists of: what lies in its folder, by its manifest, or by its map."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from reshard.checkpoint import format_of
from reshard.checkpoint.manifest import MANIFEST_NAME, STATE, Manifest, decode
from reshard.checkpoint.unified import MAP_NAME, choose_map, files_of, is_map, read_map
from reshard.errors import DataError, MissingInputError, RequestError
from reshard.source.selection import select_files
from reshard.storage import open_store, parent_and_name

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from reshard.checkpoint.inventory import Kind
    from reshard.spec.access import Access
    from reshard.storage.protocol import ReadStore, Stat, Store

_LARGEST_MAP = 128 << 20
_LARGEST_MANIFEST = 4 << 30
_RANK_FOLDER = re.compile(r"rank_(\d{1,9})")


class Files(NamedTuple):
    """The files of a checkpoint.

    Attributes:
        by_rank: for each rank its file, as a path within the store; of a unified checkpoint, for each number one of the files.
        notes: what a user should know of the choice.
        kind: what they are.
        mapped: for each parameter of a unified checkpoint its file, as far as a map says that.
        ranks: how many ranks there are, those included that were not asked for; None: some are not there.
        step: the epoch and step that they are of, where their names say so.
    """

    by_rank: dict[int, str]
    notes: tuple[str, ...] = ()
    kind: Kind = "Ranks"
    mapped: Mapping[str, str] = {}
    ranks: int | None = None
    step: tuple[int, int] | None = None


def open_source(url: str, access: Access | None = None) -> tuple[Store, str | None]:
    """A source's storage; and the file's name, when it is a single file."""
    store = open_store(url, access)
    found = store.stat("")
    if found is not None and not found.is_folder:
        folder, name = parent_and_name(store.url)
        return open_store(folder, access), name
    return store, None


def find_files(
    store: ReadStore,
    chosen: str | None = None,
    *,
    step: int | None = None,
    pattern: str | None = None,
    ranks: range | None = None,
) -> Files:
    """The file of each rank, or those of a unified checkpoint. Another folder without `rank_<r>/` in it is one rank.

    Args:
        store: the folder.
        chosen: the one file in it that is meant: it holds all parameters (of the first of `ranks`), or says which files do.
        step: the training step that is wanted.
        pattern: a shell pattern that the names must match.
        ranks: the ranks that are wanted; None: all.

    Raises:
        DataError: a map is damaged.
        MissingInputError: there are none.
        RequestError: it is not clear which.
    """
    if chosen is not None and not is_map(chosen):
        return Files({ranks.start if ranks else 0: chosen})
    entries = store.list("")
    manifest = _manifest(store, {entry.name for entry in entries})
    anything = step is None and pattern is None
    if manifest is not None and anything and chosen is None:
        return _described(manifest, store.url, ranks)
    folders = _rank_folders(entries, store.url)
    beside = [entry.name for entry in entries if not entry.is_folder and not entry.name.startswith(".")]
    if map_name := chosen or (choose_map(beside, store.url) if anything else None):
        if folders and chosen is None:
            raise RequestError(
                "AmbiguousFiles",
                f"there are rank_<r> folders, and {map_name}, which says that the parameters are in the files beside it",
                where=store.url,
                fix=f"give {map_name} as the source, or choose files of the ranks with --step or --files (spec.source.files)",
            )
        mapped = read_map(store.read(map_name, _LARGEST_MAP), f"{store.url}/{map_name}")
        files = files_of(mapped, beside, map_name, store.url)
        return Files(dict(enumerate(files)), kind="Unified" if map_name == MAP_NAME else "Sharded", mapped=mapped)
    if folders:
        count = _count(folders)
        folders = {rank: folder for rank, folder in folders.items() if ranks is None or rank in ranks}
        names = {rank: [e.name for e in store.list(folder) if not e.is_folder] for rank, folder in sorted(folders.items())}
        selected = select_files(names, step=step, pattern=pattern)
        by_rank = {rank: f"{folders[rank]}/{name}" for rank, name in selected.files.items()}
        return Files(by_rank, selected.notes, ranks=count, step=selected.step)
    if store.stat("") is None:
        raise MissingInputError(
            "SourceMissing", "there is no such folder", where=store.url, fix="give the folder that holds rank_0, rank_1, ..."
        )
    if not any(format_of(name) for name in beside):
        raise MissingInputError(
            "SourceMissing",
            "there is neither a rank_<r> folder nor a .ckpt or .safetensors file",
            where=store.url,
            fix="give the folder that holds rank_0, rank_1, ...",
        )
    selected = select_files({0: beside}, step=step, pattern=pattern)
    return Files(selected.files, selected.notes, ranks=1, step=selected.step)


def _rank_folders(entries: Iterable[Stat], where: str) -> dict[int, str]:
    """From rank to the name of its folder.

    Raises:
        DataError: two are of one rank.
    """
    folders: dict[int, str] = {}
    for entry in entries:
        match = _RANK_FOLDER.fullmatch(entry.name)
        if match and entry.is_folder:
            other = folders.setdefault(int(match[1]), entry.name)
            if other != entry.name:
                raise DataError(
                    "DuplicateRank",
                    f"{other} and {entry.name} are the same rank",
                    where=where,
                    fix="take away the one that does not belong to the checkpoint",
                )
    return folders


def _count(ranks: Collection[int]) -> int | None:
    return len(ranks) if ranks and max(ranks) == len(ranks) - 1 else None


def _described(manifest: Manifest, where: str, ranks: range | None) -> Files:
    """The files of a checkpoint that this program has written.

    Raises:
        MissingInputError: not all files of a unified one were asked for when it was written.
        RequestError: it was made stage by stage.
    """
    if manifest.parts:
        raise RequestError(
            "SourceInParts",
            f"each rank's parameters are in {len(manifest.parts)} parts, which cannot be read as one",
            where=where,
            fix="reshard the checkpoint that the parts were made from, or name one part's files, as in --files '*_part0.*'",
        )
    known = {record.rank: record.path for record in manifest.files}
    if manifest.options.get("layout") != "Unified":
        wanted = {rank: path for rank, path in known.items() if ranks is None or rank in ranks}
        return Files(wanted, ranks=_count(known))
    if len(known) < manifest.target_ranks:
        raise MissingInputError(
            "PartMissing",
            f"it was completed with {len(known)} of its {manifest.target_ranks} parts",
            where=where,
            fix="run its transform again without --ranks (spec.target.ranks)",
        )
    return Files(known, kind="Unified")


def _manifest(store: ReadStore, names: set[str]) -> Manifest | None:
    """Of a source that this program has written: its manifest says which files belong to it.

    Raises:
        MissingInputError: it was never completed, or is being replaced.
        RequestError: it is an index.
    """
    if MANIFEST_NAME in names:
        found = decode(store.read(MANIFEST_NAME, _LARGEST_MANIFEST), Manifest, f"{store.url}/{MANIFEST_NAME}")
        if found.index is not None:
            raise RequestError(
                "SourceIsIndex",
                "it is the index of a checkpoint, and none itself",
                where=store.url,
                fix=f"give the checkpoint ({found.source.url}), and this as its index (--index)",
            )
        return found
    if STATE in names and any(store.stat(f"{STATE}/{entry.name}/job.json") is not None for entry in store.list(STATE)):
        raise MissingInputError(
            "SourceUnfinished",
            "a transform has begun to write this checkpoint and has not completed it",
            where=store.url,
            fix="run that transform to its end first",
        )
    return None
