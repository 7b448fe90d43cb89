"""Fuzz the metadata of distributed checkpoints."""

from __future__ import annotations

from inputs import DATA

from reshard.formats.torch.dcp import read_metadata
from reshard.formats.torch.names import is_metadata

SEEDS = [path for path in DATA.glob("*/*") if is_metadata(path.name)]


def read(content: bytes) -> None:
    read_metadata([("fuzz", content)])
