"""Strategies, from a file or a folder of pipeline stages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reshard.errors import MissingInputError
from reshard.source.selection import natural
from reshard.storage import open_store, parent_and_name
from reshard.strategy import Strategy, parse
from reshard.strategy.groups import restore_ranks

if TYPE_CHECKING:
    from reshard.spec.access import Access
    from reshard.strategy import StrategyFile

# Strategy files of the largest models are some megabytes.
_LARGEST_STRATEGY = 128 << 20


def read_strategy(path: str, access: Access | None = None, *, one_stage: bool = False) -> Strategy:
    """A strategy from a file, or merged from a folder that holds one for each pipeline stage (or rank).

    Args:
        path: the path of the file or folder.
        access: the way to it, if it is in an object store.
        one_stage: it is to be that of one stage, whichever.

    Raises:
        DataError: a file is damaged, or they do not belong together.
        MissingInputError: there is none.
        RequestError: one stage is wanted, and it is of several.
    """
    files = read_strategy_files(path, access)
    return Strategy.of_one_stage(files) if one_stage else Strategy.from_files(files)


def read_strategy_files(path: str, access: Access | None = None) -> list[StrategyFile]:
    """The distinct strategy files of a folder in their natural order, or the one that is named.

    Raises:
        DataError: a file is damaged.
        MissingInputError: there is none.
    """
    folder, name = parent_and_name(path)
    store = open_store(folder, access)
    found = store.stat(name)
    if found is None:
        raise MissingInputError(
            "StrategyMissing",
            "there is no such strategy file or folder",
            where=path,
            fix="give the strategy file, or the folder with the strategy files of all stages",
        )
    names = [name]
    if found.is_folder:
        names = [
            "/".join(part for part in (name, e.name) if part)
            for e in store.list(name)
            if not e.is_folder and e.name.endswith((".ckpt", ".json"))
        ]
        if not names:
            raise MissingInputError(
                "StrategyMissing",
                "the folder holds no strategy file (.ckpt or .json)",
                where=path,
                fix="give the strategy file, or the folder with the strategy files of all stages",
            )
    contents: dict[bytes, str] = {}  # ranks of one stage have the same file
    for each in sorted(names, key=natural):
        contents.setdefault(store.read(each, _LARGEST_STRATEGY), each)
    return [parse(content, each) for content, each in contents.items()]


def read_restore_ranks(path: str, access: Access | None = None) -> tuple[int, ...]:
    """The ranks whose checkpoints can stand in for that of the rank that wrote a file of communication groups.

    Raises:
        DataError: it is no such file.
        MissingInputError: there is none.
    """
    folder, name = parent_and_name(path)
    return restore_ranks(open_store(folder, access).read(name, _LARGEST_STRATEGY), path)
