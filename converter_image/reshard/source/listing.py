"""Determine the rank of each file and folder, and the files of one checkpoint, from names in a folder."""

from __future__ import annotations

import fnmatch
import re
from collections import defaultdict
from typing import TYPE_CHECKING

from reshard.checkpoint import format_of
from reshard.checkpoint.manifest import STRATEGY_NAME
from reshard.errors import DataError, MissingInputError, RequestError, listed

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

# MindSpore documents rank_0. Launchers and scripts also create rank0, rank-0, device_0 and device0.
_RANK_FOLDER = re.compile(r"(rank|device)([_-]?)([0-9]{1,9})")
_USUAL = "rank_"
# checkpoint_3.ckpt, net_rank3.safetensors, rank_3-1_100.ckpt: a word before the rank, the rank, optionally epoch and step.
_RANK_FILE = re.compile(
    r"(.*(?:rank|device|checkpoint|ckpt)[_-]?)([0-9]{1,9})(?:-[0-9]{1,18}_[0-9]{1,18})?\.(?:ckpt|safetensors)", re.IGNORECASE
)
# llama-model-0000003-0000008.safetensors: MindFormers' Checkpoint 2.0, rank 3 of 8.
_RANK_OF_TOTAL = re.compile(r"(.+-)([0-9]{7})-([0-9]{7}\.safetensors)")
# llama_rank_3-network.ckpt: a rank anywhere in the name. Only to recognize that there are files of other ranks.
_RANK_ANYWHERE = re.compile(r"(?<![a-z])(?:rank|device)[_-]?([0-9]{1,9})(?![0-9])", re.IGNORECASE)
# model-00003-of-00008.safetensors: Hugging Face, the third of 8 files of whole tensors.
_SHARD = re.compile(r"(.+-)([0-9]{5})-of-([0-9]{5})\.safetensors")
_SHOWN = 4


def is_candidate(path: str, pattern: str | None = None) -> bool:
    """Return whether a path names a checkpoint file that matches a glob pattern.

    A pattern with a `/` is matched against the whole path, any other against the name.
    """
    name = path.rpartition("/")[2]
    if format_of(name) is None or name.startswith(".") or name == STRATEGY_NAME:
        return False
    return pattern is None or fnmatch.fnmatchcase(path if "/" in pattern else name, pattern)


def preview(names: Collection[str]) -> str:
    """Return a few of these names in order, and the number of the others."""
    return listed(sorted(names), _SHOWN)


def rank_folders(names: Iterable[str], where: str) -> dict[int, str]:
    """Return the folder of each rank.

    Folders named `rank_<r>` are used. If there are none, folders in another spelling are used, provided that all have the same.

    Args:
        names: names of the folders.
        where: parent folder, for messages.

    Raises:
        DataError: two folders belong to the same rank.
        RequestError: several spellings other than `rank_<r>` are used.
    """
    spellings: dict[str, dict[int, str]] = defaultdict(dict)
    for name in names:
        if (found := _RANK_FOLDER.fullmatch(name)) is None:
            continue
        other = spellings[found[1] + found[2]].setdefault(int(found[3]), name)
        if other != name:
            raise DataError(
                "DuplicateRank",
                f"{other} and {name} have the same rank number",
                where=where,
                fix="move the one that does not belong to the checkpoint to another folder",
            )
    if _USUAL in spellings or len(spellings) < 2:
        return spellings.get(_USUAL) or next(iter(spellings.values()), {})
    examples = " and ".join(next(iter(folders.values())) for folders in spellings.values())
    raise RequestError(
        "AmbiguousFiles",
        f"{examples} could both be rank folders",
        where=where,
        fix="rename the rank folders of the checkpoint to rank_0, rank_1, ...",
    )


def ranks_of_files(names: Iterable[str]) -> dict[int, list[str]]:
    """Return the files of each rank if all names follow one pattern that contains a rank, otherwise an empty dict."""
    families: set[tuple[str, str]] = set()
    ranks: dict[int, list[str]] = defaultdict(list)
    for name in names:
        if (family := _family(name)) is None:
            return {}
        families.add(family[:2])
        ranks[family[2]].append(name)
    return dict(ranks) if len(families) == 1 else {}


def other_ranks(name: str, names: Collection[str], *, anywhere: bool = False) -> list[str]:
    """Return the names of files or folders that follow the pattern of `name` with another rank.

    With `anywhere`, the rank of a checkpoint file may be anywhere in its name, and other numbers may differ.
    """
    found = set()
    for family_of in (_family, _family_anywhere) if anywhere else (_family,):
        if (own := family_of(name)) is not None:
            others = ((other, family_of(other)) for other in names)
            found |= {other for other, family in others if family and family[:2] == own[:2] and family[2] != own[2]}
    return [other for other in names if other in found]


def exchanged(paths: Mapping[int, str], *, exact: bool = False) -> list[int]:
    """Return the ranks whose paths contain another of these ranks or, with `exact`, any other rank.

    The ranks in the paths must be exactly these ranks, unless `exact` is set. Then all paths must contain a rank.

    Names with `device` are ignored: they may number the devices of a machine in another order.
    """
    families = {rank: _family(path.rpartition("/")[2]) for rank, path in paths.items()}
    said = {rank: family[2] for rank, family in families.items() if family is not None and "device" not in family[0].lower()}
    alike = len(said) == len(paths) and len({family[:2] for family in families.values() if family is not None}) == 1
    return [rank for rank, other in said.items() if rank != other] if alike and (exact or set(said.values()) == set(said)) else []


def refuse_exchanged(paths: Mapping[int, str], fix: str, *, exact: bool = False) -> None:
    """Refuse files if their names, or the names of their folders, contain the ranks of other files.

    Args:
        paths: file of each rank.
        fix: remedy, for the message.
        exact: whether the names of folders must contain exactly these ranks.

    Raises:
        DataError: names contain the ranks of other files.
    """
    folders = {rank: path.rpartition("/")[0] for rank, path in paths.items()}
    if wrong := exchanged(paths) or exchanged(folders, exact=exact):
        raise DataError(
            "SourceRanksMismatch",
            f"{paths[wrong[0]]} would be read as the file of rank {wrong[0]}, but its name contains another rank"
            + (f"; the same applies to {len(wrong) - 1} other ranks" if len(wrong) > 1 else ""),
            where="source",
            fix=fix,
        )


def rank_of(name: str, *, anywhere: bool = False) -> int | None:
    """Return the rank in the name of a file or folder, or None if there is none. See `other_ranks` for `anywhere`."""
    family = (_family_anywhere(name) if anywhere else None) or _family(name)
    return None if family is None else family[2]


def total_of(name: str) -> int:
    """Return the number of ranks in the name of a file. 0 means that there is none."""
    found = _RANK_OF_TOTAL.fullmatch(name)
    return int(found[3][:7]) if found else 0


def _family(name: str) -> tuple[str, str, int] | None:
    """Return the parts of a name before and after its rank, which all ranks share, and the rank."""
    if found := _RANK_FOLDER.fullmatch(name):
        return found[1] + found[2], "", int(found[3])
    if found := _RANK_FILE.fullmatch(name):
        return found[1], "", int(found[2])
    if found := _RANK_OF_TOTAL.fullmatch(name):
        return found[1], found[3], int(found[2])
    return None


def _family_anywhere(name: str) -> tuple[str, str, int] | None:
    """Return the same as `_family` for a checkpoint file with its rank anywhere in the name, without other numbers."""
    found = _RANK_ANYWHERE.search(name) if format_of(name) is not None else None
    if found is None:
        return None
    before, after = (re.sub("[0-9]+", "0", part) for part in (name[: found.start(1)], name[found.end(1) :]))
    return before, after, int(found[1])


def shards(names: Collection[str], where: str) -> list[str]:
    """Return the numbered files of a Hugging Face checkpoint if these names are one complete set, otherwise an empty list.

    Raises:
        MissingInputError: some files of the set are missing.
    """
    found = [_SHARD.fullmatch(name) for name in names]
    sets = {(match[1], match[3]) if match else None for match in found}
    if len(sets) != 1 or None in sets:
        return []
    total = int(next(match[3] for match in found if match))
    numbers = sorted(int(match[2]) for match in found if match)
    if absent := [number for number in range(1, total + 1) if number not in numbers]:
        raise MissingInputError(
            "FileMissing",
            f"file {absent[0]} of {total} is missing" + (f" (and {len(absent) - 1} others)" if len(absent) > 1 else ""),
            where=where,
            fix="restore the missing files",
        )
    return sorted(names) if numbers == list(range(1, total + 1)) else []
