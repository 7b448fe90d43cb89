"""Explore all scenarios of the simulation, and print what was covered: python -m simulation SECONDS BOUND [TEXT IN A NAME]."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from simulation.explorer import ViolationError, explore
from simulation.scenarios import KINDS, scenarios


def main(seconds: float, bound: int, text: str = "") -> int:
    """Explore each scenario for at most this time. Return the exit code."""
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for kind, store in KINDS.items():
            for name, scenario in scenarios(Path(folder), store).items():
                if text not in f"{name}, {kind}":
                    continue
                try:
                    print(f"{name}, {kind}: {explore(scenario.simulate, bound=bound, seconds=seconds)}", flush=True)
                except ViolationError as error:
                    print(f"{name}, {kind}: {error}", flush=True)
                    failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]))
