"""Fuzz the metadata of distributed checkpoints."""

from __future__ import annotations

from fuzzing import DATA, run

from reshard.formats.torch.dcp import read_metadata
from reshard.formats.torch.names import is_metadata

if __name__ == "__main__":
    run(
        lambda content: read_metadata([("fuzz", content)]),
        (path for path in DATA.glob("*/*") if is_metadata(path.name)),
    )
