"""The real MindSpore, in a process of its own; prepare.sh provides the path of its Python."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import shared_folder
from mindspore_program import run

if TYPE_CHECKING:
    from collections.abc import Callable

ORACLE = Path(__file__).with_name("oracle.py")

# So many are one process' work: importing MindSpore takes as long as fifty of them.
_BATCH = 100


@pytest.fixture(scope="session")
def oracle() -> Callable[..., Any]:
    """Run a command of oracle.py, and return its answer."""
    return lambda *arguments: json.loads(run(ORACLE, *arguments).splitlines()[-1])


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    return partial(shared_folder.filled, tmp_path_factory)


@pytest.fixture(scope="session")
def once(filled: Callable[[str, Callable[[Path], object]], Path]) -> Callable[..., Path]:
    """A folder that MindSpore fills, once."""
    return lambda command, *arguments: filled(
        "-".join([command, *map(str, arguments[:1])]), lambda folder: run(ORACLE, command, folder, *arguments)
    )


@pytest.fixture(scope="session")
def transformed(once: Callable[..., Path]) -> Callable[[int], Path]:
    """The folder with the inputs of a case and MindSpore's outputs."""

    def get(number: int) -> Path:
        first = number - number % _BATCH
        return once("transform", *range(first, first + _BATCH)) / str(number)

    return get
