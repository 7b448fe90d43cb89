"""Fuzz layout files, and the layouts that follow from them for some parameters."""

from __future__ import annotations

from pathlib import Path

from layout_example import LAYOUT, SHAPES

from reshard.mesh.file import is_layout, parse
from reshard.mesh.resolve import resolve
from reshard.mesh.sharding import Whole

EXAMPLES = Path(__file__).parents[3] / "examples" / "layouts"
TENSORS = {name: Whole("Float32", shape) for name, shape in SHAPES.items()}
SEEDS = [LAYOUT.encode(), *EXAMPLES.glob("*.yaml")]


def read(content: bytes) -> None:
    is_layout(content)
    found = parse(content, "fuzz")
    if found.document.ranks <= 1 << 10:  # the tables of larger layouts are limited, but take longer than fuzzing should
        resolve(found.document, TENSORS, "fuzz")
