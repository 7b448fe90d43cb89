"""The real MindSpore, in a process of its own; prepare.sh says where its Python is."""

from __future__ import annotations

import json
import os
import subprocess
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import shared_folder

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent

# So many are one process' work: importing MindSpore takes as long as fifty of them.
_BATCH = 100


def _run(*arguments: object) -> str:
    """What oracle.py prints."""
    done = subprocess.run(
        [os.environ["RESHARD_MINDSPORE_PYTHON"], str(HERE / "oracle.py"), *map(str, arguments)],
        env={**os.environ, "GLOG_v": "4"},  # fatal errors only
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="session")
def oracle() -> Callable[..., Any]:
    """Ask MindSpore something."""
    return lambda *arguments: json.loads(_run(*arguments).splitlines()[-1])


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    return partial(shared_folder.filled, tmp_path_factory)


@pytest.fixture(scope="session")
def once(filled: Callable[[str, Callable[[Path], object]], Path]) -> Callable[..., Path]:
    """A folder that MindSpore fills, once."""
    return lambda command, *arguments: filled(
        "-".join([command, *map(str, arguments[:1])]), lambda folder: _run(command, folder, *arguments)
    )


@pytest.fixture(scope="session")
def transformed(once: Callable[..., Path]) -> Callable[[int], Path]:
    """The folder with the inputs of a case and what MindSpore made of them."""

    def get(number: int) -> Path:
        first = number - number % _BATCH
        return once("transform", *range(first, first + _BATCH)) / str(number)

    return get
