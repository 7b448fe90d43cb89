"""Programs of real torch, each in a process of its own Python; prepare.sh of the tier provides the path of that Python."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

PROGRAMS = Path(__file__).parents[1] / "torch" / "programs"


def run(program: str, **arguments: Any) -> Any:
    """Return the answer of a program in `tests/torch/programs`. Arguments and answer are JSON; a path becomes text."""
    done = subprocess.run(
        [os.environ["RESHARD_TORCH_PYTHON"], str(PROGRAMS / f"{program}.py"), json.dumps(arguments, default=str)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-8000:]
    return json.loads(done.stdout.splitlines()[-1])
