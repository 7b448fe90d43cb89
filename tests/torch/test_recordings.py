"""The recorded checkpoints in `tests/unit/data/torch` are valid: real torch loads them as their records state."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from torch_files import DATA
from torch_program import run

if TYPE_CHECKING:
    from pathlib import Path

# Torch writes `.distcp` files of safetensors, but its readers expect archives.
RECORDED = sorted(path.parent for path in DATA.rglob(".metadata") if "safetensors" not in path.parent.name)


@pytest.fixture(scope="module")
def loaded() -> dict[Path, Any]:
    return dict(zip(RECORDED, run("load", folders=RECORDED), strict=True))


@pytest.mark.parametrize("folder", RECORDED, ids=lambda folder: str(folder.relative_to(DATA)))
def test_torch_loads_what_the_record_states(folder: Path, loaded: dict[Path, Any]) -> None:
    assert loaded[folder] == json.loads((folder / "expected.json").read_text())
