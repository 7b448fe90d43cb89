"""Read strategies from a file, or from a folder with one file per pipeline stage."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from reshard.errors import DataError, MissingInputError, RequestError
from reshard.mesh.file import LayoutFile, is_layout
from reshard.mesh.file import parse as parse_layout
from reshard.source.listing import rank_folders
from reshard.source.selection import natural
from reshard.spec.ranks import format_ranks
from reshard.storage import open_store, parent_and_name
from reshard.storage.ahead import files_at_once
from reshard.strategy import Strategy, parse
from reshard.strategy.groups import restore_ranks

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reshard.spec.storage_options import StorageOptions
    from reshard.storage.protocol import Stat, Store
    from reshard.strategy import StrategyFile

# Strategy files of the largest models have some megabytes.
_LARGEST_STRATEGY = 128 << 20
_LARGEST_LAYOUT = 1 << 20
# The ranks of one run write their strategies at about the same time, after they have compiled the network.
_ONE_RUN_SECONDS = 3600


def read_strategy(path: str, storage_options: StorageOptions | None = None, *, one_stage: bool = False) -> Strategy:
    """Read a strategy as `read_layouts` does, but refuse a layout file.

    Raises:
        DataError, MissingInputError, RequestError: as for `read_layouts`.
        RequestError: the file is a layout file.
    """
    found = read_layouts(path, storage_options, one_stage=one_stage)
    if isinstance(found, LayoutFile):
        raise RequestError(
            "LayoutFileNotAccepted",
            "a strategy is required, but this is a layout file",
            where=path,
            fix="write its strategy with `reshard layout export`, and use that",
        )
    return found


def read_layouts(path: str, storage_options: StorageOptions | None = None, *, one_stage: bool = False) -> Strategy | LayoutFile:
    """Read a layout file or a strategy from a file, or merge the files of a folder with one per pipeline stage (or rank).

    Args:
        path: path of the file or folder.
        storage_options: options of the object store, if the path is in one.
        one_stage: whether the strategy must describe exactly one stage, with any number.

    Raises:
        DataError: a file is damaged, or the files do not belong together.
        MissingInputError: there is no strategy file.
        RequestError: `one_stage` is true, and the files describe several stages.
        UsageError: a field of a layout file is invalid.
    """
    store, found = _find(path, storage_options)
    contents = _read_all(store, found)
    if len(contents) == 1 and is_layout(content := next(iter(contents))):
        return parse_layout(content, path)
    if layouts := [name for content, name in contents.items() if is_layout(content)]:
        raise RequestError(
            "LayoutFileNotAccepted",
            f"the folder contains several files, and one of them is the layout file {layouts[0]}",
            where=path,
            fix="specify the layout file instead of its folder",
        )
    files = [parse(content, name) for content, name in contents.items()]
    if one_stage:
        return Strategy.of_one_stage(files)
    strategy = Strategy.from_files(files)
    if not (repeated := strategy.repeated_stages):
        return strategy
    stages = format_ranks(tuple(repeated))
    what = f"pipeline stages {stages} contain only parameters of earlier stages"
    times = [entry.modified for entry in found.values() if entry.modified is not None]
    if times and max(times) - min(times) > _ONE_RUN_SECONDS:
        oldest = min((name for name in found), key=lambda name: found[name].modified or 0)
        raise DataError(
            "StaleStrategy",
            f"{what}, and the files were written over {(max(times) - min(times)) / 3600:.0f} hours, so some of them, such as"
            f" {oldest}, may be"
            " from an earlier run with more stages",
            where=path,
            fix="use a folder with the strategy files of one run; if all files are from one run, merge them with `reshard"
            " strategy"
            " merge` and use the merged file",
        )
    return replace(strategy, notes=(f"{path}: {what}; check that the folder contains no files of an earlier run",))


def read_layout_file(path: str, storage_options: StorageOptions | None = None) -> LayoutFile:
    """Read a layout file.

    Raises:
        MissingInputError: the file does not exist.
        UsageError: the file is not a layout file, or a field is invalid.
    """
    folder, name = parent_and_name(path)
    return parse_layout(open_store(folder, storage_options).read(name, _LARGEST_LAYOUT), path)


def read_strategy_files(path: str, storage_options: StorageOptions | None = None) -> list[StrategyFile]:
    """Read the distinct strategy files of a folder in natural order, or the named file.

    Raises:
        DataError: a file is damaged.
        MissingInputError: there is no strategy file.
    """
    return [parse(content, name) for content, name in _read_all(*_find(path, storage_options)).items()]


def _find(path: str, storage_options: StorageOptions | None) -> tuple[Store, dict[str, Stat]]:
    """Return the store of strategy files, and their paths in it.

    A folder contains them directly, or in folders of ranks.
    """
    folder, name = parent_and_name(path)
    store = open_store(folder, storage_options)
    found = store.stat(name)
    if found is None:
        raise MissingInputError(
            "StrategyMissing",
            "no such strategy file or folder",
            where=path,
            fix="specify a strategy file, or a folder with the strategy files of all stages",
        )
    if not found.is_folder:
        return store, {name: found}
    entries = store.list(name)
    files = _strategies_among(name, entries)
    if not files:
        ranks = rank_folders((entry.name for entry in entries if entry.is_folder), path).values()
        for inner in (_joined(name, rank) for rank in ranks):
            files |= _strategies_among(inner, store.list(inner))
    if not files:
        raise MissingInputError(
            "StrategyMissing",
            "the folder and its rank folders contain no strategy file (.ckpt or .json)",
            where=path,
            fix="specify a strategy file, or a folder with the strategy files of all stages",
        )
    return store, files


def _strategies_among(folder: str, entries: Iterable[Stat]) -> dict[str, Stat]:
    return {_joined(folder, e.name): e for e in entries if not e.is_folder and e.name.endswith((".ckpt", ".json"))}


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _read_all(store: Store, found: Iterable[str]) -> dict[bytes, str]:
    """Return the distinct contents of files and their names in natural order. Ranks of one stage have equal files."""
    contents: dict[bytes, str] = {}
    names = sorted(found, key=natural)
    with ThreadPoolExecutor(files_at_once(1, remote=store.remote)) as pool:
        for name, content in zip(names, pool.map(lambda name: store.read(name, _LARGEST_STRATEGY), names), strict=True):
            contents.setdefault(content, name)
    return contents


def read_restore_ranks(path: str, storage_options: StorageOptions | None = None) -> tuple[int, ...]:
    """Return the ranks whose checkpoints can replace that of the rank that wrote a file of communication groups.

    Raises:
        DataError: the file is not a file of communication groups.
        MissingInputError: the file does not exist.
    """
    folder, name = parent_and_name(path)
    return restore_ranks(open_store(folder, storage_options).read(name, _LARGEST_STRATEGY), path)
