"""What holds for the tests of every tier."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

# Machines are shared, and slow for a moment now and then: what takes long is for benchmarks to tell.
settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Say how long the tests of each tier took, all processes together."""
    seconds: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport) and report.nodeid.startswith("tests/"):
                seconds[report.nodeid.split("/")[1]] += report.duration
    if seconds:
        terminalreporter.write_line(", ".join(f"{tier}: {taken:.0f} s of tests" for tier, taken in seconds.most_common()))
