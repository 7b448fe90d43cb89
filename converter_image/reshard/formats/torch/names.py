"""Names of the files of PyTorch's formats. Importing this module loads no reader."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from reshard.errors import MissingInputError, RequestError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

ENDINGS = (".pt", ".pth", ".bin")  # of files that `torch.save` wrote
_METADATA = ".metadata"
# Each rank writes one with `use_collectives=False`, instead of the common document.
_OF_RANK = r"__([0-9]{1,9})\.metadata"
_CONTENT = r"__([0-9]{1,9})_[0-9]+\.distcp"


def is_metadata(name: str) -> bool:
    """Return whether a file with this name describes a distributed checkpoint, or one rank's part of it."""
    return name == _METADATA or re.fullmatch(_OF_RANK, name) is not None


def metadata_files(names: Sequence[str]) -> list[str]:
    """Return the metadata files of a distributed checkpoint: one for all ranks, or one for each rank, in order."""
    if _METADATA in names:
        return [_METADATA]
    ranks = {int(found[1]): name for name in names if (found := re.fullmatch(_OF_RANK, name))}
    return [ranks[rank] for rank in sorted(ranks)]


def complete_metadata(names: Collection[str], where: str, of_rank: str = _OF_RANK, content: str = _CONTENT) -> list[str]:
    """Return the metadata files of a distributed checkpoint, after a check that they are all, and of one save.

    Args:
        names: names of the files in the folder of the checkpoint.
        where: the folder, for messages.
        of_rank: pattern of the names of one rank's metadata. One of its groups is the rank.
        content: pattern of the names of files that a rank wrote. One of its groups is the rank.

    Raises:
        MissingInputError: the metadata of a rank does not exist.
        RequestError: there is metadata for all ranks, and metadata of single ranks. They are of different saves.
    """
    ranks = {rank: name for name in names if (rank := _rank(of_rank, name)) is not None}
    if _METADATA in names:
        if ranks:
            raise RequestError(
                "AmbiguousFiles",
                f"the folder contains {_METADATA}, and {min(ranks.values())} of a checkpoint that was saved without collectives",
                where=where,
                fix="move the metadata of the older checkpoint to another folder",
            )
        return [_METADATA]
    found = sorted(ranks)
    written = {rank for name in names if (rank := _rank(content, name)) is not None}
    gaps = (rank for rank, other in enumerate(found) if rank != other)
    missing = next(gaps, min(written - set(found), default=None))
    if found and missing is not None:
        raise MissingInputError(
            "FileMissing",
            f"the metadata of rank {missing} does not exist, although each rank of the checkpoint wrote its own",
            where=where,
            fix="restore it, or wait until the checkpoint is saved",
        )
    return [ranks[rank] for rank in found]


def _rank(pattern: str, name: str) -> int | None:
    found = re.fullmatch(pattern, name)
    return next((int(group) for group in found.groups() if group), None) if found else None
