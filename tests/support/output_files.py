"""Checkpoints that a format writes from arrays, without a transform."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from local_folder import content_of

from reshard.checkpoint.dtypes import DTYPES, OBJECT
from reshard.checkpoint.output import Checksum, OutputFile, OutputTensor, Span

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from reshard.formats.protocol import OutputFormat
    from reshard.model import Checkpoint

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


def recut(folder: Path, found: Checkpoint, ranks: int) -> list[list[Content]]:
    """Return what each rank holds if all tensors of a checkpoint are cut along their first dimension, as FSDP does."""
    cut: list[list[Content]] = [[] for _ in range(ranks)]
    for each in found.objects:
        place = each.places[0]
        content = (folder / found.files[place.file]).read_bytes()[place.offset : place.offset + place.length]
        cut[0].append(opaque(each.name, content))
    for number, tensor in enumerate(found.tensors):
        whole = np.frombuffer(content_of(folder, found, tensor), f"V{DTYPES[tensor.dtype].itemsize}").reshape(tensor.shape)
        if not tensor.shape:
            cut[number % ranks].append(shard(tensor.name, whole, (), (), tensor.dtype))
            continue
        step = max(-(-tensor.shape[0] // ranks), 1)
        for rank in range(ranks):
            start = min(rank * step, tensor.shape[0])
            shape = (min(step, tensor.shape[0] - start), *tensor.shape[1:])
            cut[rank].append(shard(tensor.name, whole, (start, *(0,) * (len(shape) - 1)), shape, tensor.dtype))
    return [
        [(msgspec.structs.replace(tensor, keys=found.keys.get(tensor.name, (tensor.name,))), c) for tensor, c in one]
        for one in cut
    ]


def rendered(output: OutputFormat, contents: Sequence[Content], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return a file with these tensors, in content order."""
    tensors = [tensor for tensor, _ in contents]
    found, crc = bytearray(), 0
    for piece in output.pieces(tensors, metadata or {}):
        if isinstance(piece, Span):
            part = _part(contents, piece)
            crc = zlib.crc32(part)
            found += part
        elif isinstance(piece, Checksum):
            assert len(piece.render(crc)) == piece.length
            found += piece.render(crc)
        else:
            found += piece
    assert len(found) == output.file_size(tensors, metadata or {})
    return bytes(found)


def _part(contents: Sequence[Content], span: Span) -> bytes:
    """Return a span of the tensors' bytes."""
    found = bytearray()
    for number in range(span.tensor, len(contents)):
        found += contents[number][1]
        if len(found) >= span.offset + span.length:
            break
    return bytes(found[span.offset : span.offset + span.length])


def write_checkpoint(output: OutputFormat, folder: Path, ranks: Sequence[Sequence[Content]]) -> list[OutputFile]:
    """Write a checkpoint of these ranks."""
    files = []
    for rank, contents in enumerate(ranks):
        order = output.content_order([tensor for tensor, _ in contents])
        ordered = [contents[i] for i in order]
        assert all(output.can_hold(tensor) for tensor, _ in ordered)
        path = folder / output.path(rank, len(ranks), f"rank_{rank}/x")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rendered(output, ordered))
        files.append(OutputFile(path.relative_to(folder).as_posix(), path.stat().st_size, tuple(t for t, _ in ordered)))
    for name, content in output.documents(files).items():
        (folder / name).write_bytes(content)
    return files
