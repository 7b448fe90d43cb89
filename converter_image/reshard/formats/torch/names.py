"""Names of the files of PyTorch's formats. Importing this module loads no reader."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

ENDINGS = (".pt", ".pth", ".bin")  # of files that `torch.save` wrote
_METADATA = ".metadata"
# Each rank writes one with `use_collectives=False`, instead of the common document.
_OF_RANK = r"__([0-9]{1,9})\.metadata"


def is_metadata(name: str) -> bool:
    """Return whether a file with this name describes a distributed checkpoint, or one rank's part of it."""
    return name == _METADATA or re.fullmatch(_OF_RANK, name) is not None


def metadata_files(names: Sequence[str]) -> list[str]:
    """Return the metadata files of a distributed checkpoint: one for all ranks, or one for each rank, in order."""
    if _METADATA in names:
        return [_METADATA]
    ranks = {int(found[1]): name for name in names if (found := re.fullmatch(_OF_RANK, name))}
    return [ranks[rank] for rank in sorted(ranks)]
