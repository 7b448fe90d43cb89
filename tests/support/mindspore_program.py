"""Programs under MindSpore's Python, each in a process of its own; prepare.sh provides the path of that Python."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHARED = [ROOT / "tests" / "conformance", Path(__file__).parent, ROOT / "examples" / "compile-on-cpu"]


def run(program: Path, *arguments: object) -> str:
    """Return the output of a program whose modules are in its own folder or are shared."""
    paths = map(str, [program.parent, *SHARED])
    done = subprocess.run(
        [os.environ["RESHARD_MINDSPORE_PYTHON"], str(program), *map(str, arguments)],
        env={**os.environ, "GLOG_v": "4", "PYTHONPATH": ":".join(paths)},  # fatal errors only
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
