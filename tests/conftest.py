"""Fixtures and settings for the tests of every tier."""

from __future__ import annotations

import signal
from collections import Counter
from typing import TYPE_CHECKING

import effort
import pytest

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

effort.load_profile()

# A background job of a shell ignores SIGINT, and so would the programs that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Print the duration of each tier's tests, summed over all processes."""
    seconds: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport) and report.nodeid.startswith("tests/"):
                seconds[report.nodeid.split("/")[1]] += report.duration
    if seconds:
        terminalreporter.write_line(", ".join(f"{tier}: {taken:.0f} s of tests" for tier, taken in seconds.most_common()))
