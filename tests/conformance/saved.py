"""The files of a case as MindSpore would save them, without MindSpore."""

from __future__ import annotations

from typing import TYPE_CHECKING

import disk
import rawfiles

from reshard.strategy import StrategyFile, dump

if TYPE_CHECKING:
    from pathlib import Path

    from transforms import Case


def write_source(folder: Path, case: Case, ranks: list[int]) -> None:
    """The checkpoint files of source ranks."""
    types = case.types()
    for rank in ranks:
        path = folder / f"rank_{rank}" / case.file_name(rank)
        path.parent.mkdir(parents=True)
        if case.source_format == "ckpt":
            found = case.source(rank).items()
            path.write_bytes(b"".join(rawfiles.message(name, list(a.shape), types[name], a.tobytes()) for name, a in found))
        else:
            tensors = {name: bits.view(rawfiles.NUMPY_TYPES[types[name]]) for name, bits in case.source(rank).items()}
            four_bits = {name: "Int4" for name in tensors if types[name] == "Int4"}
            path.write_bytes(rawfiles.safetensors(tensors, {"format": "ms"} | four_bits))


def write_strategies(folder: Path, case: Case, side: str) -> None:
    """A strategy file for each stage of a side."""
    folder.mkdir()
    ending, form = ("json", "json") if case.json else ("ckpt", "protobuf")
    for stage in range(getattr(case, f"{side}_stages")):
        layouts = {
            tensor.name: disk.layout(getattr(tensor, side))
            for tensor in case.tensors
            if getattr(tensor, side) is not None and stage in getattr(tensor, f"{side}_stages")
        }
        path = folder / f"strategy_{stage}.{ending}"
        path.write_bytes(dump(StrategyFile(path.name, {stage: layouts}), form))
