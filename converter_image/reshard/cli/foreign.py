"""Print the tensors, shards and files of a checkpoint with metadata, as a table or JSON, for `reshard inspect`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from reshard.checkpoint.dtypes import DTYPES
from reshard.cli import console
from reshard.cli.arguments import matching
from reshard.model import Checkpoint, Grid
from reshard.pictures.captions import shape, size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reshard.formats.torch.archive import Archive
    from reshard.model import TensorMeta
    from reshard.source.foreign import Foreign

_SHOWN = 40


@dataclass(frozen=True, slots=True)
class _Line:
    """One tensor of the table.

    Attributes:
        name: its name.
        dtype: name of its type.
        shape: lengths of the whole tensor.
        shards: the division into shards, or the storage, as text.
        files: the files with its content.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    shards: str
    files: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * DTYPES[self.dtype].itemsize


def show_foreign(
    foreign: Foreign, path: str, parameters: Sequence[str], *, complete: str | None, every: bool, as_json: bool
) -> None:
    """Print the tensors of a checkpoint, by default in a shortened list.

    Args:
        foreign: the checkpoint, or the `torch.save` file.
        path: its path or URL.
        parameters: patterns of names; empty: all.
        complete: description of the transform that wrote the checkpoint. None: its folder has no manifest.
        every: whether to print each tensor.
        as_json: whether to print one JSON document.
    """
    found = foreign.content
    lines = _lines(found, path.rstrip("/").rpartition("/")[2])
    chosen = set(matching((line.name for line in lines), parameters)) if parameters else None
    lines = [line for line in lines if chosen is None or line.name in chosen]
    if as_json:
        console.out_json(_document(foreign, lines) | {"complete": complete is not None})
        return
    distributed = isinstance(found, Checkpoint)
    rows = [
        ("format", foreign.format),
        *([("version", found.version)] if isinstance(found, Checkpoint) and found.version else []),
        *([("files", f"{len(found.files):,}")] if isinstance(found, Checkpoint) else []),
        ("tensors", f"{len(lines):,}"),
        ("elements", f"{sum(prod(line.shape) for line in lines):,}"),
        ("size", size(sum(line.nbytes for line in lines))),
        ("other values", f"{_others(found):,}"),
        *([] if complete is None else [("complete", complete)]),
    ]
    if complete is None and isinstance(found, Checkpoint):
        for note in found.notes:
            console.out(f"note: {note}")
    console.table([("", "left"), ("", "left")], rows)
    shown = lines if every else lines[:_SHOWN]
    columns = [("tensor", "left"), ("type", "left"), ("shape", "right"), ("shards" if distributed else "storage", "left")]
    columns += [("files", "left")] if distributed else []
    console.out()
    console.table(columns, [(*_cells(line), *([_some(line.files)] if distributed else [])) for line in shown])
    if len(lines) > len(shown):
        console.out(f"... and {len(lines) - len(shown)} more; --all shows them, --parameter 'PATTERN' some")


def _others(found: Checkpoint | Archive) -> int:
    return len(found.objects) if isinstance(found, Checkpoint) else found.others


def _cells(line: _Line) -> tuple[str, ...]:
    return (line.name, line.dtype, shape(line.shape), line.shards)


def _some(files: tuple[str, ...]) -> str:
    return files[0] if len(files) == 1 else f"{len(files)} files" if files else ""


def _lines(found: Checkpoint | Archive, file: str) -> list[_Line]:
    if isinstance(found, Checkpoint):
        return [
            _Line(
                *(tensor.name, tensor.dtype, tensor.shape, _shards(tensor)),
                tuple(found.files[i] for i in sorted(set(tensor.shards.files.tolist()))),
            )
            for tensor in found.tensors
        ]
    users = Counter(tensor.storage for tensor in found.tensors)
    return [
        _Line(
            *(tensor.name, tensor.dtype.name, tensor.shape),
            tensor.storage + ", shared" * (users[tensor.storage] > 1) + ", not row-major" * (not tensor.row_major),
            (file,),
        )
        for tensor in found.tensors
    ]


def _shards(tensor: TensorMeta) -> str:
    tiling = tensor.shards.tiling
    if not isinstance(tiling, Grid):
        return f"{len(tiling)} boxes"
    if len(tiling) < 2:
        return "whole"
    uneven = ", uneven" if any(not isinstance(points, range) for points in tiling.cuts) else ""
    return f"{' x '.join(map(str, tiling.parts))}{uneven}"


def _document(foreign: Foreign, lines: list[_Line]) -> dict[str, Any]:
    found = foreign.content
    tensors = [
        {"name": line.name, "dtype": line.dtype, "shape": list(line.shape), "bytes": line.nbytes, "files": list(line.files)}
        for line in lines
    ]
    if not isinstance(found, Checkpoint):
        return {"format": foreign.format, "tensors": tensors, "other_values": found.others}
    by_name = {tensor.name: tensor for tensor in found.tensors}
    for entry in tensors:
        entry["shards"] = _boxes(found, by_name[str(entry["name"])])
    return {
        "format": foreign.format,
        "version": found.version,
        "files": list(found.files),
        "tensors": tensors,
        "objects": [each.name for each in found.objects],
    }


def _boxes(found: Checkpoint, tensor: TensorMeta) -> list[dict[str, Any]]:
    shards = []
    for tile in range(len(tensor.shards.tiling)):
        box = tensor.shards.tiling.box(tile)
        places = [
            {"file": found.files[place.file], "offset": place.offset, "length": place.length}
            for place in tensor.shards.places(tile)
        ]
        shards.append({"start": list(box.start), "shape": list(box.shape), "places": places})
    return shards
