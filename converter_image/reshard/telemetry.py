"""Phases of an operation: their durations and amounts of data, in log records, as numbers and in spans.

Spans are created if the process has loaded OpenTelemetry, whose API sends them to the exporter of the application.
"""

from __future__ import annotations

import logging
import sys
import time
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal

from reshard.errors import ReshardError
from reshard.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    Field = int | str
    LogFormat = Literal["text", "json"]

# Fields that the rate of a phase is calculated from. The first one that the phase has is used.
_MOVED = ("bytes_written", "bytes_fetched", "bytes_checked")

log = logging.getLogger("reshard")
log.addHandler(logging.NullHandler())  # the application decides where the log records of a library go

# Threads that work for an operation inherit its context, see `contextvars.copy_context`.
_operation: ContextVar[list[Phase] | None] = ContextVar("reshard_operation", default=None)


class Phase:
    """A phase of an operation. It starts when the object is created.

    Attributes:
        name: name of the phase in snake_case.
        fields: facts and measurements, such as `rank` and `bytes_written`.
    """

    def __init__(self, name: str, fields: dict[str, Field], span: Any) -> None:  # noqa: ANN401 - an object of an optional package
        self.name = name
        self.fields = fields
        self._span = span if span is not None and span.is_recording() else None
        self._started = time.perf_counter()
        self._seconds: float | None = None

    @property
    def seconds(self) -> float:
        """Duration in seconds, rounded to microseconds. For a phase that has not ended, the time since its start."""
        return round(time.perf_counter() - self._started, 6) if self._seconds is None else self._seconds

    def measure(self, **fields: Field) -> None:
        """Add fields that were not known at the start."""
        self.fields |= fields

    def end(self, error: BaseException | None) -> None:
        """Stop the clock, and log the end of the phase."""
        self._seconds = self.seconds
        fields: dict[str, Field | float] = {"phase": self.name, **self.fields, "seconds": self._seconds}
        if self._span is not None:
            self._span.set_attributes({f"reshard.{name}": value for name, value in self.fields.items()})
            context = self._span.get_span_context()
            fields |= {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
        title = self.name.replace("_", " ") + (f" {rank}" if (rank := self.fields.get("rank")) is not None else "")
        if error is not None:  # the handler of the error reports it
            reason = error.reason if isinstance(error, ReshardError) else type(error).__name__
            if self._span is not None:
                self._span.set_attribute("error.type", reason)
                self._span.set_status(_opentelemetry().StatusCode.ERROR, reason)
            fields["error"] = reason
            log.info("%s: failed after %.3f s (%s)", title, self._seconds, reason, extra=fields)
            return
        moved = next((self.fields[name] for name in _MOVED if name in self.fields), None)
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
        name: name of the phase in snake_case. `durations` does not contain phases with a `rank`, because ranks overlap.
        fields: facts that are known at the start.
    """
    with _span(name) as span:
        running = Phase(name, fields, span)
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


def _opentelemetry() -> Any:  # noqa: ANN401 - an optional package
    """Return OpenTelemetry's trace API if the process has loaded it."""
    return sys.modules.get("opentelemetry.trace")


def _span(name: str) -> AbstractContextManager[Any]:
    api = _opentelemetry()
    if api is None:
        return nullcontext()
    tracer = api.get_tracer("reshard", __version__)
    span: AbstractContextManager[Any] = tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False)
    return span


def durations() -> dict[str, float]:
    """Return the seconds of each phase of the current operation, including unfinished ones. Phases may contain others."""
    found: dict[str, float] = {}
    for each in _operation.get() or ():
        found[each.name] = round(found.get(each.name, 0.0) + each.seconds, 6)
    return found


def formatter(form: LogFormat) -> logging.Formatter:
    """Return the formatter of a log format, the same for the command line and the operator."""
    if form == "text":
        return logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    from pythonjsonlogger.json import JsonFormatter  # noqa: PLC0415 - most commands do not need it

    names = {"levelname": "level", "name": "logger"}
    return JsonFormatter("%(levelname)s %(name)s %(message)s", rename_fields=names, timestamp=True)
