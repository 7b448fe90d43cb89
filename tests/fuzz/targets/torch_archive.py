"""Fuzz archives of torch.save."""

from __future__ import annotations

from inputs import DATA, Reader

from reshard.formats.torch.archive import locate, read_archive

SEEDS = [*DATA.glob("files/*.pt"), *DATA.glob("items/*.distcp")]


def read(content: bytes) -> None:
    reader = Reader(content)
    found = read_archive(reader)
    for tensor in found.tensors:
        locate(reader, found, tensor.storage)
