"""Limits of the time and the memory that a parser may take for an input."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# Memory that a parser may take whatever the size of its input, such as a list of all ranks that a layout can have.
_FIXED_BYTES = 48 << 20
_FACTOR = 10
# Processor time: a hundredth of what is promised, and what the largest tables of limited size take.
_FIXED_SECONDS = 2.0
_SECONDS_PER_KILOBYTE = 0.01
# Memory that is allocated, although it is never used.
_ADDRESS_SPACE = 4 << 30

_PEAK_RESET = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


class Limited:
    """A parser whose time and memory are checked for each input. Peaks of the process's memory are those that Linux reports."""

    def __init__(self, parse: Callable[[bytes], None]) -> None:
        self._parse = parse
        resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
        parse(b"")  # modules that are imported when they are needed count for no input

    def __call__(self, content: bytes, name: str) -> None:
        """Parse an input. Raises AssertionError if that takes too much."""
        _PEAK_RESET.write_text("5")  # proc(5): reset the peak to the present size
        before, start = _kilobytes("VmRSS"), time.process_time()
        try:
            self._parse(content)
        except BaseException as error:
            error.add_note(f"input: {name}")
            raise
        seconds, peak = time.process_time() - start, (_kilobytes("VmHWM") - before) << 10
        assert seconds <= _FIXED_SECONDS + _SECONDS_PER_KILOBYTE * len(content) / 1000, (name, len(content), seconds)
        assert peak <= _FIXED_BYTES + _FACTOR * len(content), (name, len(content), peak)


def _kilobytes(field: str) -> int:
    return next(int(line.split()[1]) for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
