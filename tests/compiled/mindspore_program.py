"""Programs of this folder under MindSpore's Python; prepare.sh says where it and the shim are."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

HERE = Path(__file__).parent


def run(program: str, *arguments: object) -> str:
    """What a program of this folder prints under MindSpore's Python."""
    paths = [HERE, HERE.parent / "conformance", HERE.parent / "support"]
    done = subprocess.run(
        [os.environ["RESHARD_MINDSPORE_PYTHON"], str(HERE / program), *map(str, arguments)],
        env={**os.environ, "GLOG_v": "4", "PYTHONPATH": ":".join(map(str, paths))},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
