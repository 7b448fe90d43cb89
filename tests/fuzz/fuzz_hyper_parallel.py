"""Fuzz HyperParallel's metadata, next to the files that it describes."""

from __future__ import annotations

from fuzzing import DATA, Folder, files_of, run

from reshard.formats.registry import source_format

RECORDED = DATA.parent / "hyper_parallel"
FILES = files_of(RECORDED / "common")
FORMAT = source_format("hyper-parallel")


def read(content: bytes) -> None:
    FORMAT.read(Folder({**FILES, ".metadata": content}))


if __name__ == "__main__":
    run(read, RECORDED.glob("*/.*metadata"))
