"""A source that reshard has written: its manifest lists the files that belong to it."""

from __future__ import annotations

import glob
from contextlib import closing
from typing import TYPE_CHECKING

from reshard.checkpoint.manifest import MANIFEST_NAME, STATE, STRATEGY_NAME, Manifest, decode
from reshard.checkpoint.unified import MAP_NAME, is_map
from reshard.errors import AccessError, DataError, MissingInputError, RequestError, ReshardError
from reshard.formats.registry import document_names
from reshard.parallel import parallel
from reshard.source.listing import is_candidate, preview, rank_folders, rank_of
from reshard.source.selection import epoch_and_step, option_for, select_files
from reshard.spec.outputs import output_of
from reshard.storage import open_store, parent_and_name, without_links
from reshard.storage.ahead import files_at_once
from reshard.storage.digest import sample_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from reshard.checkpoint.manifest import FileRecord
    from reshard.spec.storage_options import StorageOptions
    from reshard.storage.protocol import ReadStore, Stat

_LARGEST_MANIFEST = 4 << 30


def read_manifest(store: ReadStore, names: Collection[str]) -> Manifest | None:
    """Return the manifest of a source, or None if `names`, the files in its folder, contain no manifest.

    Raises:
        MissingInputError: the source was never completed, or is being replaced.
        RequestError: the source is an index.
    """
    if MANIFEST_NAME in names:
        found = decode(
            store.read(MANIFEST_NAME, _LARGEST_MANIFEST), Manifest, f"{store.url}/{MANIFEST_NAME}", fix="restore the file"
        )
        if found.index is not None:
            raise RequestError(
                "SourceIsIndex",
                "the folder contains the index of a checkpoint, not the checkpoint itself",
                where=store.url,
                fix=f"use {found.source.url} as the source, and this folder as its index (--index)",
            )
        return found
    if STATE in names and any(store.stat(f"{STATE}/{entry.name}/task.json") is not None for entry in store.list(STATE)):
        raise MissingInputError(
            "SourceUnfinished",
            "the checkpoint is incomplete: a transform has started to write it and has not committed it",
            where=store.url,
            fix="complete that transform first",
        )
    return None


def paths_of(manifest: Manifest, where: str) -> dict[int, str]:
    """Return the file of each rank, or the files of a unified checkpoint.

    Raises:
        MissingInputError: the unified checkpoint was written in part only.
        RequestError: the checkpoint was written stage by stage.
    """
    if manifest.stages:
        raise RequestError(
            "SourceIsStages",
            f"each rank's parameters are spread over the files of {len(manifest.stages)} stages, which cannot be read together",
            where=where,
            fix="use the original checkpoint as the source, or select the files of one stage, as in --files '*_part0.*'",
        )
    if output_of(manifest.options).whole:
        refuse_partial(manifest, where)
    return {record.rank: record.path for record in manifest.files}


def refuse_partial(manifest: Manifest, where: str) -> None:
    """Refuse a checkpoint of which only some files were written.

    Raises:
        MissingInputError: only some files were written.
    """
    if len(manifest.files) < manifest.target_ranks:
        raise MissingInputError(
            "FileMissing",
            f"only {len(manifest.files)} of {manifest.target_ranks} files of this checkpoint were written",
            where=where,
            fix="run the transform that wrote it again without --only-ranks (spec.target.onlyRanks)",
        )


def find_listing(
    store: ReadStore, name: str, storage_options: StorageOptions | None = None
) -> tuple[ReadStore, Manifest, FileRecord] | None:
    """Find the manifest that lists a file, in the folder of the file or, for a rank's folder, in its parent.

    Args:
        store: folder of the file.
        name: name of the file. If it is a symbolic link, the target of the link is also looked up.
        storage_options: options of the object store, if the file is in one.

    Returns:
        The folder of the manifest, the manifest, and the record of the file.

    Raises:
        DataError: the manifest is damaged.
    """
    file = f"{store.url.rstrip('/')}/{name}"
    for found in dict.fromkeys((file, without_links(file))):
        folder, own = parent_and_name(found)
        parent, of_rank = parent_and_name(folder)
        places = [(folder, own)] + [(parent, f"{of_rank}/{own}")] * (rank_of(of_rank) is not None)
        for url, path in places:
            place = open_store(url, storage_options)
            try:
                content = place.read(MANIFEST_NAME, _LARGEST_MANIFEST)
            except (MissingInputError, AccessError):  # without access to the parent folder, its content is unknown
                continue
            manifest = decode(content, Manifest, f"{url}/{MANIFEST_NAME}", fix="restore the file")
            if (record := next((record for record in manifest.files if record.path == path), None)) is not None:
                return place, manifest, record
    return None


def listed_and_unchanged(store: ReadStore, manifest: Manifest, paths: Iterable[str]) -> frozenset[str]:
    """Return the paths whose files a manifest lists in their current version.

    Args:
        store: folder of the manifest. Encrypted files are not decrypted.
        manifest: manifest of the folder.
        paths: paths to check.
    """
    wanted = frozenset(paths)
    records = [record for record in manifest.files if record.path in wanted]
    there = store.stats([record.path for record in records])
    records = [record for record in records if record.path in there]
    return frozenset(record.path for record in records).difference(_changes(store, records, there))


def check_described(store: ReadStore, manifest: Manifest, entries: Sequence[Stat]) -> None:
    """Refuse a folder if training has written to it since its manifest was written.

    Args:
        store: folder of the checkpoint. Encrypted files are not decrypted.
        manifest: manifest of the folder.
        entries: entries of the folder.

    Raises:
        DataError: a file is not the one that the manifest lists.
        MissingInputError: a file does not exist.
        RequestError: the folder contains checkpoint files that the manifest does not list.
    """
    there = files_there(store, manifest, entries)
    if added := unlisted(manifest, there):
        raise RequestError(
            "AmbiguousFiles",
            f"the manifest does not list {preview(added)}: training may have continued in this folder",
            where=store.url,
            fix=_choices(manifest, added),
        )
    refuse_missing(store, [record.path for record in manifest.files], there)
    if changes := _changes(store, manifest.files, there):
        more = f" (and {len(changes) - 1} more files)" if len(changes) > 1 else ""
        listed = [record.path for record in manifest.files]
        option = _option_for_listed(manifest, listed) or f"move {MANIFEST_NAME} to another folder"
        raise DataError(
            "SourceChanged",
            f"{next(iter(changes.values()))}{more}: training may have written to this folder",
            where=store.url,
            fix=f"restore the file, or read the current files: {option}",
        )


def unlisted(manifest: Manifest, there: Iterable[str]) -> list[str]:
    """Return the checkpoint files among these paths that a manifest does not list."""
    known = {record.path for record in manifest.files}
    return [path for path in there if path not in known and is_candidate(path)]


def refuse_missing(store: ReadStore, paths: Iterable[str], there: Collection[str]) -> None:
    """Refuse a folder that lacks files of its manifest.

    Args:
        store: folder of the checkpoint.
        paths: files that the manifest lists.
        there: files in the folder.

    Raises:
        MissingInputError: a file does not exist.
    """
    if gone := [path for path in paths if path not in there]:
        raise MissingInputError(
            "FileMissing",
            f"files that the manifest lists are missing: {preview(gone)}",
            where=store.url,
            fix="restore the files",
        )


def files_there(store: ReadStore, manifest: Manifest, entries: Sequence[Stat]) -> dict[str, Stat]:
    """Return the files in the folders of ranks, in any spelling, and one level below them, as in rank_0/ckpt/.

    Files in the folder itself are included if the manifest lists files there, or if their names contain a rank.

    Args:
        store: folder of the checkpoint.
        manifest: manifest of the folder.
        entries: entries of the folder.
    """
    flat = not all("/" in record.path for record in manifest.files)
    there = {entry.name: entry for entry in entries if not entry.is_folder and (flat or rank_of(entry.name) is not None)}
    folders = [entry.name for entry in entries if entry.is_folder and rank_of(entry.name) is not None]
    for _ in range(2):
        each = zip(folders, store.list_folders(folders), strict=True)
        found = {f"{folder}/{entry.name}": entry for folder, listed in each for entry in listed}
        there |= {path: entry for path, entry in found.items() if not entry.is_folder}
        folders = [path for path, entry in found.items() if entry.is_folder and not entry.name.startswith(".")]
    return there


def _changes(store: ReadStore, records: Sequence[FileRecord], there: Mapping[str, Stat]) -> dict[str, str]:
    """Return how files differ from their records, by path, for those that do."""
    at_once = files_at_once(1, remote=store.remote)
    found = parallel(lambda record: _change(store, record, there[record.path]), records, at_once=at_once)
    return {record.path: change for record, change in zip(records, found, strict=True) if change is not None}


def _change(store: ReadStore, record: FileRecord, found: Stat) -> str | None:
    """Return how a file differs from its record, or None if it does not."""
    if found.size != record.size:
        return f"{record.path} has {found.size} bytes, but its manifest lists {record.size}"
    if record.sample:
        with closing(store.open(record.path)) as reader:
            if sample_of(reader, remote=store.remote) != record.sample:
                return f"the content of {record.path} does not match its manifest"
    return None


def _choices(manifest: Manifest, added: Sequence[str]) -> str:
    """Return the remedy that selects either the files that a manifest lists or those that were added."""
    listed = [record.path for record in manifest.files]
    steps = {step for path in (*listed, *added) if (step := epoch_and_step(path))}
    by_rank: dict[int, list[str]] = {}
    for path in added:
        folder = path.rpartition("/")[0]
        if folder.startswith("rank_"):  # if folders with these names exist, no others are read
            for rank in rank_folders([folder], ""):
                by_rank.setdefault(rank, []).append(path)
    choices = []
    try:
        selected = select_files(by_rank)
        if selected.step is not None:
            choices.append(f"read the newer ones with {option_for(selected.step, steps)}")
    except ReshardError:  # they do not belong to one step
        pass
    if (option := _option_for_listed(manifest, listed, added)) is not None:
        choices.append(f"read the files of the manifest: {option}")
    return ", or ".join([*choices, "move the files that do not belong to the checkpoint to another folder"])


def _option_for_listed(manifest: Manifest, listed: Iterable[str], others: Collection[str] = ()) -> str | None:
    """Return the option that selects only the files that a manifest lists, or None if no such option exists."""
    listed, documents = list(listed), {*document_names(manifest.options)} - {STRATEGY_NAME}
    if output_of(manifest.options).whole:
        index = next(filter(is_map, documents), MAP_NAME)
        return f"use {index if len(listed) > 1 or index == MAP_NAME else listed[0]} as the source"
    if documents:  # they locate the tensors, so the files cannot be selected
        return None
    steps = {epoch_and_step(path) for path in listed}
    pattern = f"{glob.escape(str(manifest.options.get('filePrefix', '')))}*"
    if len(steps) == 1 and (step := steps.pop()) is not None:
        pattern = f"*-{step[0]}_{step[1]}.*"
    fits = all(is_candidate(path, pattern) for path in listed) and not any(is_candidate(path, pattern) for path in others)
    return f"--files '{pattern}' (spec.source.files.pattern)" if fits else None
