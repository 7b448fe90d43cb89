"""Tables and progress bars, rendered by rich. This module is imported only when one of them is printed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Self, TextIO

from rich.console import Console, RenderableType
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

from reshard.cli.console import TolerantStream
from reshard.errors import printable

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType


def table(columns: Iterable[tuple[str, str]], rows: Iterable[Iterable[object]]) -> str:
    """Return a table as text. Each column is a heading and "left" or "right"."""
    columns = list(columns)
    made = Table(
        show_header=any(heading for heading, _ in columns),
        box=None,
        header_style="bold",
        pad_edge=False,
    )
    for heading, justify in columns:
        made.add_column(heading, justify="right" if justify == "right" else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(printable(str(cell))) for cell in row))
    return rendered(made)


def rendered(*renderables: RenderableType) -> str:
    """Return renderables as text, with colors if standard output supports them."""
    console = _console(sys.stdout, width())
    with console.capture() as text:
        console.print(*renderables, sep="\n")
    return text.get()


def width() -> int:
    """Return the width of standard output in characters."""
    return _console(sys.stdout).width if sys.stdout.isatty() else 200


def _console(stream: TextIO, width: int | None = None) -> Console:
    """Return a console whose stream never raises BrokenPipeError, because rich exits the process on this error."""
    return Console(file=TolerantStream(stream), width=width)  # type: ignore[arg-type]  # it has all that rich calls


class BarProgress:
    """Progress that shows a bar with rate and remaining time on a terminal."""

    def __init__(self) -> None:
        self._console = _console(sys.stderr)
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
