"""Checkpoints that a format writes from arrays, without a transform."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from reshard.checkpoint.output import OBJECT, Checksum, OutputFile, OutputTensor, Span

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from reshard.formats.protocol import OutputFormat

    Array = np.ndarray
    Content = tuple[OutputTensor, bytes]


def shard(name: str, whole: Array, start: Sequence[int], shape: Sequence[int], dtype: str) -> Content:
    """Return a box of an array, and its bytes."""
    part = whole[tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))]
    assert part.shape == tuple(shape)
    return OutputTensor(name, dtype, tuple(shape), part.nbytes, tuple(start), whole.shape), part.tobytes()


def opaque(name: str, content: bytes) -> Content:
    """Return an object."""
    return OutputTensor(name, OBJECT, (len(content),), len(content)), content


def rendered(output: OutputFormat, contents: Sequence[Content], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return a file with these tensors, in content order."""
    tensors = [tensor for tensor, _ in contents]
    found, crc = bytearray(), 0
    for piece in output.pieces(tensors, metadata or {}):
        if isinstance(piece, Span):
            part = contents[piece.tensor][1][piece.offset : piece.offset + piece.length]
            crc = zlib.crc32(part)
            found += part
        elif isinstance(piece, Checksum):
            assert len(piece.render(crc)) == piece.length
            found += piece.render(crc)
        else:
            found += piece
    assert len(found) == output.file_size(tensors, metadata or {})
    return bytes(found)


def write_checkpoint(output: OutputFormat, folder: Path, ranks: Sequence[Sequence[Content]]) -> list[OutputFile]:
    """Write a checkpoint of these ranks."""
    files = []
    for rank, contents in enumerate(ranks):
        order = output.content_order([tensor for tensor, _ in contents])
        ordered = [contents[i] for i in order]
        assert all(output.can_hold(tensor) for tensor, _ in ordered)
        path = folder / output.path(rank, len(ranks), "x")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rendered(output, ordered))
        files.append(OutputFile(output.path(rank, len(ranks), "x"), path.stat().st_size, tuple(t for t, _ in ordered)))
    for name, content in output.documents(files).items():
        (folder / name).write_bytes(content)
    return files
