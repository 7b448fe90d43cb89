"""What people see: progress, tables, sizes."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Self

from reshard.cli import logs
from reshard.cli.streams import encodable
from reshard.errors import printable
from reshard.telemetry import log

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from reshard.cli.drawn import BarProgress

_LINE_EVERY_SECONDS = 5.0
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def size(nbytes: float) -> str:
    """Bytes for people.

    >>> size(2_140_000_000)
    '2.14 GB'
    """
    step = 0
    while nbytes >= 999.5 and step < len(_UNITS) - 1:
        nbytes /= 1000
        step += 1
    return f"{nbytes:.3g} {_UNITS[step]}" if step else f"{nbytes:.0f} B"


def out(text: str = "") -> None:
    """Print a line of the result."""
    draw(f"{printable(text)}\n")


def draw(text: str) -> None:
    """Print text that may hold drawing characters and several lines, as far as standard output can encode it."""
    print(encodable(text, sys.stdout), end="")


def say(text: str, level: int = logging.INFO, **fields: int | str) -> None:
    """Print a line to standard error; where only JSON goes there, log it at `level` with `fields`."""
    if logs.structured():
        log.log(level, text, extra=fields)
    else:
        logs.write(text)


def out_json(document: dict[str, Any]) -> None:
    """Print the one object that a program reads."""
    print(json.dumps(document))


def table(title: str | None, columns: Iterable[tuple[str, str]], rows: Iterable[Iterable[object]]) -> None:
    """Print a table; each column is a heading and "left" or "right"."""
    from reshard.cli import drawn  # noqa: PLC0415 - a pod draws nothing, and starts a tenth of a second sooner

    draw(drawn.table(title, columns, rows))  # rich itself would end the process when nobody reads any more


class LineProgress:
    """A line now and then, where nobody watches a terminal."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._what, self._total, self._unit, self._done = "", 0, "", 0
        self._began = self._last = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    def begin(self, what: str, total: int, unit: str) -> None:
        """See `Progress.begin`."""
        with self._lock:
            self._what, self._total, self._unit, self._done = what, total, unit, 0
            self._began = self._last = time.monotonic()
        say(f"{what}: {size(total) if unit == 'bytes' else f'{total} {unit}'}")

    def advance(self, count: int) -> None:
        """See `Progress.advance`."""
        with self._lock:
            self._done += count
            now = time.monotonic()
            if now - self._last < _LINE_EVERY_SECONDS or not self._total:
                return
            self._last = now
            rate = self._done / (now - self._began)
            left = (self._total - self._done) / rate if rate else 0.0
            done = (
                f"{size(self._done)} of {size(self._total)}, {size(rate)}/s"
                if self._unit == "bytes"
                else f"{self._done} of {self._total}"
            )
            line = f"{self._what}: {100 * self._done // self._total} %, {done}, {left:.0f} s left"
        say(line)

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        say(f"note: {printable(text)}", logging.WARNING)


def progress() -> BarProgress | LineProgress:
    """The progress that fits where standard error goes."""
    if logs.structured() or not sys.stderr.isatty():
        return LineProgress()
    from reshard.cli.drawn import BarProgress  # noqa: PLC0415 - as above

    return BarProgress()
