"""Fuzz HyperParallel's metadata, next to the files that it describes."""

from __future__ import annotations

from inputs import DATA, Folder, files_of

from reshard.formats.registry import source_format

RECORDED = DATA.parent / "hyper_parallel"
FILES = files_of(RECORDED / "common")
FORMAT = source_format("hyper-parallel")
SEEDS = RECORDED.glob("*/.*metadata")


def read(content: bytes) -> None:
    FORMAT.read(Folder({**FILES, ".metadata": content}))
