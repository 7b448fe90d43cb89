"""Fuzz all parsers, or the named ones, and print a table: `python tests/fuzz [--seconds N] [--inputs N] [TARGET...]`.

Each target runs in a process of its own with atheris. Afterwards, it reads the inputs that atheris kept, one for each new
behaviour, within the limits of `limits.py`. With `--corpus`, these inputs are kept for the next run.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
TARGETS = sorted(path.stem for path in (HERE / "targets").glob("[a-z]*.py"))
# A line of libFuzzer: #1024 NEW cov: 123 ft: 456 corp: 7/89b ...
_PROGRESS = re.compile(r"^#(\d+)\s.*?cov: (\d+) ft: (\d+)", re.MULTILINE)
_LIMITS = ("-timeout=20", "-rss_limit_mb=1500", "-malloc_limit_mb=256", "-print_final_stats=0", "-verbosity=1")


class Outcome(NamedTuple):
    """The run of one target: its inputs, seconds, covered branches and their combinations, and what failed."""

    target: str
    inputs: int
    seconds: float
    covered: int
    features: int
    finding: str

    @property
    def row(self) -> str:
        """Row of the table."""
        rate = self.inputs / max(self.seconds, 0.1)
        return f"{self.target:18} {self.inputs:>11,} {rate:>9,.0f} {self.covered:>8,} {self.features:>9,}  {self.finding}"


def fuzz(target: str, seconds: int, inputs: int, corpus: Path) -> Outcome:
    """Run a target. Its failing input is written to the current folder."""
    corpus.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(HERE / "one.py"), target]
    bounds = (f"-max_total_time={seconds}", f"-runs={inputs}", f"-artifact_prefix={target}-")
    start = time.perf_counter()
    done = subprocess.run([*command, *bounds, *_LIMITS, str(corpus)], capture_output=True, text=True, check=False)
    took = time.perf_counter() - start
    progress = [tuple(map(int, found)) for found in _PROGRESS.findall(done.stderr)]
    made, covered, features = progress[-1] if progress else (0, 0, 0)
    again = None
    if done.returncode == 0 and any(corpus.iterdir()):
        again = subprocess.run([*command, str(corpus)], capture_output=True, text=True, check=False)
    failed = done if done.returncode else again if again and again.returncode else None
    return Outcome(target, made, took, covered, features, _finding(failed.stdout + failed.stderr) if failed else "")


def _finding(text: str) -> str:
    """Return the error in the output of a target, and the input that caused it."""
    errors = re.findall(
        r"^(?:\w+\.)*\w*(?:Error|Exception|timeout|out-of-memory).*$|^input: .*$|written to .*$", text, re.MULTILINE
    )
    return " | ".join(errors[-3:]) or text[-300:]


def main() -> None:
    """Fuzz, and fail if there is a finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"parsers to fuzz: {', '.join(TARGETS)}. Default: all")
    parser.add_argument("--seconds", type=int, default=10, help="maximum time of a target")
    parser.add_argument("--inputs", type=int, default=-1, help="maximum number of inputs of a target")
    parser.add_argument("--corpus", type=Path, help="folder that keeps inputs, with a folder for each target")
    chosen = parser.parse_args()
    found = []
    print(f"{'target':18} {'inputs':>11} {'per s':>9} {'covered':>8} {'features':>9}  finding")
    with tempfile.TemporaryDirectory() as folder:
        for target in chosen.targets or TARGETS:
            found.append(fuzz(target, chosen.seconds, chosen.inputs, (chosen.corpus or Path(folder)) / target))
            print(found[-1].row, flush=True)
    total = sum(each.inputs for each in found)
    print(f"{total:,} inputs of {len(found)} targets, {sum(bool(each.finding) for each in found)} findings")
    sys.exit(any(each.finding for each in found))


if __name__ == "__main__":
    main()
