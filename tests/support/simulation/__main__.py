"""Explore all scenarios of the simulation, and print what was covered: python -m simulation SECONDS BOUND [TEXT IN A NAME]."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from simulation.explorer import ViolationError, explore
from simulation.reconciles import SIMULATED
from simulation.scenarios import KINDS, scenarios

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulation.explorer import Choices


def simulations(folder: Path) -> dict[str, Callable[[Choices], None]]:
    """Return all simulations by name."""
    found = {
        f"{name}, {kind}": scenario.simulate
        for kind, store in KINDS.items()
        for name, scenario in scenarios(folder, store).items()
    }
    return found | {f"{name}, operator": simulated.simulate for name, simulated in SIMULATED.items()}


def main(seconds: float, bound: int, text: str = "") -> int:
    """Explore each simulation for at most this time. Return the exit code."""
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, simulate in simulations(Path(folder)).items():
            if text not in name:
                continue
            try:
                print(f"{name}: {explore(simulate, bound=bound, seconds=seconds)}", flush=True)
            except ViolationError as error:
                print(f"{name}: {error}", flush=True)
                failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]))
