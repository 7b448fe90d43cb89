"""Requirements that a machine lacks, in the preparation of a tier."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from pages import ROOT

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("ci", "code", "printed"), [("true", 3, ""), ("", 0, "RESHARD_PYTHONS=\n")])
def test_the_packaging_tier_names_each_python_and_shell_that_is_missing(tmp_path: Path, ci: str, code: int, printed: str) -> None:
    for name in ("sh", "dirname", "id"):
        (tmp_path / name).symlink_to(shutil.which(name) or name)
    environment = {"PATH": str(tmp_path), "HOME": str(tmp_path), "CI": ci}
    done = subprocess.run(
        ["/bin/sh", "tests/packaging/prepare.sh"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (code, printed)
    missing = "Python 3.11, Python 3.12, Python 3.13, Python 3.14, bash zsh fish"
    assert done.stderr.splitlines()[-1] == f"test: tier packaging: not available on this machine: {missing}"
