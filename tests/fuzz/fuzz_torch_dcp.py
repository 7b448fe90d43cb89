"""Fuzz the metadata of distributed checkpoints."""

from __future__ import annotations

from fuzzing import DATA, run

from reshard.formats.torch.dcp import is_metadata, read_metadata

if __name__ == "__main__":
    run(
        lambda content: read_metadata([("fuzz", content)]),
        (path for path in DATA.glob("*/*") if is_metadata(path.name)),
    )
