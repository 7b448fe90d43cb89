"""Fuzz `metadata.json` of MindFormers, next to the files that it describes."""

from __future__ import annotations

from fuzzing import DATA, Folder, files_of, run

from reshard.formats.registry import source_format

RECORDED = DATA.parent / "mindformers" / "iteration_00000010"
FILES = files_of(RECORDED)
FORMAT = source_format("mindformers")


def read(content: bytes) -> None:
    FORMAT.read(Folder({**FILES, "metadata.json": content}))


if __name__ == "__main__":
    run(read, [RECORDED / "metadata.json"])
