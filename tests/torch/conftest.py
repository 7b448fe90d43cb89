"""Checkpoints that real torch wrote, once for all processes of the tests."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import shared_folder
from torch_program import run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Any]]:
    """Return a function that runs a program once with a new folder, and returns the folder and the program's answer."""

    def get(name: str, program: str, **arguments: Any) -> tuple[Path, Any]:
        folder = shared_folder.filled(tmp_path_factory, name, partial(fill, program, arguments))
        return folder, json.loads((folder / "answer.json").read_text())

    return get


def fill(program: str, arguments: dict[str, Any], folder: Path) -> None:
    (folder / "answer.json").write_text(json.dumps(run(program, folder=folder, **arguments)))
