"""Fuzz the pickle reader."""

from __future__ import annotations

from inputs import DATA

from reshard.formats.torch.dcp import ALLOWED
from reshard.formats.torch.unpickle import load

SEEDS = DATA.glob("*/.metadata")


def read(content: bytes) -> None:
    load(content, ALLOWED, "fuzz")
