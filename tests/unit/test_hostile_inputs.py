"""Attacks on every parser of outside input: each is read, or refused by name, in limited time and memory (tests/fuzz)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[1] / "fuzz"


@pytest.mark.parametrize("target", sorted(path.stem for path in (FUZZ / "targets").glob("[a-z]*.py")))
def test_attacks_on(target: str) -> None:
    done = subprocess.run([sys.executable, FUZZ / "one.py", target], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1000:]
    assert re.fullmatch(r"[1-9][0-9]* files\n", done.stdout)


def test_an_input_that_takes_too_much_memory_is_found() -> None:
    program = "from limits import Limited; Limited(lambda content: bytearray(b'x') * (60 << 20) * len(content))(b'a', 'greedy')"
    done = subprocess.run([sys.executable, "-c", program], cwd=FUZZ, capture_output=True, text=True, check=False)
    assert re.search(r"AssertionError: \('greedy', 1, \d+\)", done.stderr)
