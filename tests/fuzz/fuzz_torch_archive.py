"""Fuzz archives of torch.save."""

from __future__ import annotations

from fuzzing import DATA, Reader, run

from reshard.formats.torch.archive import locate, read_archive


def read(content: bytes) -> None:
    reader = Reader(content)
    found = read_archive(reader)
    for tensor in found.tensors:
        locate(reader, found, tensor.storage)


if __name__ == "__main__":
    run(read, [*DATA.glob("files/*.pt"), *DATA.glob("items/*.distcp")])
