"""`reshard inspect`: what a checkpoint holds, as a table that people can read."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from reshard.cli import show
from reshard.errors import MissingInputError
from reshard.ranks import format_ranks
from reshard.source import find_files, open_source, read_inventory
from reshard.target import TargetFolder
from reshard.transform import default_workers

if TYPE_CHECKING:
    from reshard.checkpoint.inventory import Inventory

_SHOWN_TENSORS = 200


def inspect(path: str, *, step: int | None, pattern: str | None, as_json: bool) -> None:
    """Show a checkpoint's files and parameters."""
    store, chosen = open_source(path)
    found = find_files(store, chosen, step=step, pattern=pattern)
    manifest = TargetFolder(store, 0).manifest() if chosen is None else None
    inventory = read_inventory(store, found, workers=default_workers())
    if not inventory.files:
        raise MissingInputError("SourceMissing", "there is no checkpoint file", where=path)
    if as_json:
        show.out_json(_document(inventory, complete=manifest is not None))
        return
    for note in found.notes:
        show.out(f"note: {note}")
    if manifest is not None:
        show.out(f"complete by its manifest: rank {manifest.ranks} of {manifest.target_ranks}, from {manifest.source.url}")
    _show(inventory)


def _ranks_by_structure(inventory: Inventory) -> list[tuple[int, ...]]:
    ranks: list[list[int]] = [[] for _ in inventory.structures]
    for file in inventory.files:
        ranks[file.structure].append(file.rank)
    return [tuple(found) for found in ranks]


def _document(inventory: Inventory, *, complete: bool) -> dict[str, Any]:
    return {
        "format": inventory.format,
        "complete": complete,
        "files": [
            {"rank": f.rank, "path": f.path, "size": f.size, "crc": f.crc, "structure": f.structure} for f in inventory.files
        ],
        "structures": [
            {
                "ranks": format_ranks(ranks),
                "metadata": structure.metadata,
                "tensors": [
                    {"name": t.name, "dtype": t.dtype, "shape": list(t.shape), "bytes": t.nbytes} for t in structure.tensors
                ],
            }
            for structure, ranks in zip(inventory.structures, _ranks_by_structure(inventory), strict=True)
        ],
    }


def _show(inventory: Inventory) -> None:
    sizes = [file.size for file in inventory.files]
    each = show.size(min(sizes)) if min(sizes) == max(sizes) else f"{show.size(min(sizes))} to {show.size(max(sizes))}"
    show.out(f"{inventory.format}: {len(sizes)} files of {each}, together {show.size(sum(sizes))}")
    for structure, ranks in zip(inventory.structures, _ranks_by_structure(inventory), strict=True):
        elements = sum(prod(t.shape) for t in structure.tensors)
        show.out()
        rows = [
            (t.name, t.dtype, "x".join(map(str, t.shape)) or "scalar", show.size(t.nbytes))
            for t in structure.tensors[:_SHOWN_TENSORS]
        ]
        show.table(
            f"rank {format_ranks(ranks)}: {len(structure.tensors)} parameters, {elements} elements",
            [("parameter", "left"), ("type", "left"), ("shape", "left"), ("size", "right")],
            rows,
        )
        if len(structure.tensors) > _SHOWN_TENSORS:
            show.out(f"... and {len(structure.tensors) - _SHOWN_TENSORS} more; --json has all")
