"""Standard output and standard error: print results, messages, logs and progress to streams with any encoding.

Tables and progress bars are rendered by rich, which is imported only when one of them is printed.
"""

# ruff: noqa: PLC0415 - see above

from __future__ import annotations

import codecs
import contextlib
import io
import json
import logging
import os
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TextIO

from reshard.errors import printable
from reshard.pictures.captions import size
from reshard.telemetry import formatter, log

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    from rich.console import Console, RenderableType
    from rich.progress import Progress, TaskID

    from reshard.errors import ReshardError
    from reshard.telemetry import LogFormat

    Name = Literal["stdout", "stderr"]

_NAMES: tuple[Name, ...] = ("stdout", "stderr")
_SIMILAR = {"█": "#", "▓": "*", "▒": ":", "░": ".", "·": ".", "→": "->", "…": "..."}
_REPLACE = "reshard.replace"
_LINE_EVERY_SECONDS = 5.0


def encodable(text: str, stream: TextIO) -> str:
    """Return `text` with every character that `stream` cannot encode replaced by ASCII.

    Drawing characters are replaced by similar characters, and all others by their Python escapes.
    """
    encoding = stream.encoding or "utf-8"  # a StringIO has none
    return text.encode(encoding, _REPLACE).decode(encoding)


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    unknown = error.object[error.start : error.end]
    ascii_text = (_SIMILAR.get(c) or c.encode("ascii", "backslashreplace").decode("ascii") for c in unknown)
    return "".join(ascii_text), error.end


codecs.register_error(_REPLACE, _replace)


class TolerantStream(io.TextIOBase):
    """A text stream that replaces characters it cannot encode, and ignores write errors."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]  # an attribute there
        """The encoding of the stream."""
        return self._stream.encoding

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The stream's file descriptor."""
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Write `text`."""
        with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
            self._stream.write(encodable(text, self._stream))
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


class _Discarding(io.TextIOWrapper):
    """A stream that discards all output, instead of a stream that cannot be written."""


def discard(name: Name) -> None:
    """Discard everything printed to a standard stream from now on."""
    # A real file, because the next file to be opened would get a free descriptor.
    nowhere = Path(os.devnull).open("wb")  # noqa: SIM115 - closed by `usable`, or at exit
    setattr(sys, name, _Discarding(nowhere, encoding="utf-8"))


@contextmanager
def usable() -> Iterator[None]:
    """Make both standard streams writable, and restore them at the end."""
    before = {name: getattr(sys, name) for name in _NAMES}
    try:
        for name, stream in before.items():
            if stream is None or stream.closed:
                discard(name)
        yield
    finally:
        for name, stream in before.items():
            if isinstance(found := getattr(sys, name), _Discarding):
                found.close()
                setattr(sys, name, stream)


def flush_at_exit() -> None:
    """Flush both streams. Discard streams that fail, because the interpreter would otherwise report the failure at exit."""
    for name in _NAMES:
        if (stream := getattr(sys, name)) is not None:
            try:
                stream.flush()
            except (OSError, ValueError):
                discard(name)


def out(text: str = "") -> None:
    """Print a line of the result to standard output."""
    draw(f"{printable(text)}\n")


def draw(text: str) -> None:
    """Print text to standard output. Characters that it cannot encode are replaced."""
    print(encodable(text, sys.stdout), end="")


def err(text: str, level: int = logging.INFO, **fields: int | str) -> None:
    """Print a line to standard error, or log it at `level` with `fields` if the log format is JSON."""
    if _logs_json():
        log.log(level, text, extra=fields)
    else:
        _write(text)


def _write(line: str) -> None:
    """Write to standard error. Ignore errors, because the exit code reports the outcome of the command."""
    stream = TolerantStream(sys.stderr)
    stream.write(f"{line}\n")
    stream.flush()


class LogHandler(logging.Handler):
    """Writes the package's log records to standard error until it is closed.

    Args:
        level: minimum level of log records, in lower case.
        form: format of the lines.
    """

    def __init__(self, level: str, form: LogFormat) -> None:
        super().__init__()
        self.setLevel(level.upper())
        self.structured = form == "json"
        self.setFormatter(formatter(form))
        self._before = log.level
        log.setLevel(level.upper())
        log.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        _write(self.format(record))

    def close(self) -> None:
        """Restore the logger."""
        log.removeHandler(self)
        log.setLevel(self._before)
        super().close()


def _logs_json() -> bool:
    return any(isinstance(handler, LogHandler) and handler.structured for handler in log.handlers)


def out_json(document: dict[str, Any]) -> None:
    """Print the result as a JSON object to standard output."""
    print(json.dumps(document))


def out_error(error: ReshardError, code: int) -> None:
    """Print an error as a JSON object to standard output, unless that stream cannot be written."""
    fields = {"reason": error.reason, "message": error.what, "where": error.where, "remedy": error.fix, "exitCode": code}
    document = {"error": fields | {"documentation": error.documentation}}
    TolerantStream(sys.stdout).write(f"{json.dumps(document)}\n")


def table(columns: Iterable[tuple[str, str]], rows: Iterable[Iterable[object]]) -> None:
    """Print a table. Each column is a heading and "left" or "right"."""
    from rich.table import Table
    from rich.text import Text

    columns = list(columns)
    made = Table(show_header=any(heading for heading, _ in columns), box=None, header_style="bold", pad_edge=False)
    for heading, justify in columns:
        made.add_column(heading, justify="right" if justify == "right" else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(printable(str(cell))) for cell in row))
    draw(rendered(made))


def rendered(*renderables: RenderableType) -> str:
    """Return renderables as text, with colors if standard output supports them."""
    console = _rich(sys.stdout, width())
    with console.capture() as text:
        console.print(*renderables, sep="\n")
    return text.get()


def width() -> int:
    """Return the width of standard output in characters."""
    return _rich(sys.stdout).width if sys.stdout.isatty() else 200


def _rich(stream: TextIO, width: int | None = None) -> Console:
    """Return a console whose stream never raises BrokenPipeError, because rich exits the process on this error."""
    from rich.console import Console

    return Console(file=TolerantStream(stream), width=width)  # type: ignore[arg-type]  # it has all that rich calls


class LineProgress:
    """Progress that prints a line every few seconds, for logs."""

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
        err(f"{what}: {size(total) if unit == 'bytes' else f'{total} {unit}'}")

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
        err(line)

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        err(f"note: {printable(text)}", logging.WARNING)


class BarProgress:
    """Progress that shows a bar with rate and remaining time on a terminal."""

    def __init__(self) -> None:
        self._console = _rich(sys.stderr)
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
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

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
        from rich.text import Text

        self._console.print(Text(f"note: {printable(text)}"))


def progress() -> BarProgress | LineProgress:
    """Return a progress bar if standard error is a terminal, otherwise progress in lines."""
    if _logs_json() or not sys.stderr.isatty():
        return LineProgress()
    return BarProgress()
