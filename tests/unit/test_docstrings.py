"""Examples in docstrings are right."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import reshard

ROOM = Path(reshard.__file__).parent
WITH_EXAMPLES = sorted(path for path in ROOM.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: str(path.relative_to(ROOM)))
def test_examples_are_right(path: Path) -> None:
    name = ".".join(path.relative_to(ROOM.parent).with_suffix("").parts).removesuffix(".__init__")
    outcome = doctest.testmod(import_module(name))
    assert (outcome.failed, outcome.attempted > 0) == (0, True)
