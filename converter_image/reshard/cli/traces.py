"""Export traces of a command with OpenTelemetry, if its environment variables are set.

The library creates spans if the process has loaded OpenTelemetry (`reshard.telemetry`). This module loads and configures
OpenTelemetry for the command line. Errors in this module never fail a command, and exporting delays its end by at most
`_SHUTDOWN_SECONDS`. OpenTelemetry is imported only if a command is traced.
"""

# ruff: noqa: PLC0415 - see above

from __future__ import annotations

import logging
import os
import re
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from reshard.telemetry import log
from reshard.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_WORD = re.compile(r"[\w.~+/-]{4,}")  # what a token consists of
_PROTOCOL = "http/protobuf"
# Spans that a collector has not taken by then are dropped.
_SHUTDOWN_SECONDS = 3.0


@contextmanager
def exported(handler: logging.Handler, environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Export the spans that end in the body, if the environment requests it.

    Args:
        handler: log handler that receives the warnings of OpenTelemetry.
        environment: environment variables of the OpenTelemetry specification.
    """
    provider = None
    if _is_requested(environment):
        handler.addFilter(_HeaderFilter(environment))
        logging.getLogger("opentelemetry").addHandler(handler)
        provider = _started(environment)
    try:
        yield
    finally:
        if provider is not None:
            ending = threading.Thread(target=provider.shutdown, name="reshard-traces", daemon=True)
            ending.start()
            ending.join(_SHUTDOWN_SECONDS)
            if ending.is_alive():
                log.warning("the OTLP collector did not accept all spans within %.0f s", _SHUTDOWN_SECONDS)


class _HeaderFilter(logging.Filter):
    """Replaces log records of OpenTelemetry that contain its headers, because headers may contain credentials."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        super().__init__()
        names = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")
        given = [text for name in names for text in (environment.get(name, ""), unquote(environment.get(name, "")))]
        self._words = {word for text in given for word in _WORD.findall(text)}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.startswith("opentelemetry"):
            text = f"{record.getMessage()} {record.exc_info[1] if record.exc_info else ''}"
            if any(word in text for word in self._words):
                record.msg, record.args, record.exc_info = (
                    "the OTLP headers are invalid, or the collector rejected them",
                    (),
                    None,
                )
        return True


def _is_requested(environment: Mapping[str, str]) -> bool:
    """Return whether the environment requests an exporter that this module supports."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    endpoints = [environment.get(f"OTEL_EXPORTER_OTLP_{name}", "") for name in ("ENDPOINT", "TRACES_ENDPOINT")]
    exporters = environment.get("OTEL_TRACES_EXPORTER") or ("otlp" if any(endpoints) else "none")
    if exporters == "none":
        return False
    protocol = (
        environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL") or _PROTOCOL
    )
    if any(character in url for url in endpoints for character in "@?"):
        log.warning("no traces are exported: the endpoint URL must not contain credentials; use OTEL_EXPORTER_OTLP_HEADERS")
        return False
    if (exporters, protocol) == ("otlp", _PROTOCOL):
        return True
    log.warning("no traces are exported: %s over %s is not supported; use otlp over %s", exporters, protocol, _PROTOCOL)
    return False


def _started(environment: Mapping[str, str]) -> Any:
    """Configure OpenTelemetry. Return its tracer provider, or None if that fails."""
    try:
        from opentelemetry import context, trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        named = OTELResourceDetector().detect().attributes
        resource = Resource.create({"service.name": "reshard", "service.version": __version__, **named})
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        trace.set_tracer_provider(provider)
        outer = {name: environment[name.upper()] for name in ("traceparent", "tracestate") if name.upper() in environment}
        context.attach(TraceContextTextMapPropagator().extract(outer))
    except ImportError as error:
        log.warning(
            "no traces are exported: %s is not installed; install the extra `otel`, as in `pip install '.[otel]'`", error.name
        )
        return None
    except Exception as error:  # noqa: BLE001 - whatever is wrong with its configuration, the command runs
        log.warning("no traces are exported: %s: %s", type(error).__name__, error)
        return None
    return provider
