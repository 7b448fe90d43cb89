"""Fuzz a folder of files of `torch.save`: a file, and the index that lists it."""

from __future__ import annotations

from inputs import DATA, Folder

from reshard.formats.registry import source_format

FORMAT = source_format("torch-save")
FILE = (DATA / "files" / "types.pt").read_bytes()
INDEX = b'{"metadata": {}, "weight_map": {"bool": "a.bin"}}'
SEEDS = [INDEX, *DATA.glob("files/*.pt")]


def read(content: bytes) -> None:
    if content.startswith(b"{"):
        FORMAT.read(Folder({"pytorch_model.bin.index.json": content, "a.bin": FILE}))
    else:
        FORMAT.read(Folder({"a.bin": content}))
