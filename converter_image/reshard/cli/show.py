"""What people see: progress, tables, sizes."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from reshard.errors import printable

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

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
    """A line of result."""
    print(printable(text))


def say(text: str) -> None:
    """A line on standard error. That nobody can read it stops nothing; the exit code tells the rest."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        discard("stderr")


def discard(stream: Literal["stdout", "stderr"]) -> None:
    """Let go of what is printed to this stream, so that the interpreter's own flush at exit stays silent too."""
    setattr(sys, stream, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - open to the end


def out_json(document: dict[str, Any]) -> None:
    """The one object that a program reads."""
    print(json.dumps(document))


def table(title: str | None, columns: Iterable[tuple[str, str]], rows: Iterable[Iterable[object]]) -> None:
    """Print a table; each column is a heading and "left" or "right"."""
    drawn = Table(
        title=Text(printable(title)) if title is not None else None,
        title_justify="left",
        box=None,
        header_style="bold",
        pad_edge=False,
    )
    for heading, justify in columns:
        drawn.add_column(heading, justify="right" if justify == "right" else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(printable(str(cell))) for cell in row))
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200)
    with console.capture() as text:
        console.print(drawn)
    print(text.get(), end="")  # rich itself would end the process when nobody reads any more


class BarProgress:
    """A bar with rate and time left, on a terminal's standard error."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._progress is not None:
            self._progress.stop()

    def begin(self, what: str, total: int, unit: str) -> None:
        """See `Progress.begin`."""
        if self._progress is not None:
            self._progress.stop()
        counts = (DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(),)
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), *counts, TimeRemainingColumn(), console=self._console
        )
        self._task = self._progress.add_task(what, total=total)
        self._progress.start()

    def advance(self, count: int) -> None:
        """See `Progress.advance`."""
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, count)

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        self._console.print(Text(f"note: {printable(text)}"))


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
        say(f"note: {printable(text)}")


def progress() -> BarProgress | LineProgress:
    """The progress that fits where standard error goes."""
    return BarProgress() if sys.stderr.isatty() else LineProgress()
