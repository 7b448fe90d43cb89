"""What MindSpore compiles and saves for the tests of this tier."""

from __future__ import annotations

import fcntl
import os
import shutil
from typing import TYPE_CHECKING

import pytest
from mindspore_program import run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is compiled and saved: strategies and source checkpoints of all networks. Made once, whatever number of processes."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / "compiled"
    with (shared / "compiled.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            made = shared / "compiled.making"
            shutil.rmtree(made, ignore_errors=True)  # of a process that failed
            run("compiler.py", made)
            run("running.py", "save", made)
            made.rename(folder)
    return folder
