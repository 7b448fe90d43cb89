"""Where the log records of a command go: to standard error."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

from reshard.cli.streams import TolerantStream
from reshard.telemetry import formatter, log

if TYPE_CHECKING:
    from reshard.telemetry import LogFormat


class Handler(logging.Handler):
    """Writes log records to standard error while it is active.

    Args:
        level: the least severe level that is logged, in lower case.
        form: the format of the lines.
    """

    def __init__(self, level: str, form: LogFormat) -> None:
        super().__init__()
        self.structured = form == "json"
        self.setFormatter(formatter(form))
        self._before = log.level
        log.setLevel(level.upper())
        log.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        write(self.format(record))

    def close(self) -> None:
        """Restore the logger."""
        log.removeHandler(self)
        log.setLevel(self._before)
        super().close()


def structured() -> bool:
    """Return whether standard error is for JSON lines only."""
    return any(isinstance(handler, Handler) and handler.structured for handler in log.handlers)


def write(line: str) -> None:
    """Write a line to standard error. If that fails the command continues; its exit code tells the outcome."""
    stream = TolerantStream(sys.stderr)
    stream.write(f"{line}\n")
    stream.flush()
