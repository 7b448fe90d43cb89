"""An OTLP collector on loopback: keeps the spans that it receives, or never answers."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Span:
    """A span.

    Attributes:
        path: names of its ancestors that were received too, and its own.
        parent: the parent's ID in hexadecimal.
        failed: reason of its failure; empty if it has none.
    """

    path: tuple[str, ...]
    trace: str
    parent: str
    attributes: dict[str, Any]
    failed: str


@dataclass
class Collector:
    """Requests that a collector has received."""

    endpoint: str
    requests: list[ExportTraceServiceRequest] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    @property
    def resource(self) -> dict[str, Any]:
        """The attributes of the process that sent the first spans."""
        return _attributes(self.requests[0].resource_spans[0].resource.attributes)

    def spans(self) -> list[Span]:
        received = [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        by_id = {span.span_id: span for span in received}

        def path(span: Any) -> tuple[str, ...]:
            above = by_id.get(span.parent_span_id)
            return (*(path(above) if above is not None else ()), span.name)

        return [
            Span(path(s), s.trace_id.hex(), s.parent_span_id.hex(), _attributes(s.attributes), s.status.message) for s in received
        ]


def _attributes(found: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in found}


@contextmanager
def collecting(*, silent: bool = False) -> Iterator[Collector]:
    """Run a collector; a silent one takes requests and never answers."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = ExportTraceServiceRequest()
            request.ParseFromString(self.rfile.read(int(self.headers["Content-Length"])))
            collector.requests.append(request)
            collector.headers.append({name.lower(): value for name, value in self.headers.items()})
            if silent:
                over.wait()
                return
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        collector = Collector(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            over.set()
            server.shutdown()
            thread.join()
