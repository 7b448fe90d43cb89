"""Fuzz the pickle reader."""

from __future__ import annotations

from fuzzing import DATA, run

from reshard.formats.torch.dcp import ALLOWED
from reshard.formats.torch.unpickle import load

if __name__ == "__main__":
    run(lambda content: load(content, ALLOWED, "fuzz"), DATA.glob("*/.metadata"))
