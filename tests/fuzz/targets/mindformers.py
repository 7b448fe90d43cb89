"""Fuzz `metadata.json` of MindFormers, next to the files that it describes."""

from __future__ import annotations

from inputs import DATA, Folder, files_of

from reshard.formats.registry import source_format

RECORDED = DATA.parent / "mindformers" / "iteration_00000010"
FILES = files_of(RECORDED)
FORMAT = source_format("mindformers")
SEEDS = [RECORDED / "metadata.json"]


def read(content: bytes) -> None:
    FORMAT.read(Folder({**FILES, "metadata.json": content}))
