"""Fixtures and settings for the tests of every tier."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import effort
import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

    from _pytest.terminal import TerminalReporter

effort.load_profile()

# A background job of a shell ignores SIGINT, and so would the programs that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """With CI=true, turn a skip into a failure, which pytest names. Otherwise a missing requirement hides what is not tested."""
    if os.environ.get("CI") == "true" and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"{reason} (with CI=true, a skipped test is a failure)"


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Print the duration of each tier's tests, summed over all processes, and write the counts that scripts/test.sh adds up."""
    stats = terminalreporter.stats
    seconds: Counter[str] = Counter()
    for reports in stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport) and report.nodeid.startswith("tests/"):
                seconds[report.nodeid.split("/")[1]] += report.duration
    if seconds:
        terminalreporter.write_line(", ".join(f"{tier}: {taken:.0f} s of tests" for tier, taken in seconds.most_common()))
    if counts := os.environ.get("RESHARD_TEST_COUNTS"):
        passed, failed, error, skipped = (len(stats.get(outcome, ())) for outcome in ("passed", "failed", "error", "skipped"))
        Path(counts).write_text(f"{passed} {failed + error} {skipped}\n", encoding="utf-8")
