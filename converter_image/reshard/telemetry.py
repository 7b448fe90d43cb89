"""Phases of an operation: how long each takes and how much it moves, in log records and as numbers."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Literal

from reshard.errors import ReshardError

if TYPE_CHECKING:
    from collections.abc import Iterator

    Field = int | str
    LogFormat = Literal["text", "json"]

log = logging.getLogger("reshard")
log.addHandler(logging.NullHandler())  # a library leaves it to the application where log records go

# Threads that work for an operation get its context: see `contextvars.copy_context`.
_operation: ContextVar[list[Phase] | None] = ContextVar("reshard_operation", default=None)


class Phase:
    """A phase of an operation, from the moment it is made.

    Attributes:
        name: name of the phase in snake_case.
        fields: facts and measurements, such as `rank` and `bytes_written`.
    """

    def __init__(self, name: str, fields: dict[str, Field]) -> None:
        self.name = name
        self.fields = fields
        self._started = time.perf_counter()
        self._seconds: float | None = None

    @property
    def seconds(self) -> float:
        """Duration in seconds, to the microsecond; of a phase that has not ended, until now."""
        return round(time.perf_counter() - self._started, 6) if self._seconds is None else self._seconds

    def measure(self, **fields: Field) -> None:
        """Add fields that are known only now."""
        self.fields |= fields

    def end(self, error: BaseException | None) -> None:
        """Stop the clock, and log how the phase ended."""
        self._seconds = self.seconds
        fields: dict[str, Field | float] = {"phase": self.name, **self.fields, "seconds": self._seconds}
        title = self.name.replace("_", " ") + (f" {rank}" if (rank := self.fields.get("rank")) is not None else "")
        if error is not None:  # whoever handles the error reports it
            fields["error"] = error.reason if isinstance(error, ReshardError) else type(error).__name__
            log.info("%s: failed after %.3f s (%s)", title, self._seconds, fields["error"], extra=fields)
            return
        moved = self.fields.get("bytes_written", self.fields.get("bytes_read"))
        if isinstance(moved, int) and self._seconds:
            fields["bytes_per_second"] = round(moved / self._seconds)
            rate = moved / self._seconds / 1e6
            log.info("%s: %.3f s, %.3f MB, %.1f MB/s", title, self._seconds, moved / 1e6, rate, extra=fields)
        else:
            log.info("%s: %.3f s", title, self._seconds, extra=fields)


@contextmanager
def phase(name: str, **fields: Field) -> Iterator[Phase]:
    """Measure and log a phase. Also usable as a decorator.

    Args:
        name: name of the phase in snake_case. The duration of a phase with a `rank` is not among `durations`: ranks overlap.
        fields: facts that are known at the start.
    """
    running = Phase(name, fields)
    phases = _operation.get()
    if phases is not None and "rank" not in fields:
        phases.append(running)
    try:
        yield running
    except BaseException as error:
        running.end(error)
        raise
    running.end(None)


@contextmanager
def operation(name: str, **fields: Field) -> Iterator[Phase]:
    """Measure and log an operation, and collect the durations of its phases.

    Args:
        name: name of the operation in snake_case.
        fields: facts that are known at the start.
    """
    outer = _operation.set(None)
    try:
        with phase(name, **fields) as whole:
            _operation.set([])
            yield whole
    finally:
        _operation.reset(outer)


def durations() -> dict[str, float]:
    """Return the seconds that each phase of the current operation took, or has taken so far. Phases may contain others."""
    found: dict[str, float] = {}
    for each in _operation.get() or ():
        found[each.name] = round(found.get(each.name, 0.0) + each.seconds, 6)
    return found


def formatter(form: LogFormat) -> logging.Formatter:
    """Return the formatter of a log format, the same for the command line and the operator."""
    if form == "text":
        return logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    from pythonjsonlogger.json import JsonFormatter  # noqa: PLC0415 - most commands run without it

    names = {"levelname": "level", "name": "logger"}
    return JsonFormatter("%(levelname)s %(name)s %(message)s", rename_fields=names, timestamp=True)
