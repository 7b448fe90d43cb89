"""Traces: the spans that a collector receives, and collectors that do not work."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import disk
import pytest
from otlp_collector import collecting

from reshard.cli import traces

if TYPE_CHECKING:
    from pathlib import Path

TRACE, PARENT = "ab" * 16, "cd" * 8
NOWHERE = "http://127.0.0.1:9"  # without a listener


@pytest.fixture
def made(tmp_path: Path) -> disk.Checkpoint:
    return disk.write(tmp_path / "in", disk.example())


def run(arguments: list[str], *, expect: int = 0, **variables: str) -> list[str]:
    """Run a command with JSON logs. Return the lines of its standard error."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    given |= {"RESHARD_LOG_FORMAT": "json", **variables}
    command = [sys.executable, "-m", "reshard", *arguments]
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == expect, done.stderr
    return done.stderr.splitlines()


def warnings(lines: list[str]) -> list[str]:
    """The messages of warnings and errors, of a log that is JSON throughout."""
    return [line["message"] for line in map(json.loads, lines) if line["level"] in {"WARNING", "ERROR"}]


def test_a_transform_is_a_tree_of_spans(made: disk.Checkpoint, tmp_path: Path) -> None:
    with collecting() as collector:
        lines = run(
            made.arguments(tmp_path / "out"),
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
            OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20s3cret",
            OTEL_RESOURCE_ATTRIBUTES="team=a",
            RESHARD_LOG_LEVEL="info",
            TRACEPARENT=f"00-{TRACE}-{PARENT}-01",
        )
    spans = collector.spans()
    root = "transform_checkpoint"
    once = {
        (root,),
        *((root, name) for name in ("check_target", "plan", "start", "write_ranks", "commit")),
        *((root, "plan", name) for name in ("read_headers", "compare_replicas")),
    }
    assert sorted(span.path for span in spans if "reshard.rank" not in span.attributes) == sorted(once)
    for path in ((root, "write_ranks", "write_rank"), (root, "write_ranks", "write_rank", "verify_rank")):
        assert sorted(span.attributes["reshard.rank"] for span in spans if span.path == path) == list(range(6))
    assert {span.trace for span in spans} == {TRACE}
    assert [span.path for span in spans if span.parent == PARENT] == [(root,)]
    sizes = {f"rank_{r}": (tmp_path / "out" / f"rank_{r}" / f"checkpoint_{r}.ckpt").stat().st_size for r in range(6)}
    for span in spans:
        if span.path[-1] == "write_rank":
            assert span.attributes["reshard.bytes_written"] == sizes[f"rank_{span.attributes['reshard.rank']}"]
            assert span.attributes["reshard.bytes_fetched"] > 0
    (whole,) = (span.attributes for span in spans if span.path == (root,))
    assert whole["reshard.bytes_written"] == sum(sizes.values())
    assert {"service.name": "reshard", "team": "a"}.items() <= collector.resource.items()
    logged = {line["phase"]: line for line in map(json.loads, lines) if "phase" in line}
    assert {line["trace_id"] for line in logged.values()} == {TRACE}
    assert collector.headers[0]["authorization"] == "Bearer s3cret"
    assert "s3cret" not in "".join(lines)


def test_a_failed_phase_is_a_failed_span(made: disk.Checkpoint, tmp_path: Path) -> None:
    next(made.source.rglob("*.ckpt")).write_bytes(b"")
    with collecting() as collector:
        run(made.arguments(tmp_path / "out"), expect=66, OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, OTEL_SERVICE_NAME="mine")
    failed = {span.path[-1]: span.attributes["error.type"] for span in collector.spans() if span.failed}
    assert failed == dict.fromkeys(("transform_checkpoint", "plan", "read_headers"), "ShardMissing")
    assert collector.resource["service.name"] == "mine"


def test_steps_of_one_transform_join_one_trace(made: disk.Checkpoint, tmp_path: Path) -> None:
    with collecting() as collector:
        given = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, "TRACEPARENT": f"00-{TRACE}-{PARENT}-01"}
        run(["plan", *made.arguments(tmp_path / "out")[1:], "--write"], **given)
        run(made.arguments(tmp_path / "out", "--no-commit"), **given)
        run(["commit", str(tmp_path / "out")], **given)
    roots = [span for span in collector.spans() if span.parent == PARENT]
    assert [(span.path, span.trace) for span in roots] == [
        ((name,), TRACE) for name in ("plan_transform", "transform_checkpoint", "commit_checkpoint")
    ]


def test_a_collector_that_never_answers_holds_nothing_up(made: disk.Checkpoint, tmp_path: Path) -> None:
    with collecting(silent=True) as collector:
        found = warnings(
            run(
                made.arguments(tmp_path / "out"),
                OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
                OTEL_EXPORTER_OTLP_TIMEOUT="100000",
            )
        )
    assert collector.requests
    assert any("did not accept all spans" in message for message in found)
    assert disk.differences(made.model, tmp_path / "out", "ckpt") == []


@pytest.mark.parametrize("headers", ["Bearer s3cret", "authorization=Bearer%20s3cret%0Ab", "k=a%09%0As3cret"])
def test_an_export_that_fails_is_a_warning(made: disk.Checkpoint, tmp_path: Path, headers: str) -> None:
    """Both headers are malformed; one is dropped at the start, the other fails each request."""
    given = {"OTEL_EXPORTER_OTLP_ENDPOINT": NOWHERE, "OTEL_EXPORTER_OTLP_HEADERS": headers}
    lines = run(made.arguments(tmp_path / "out"), **given)
    assert any("headers are invalid" in message for message in warnings(lines))
    assert "s3cret" not in "".join(lines)
    assert disk.differences(made.model, tmp_path / "out", "ckpt") == []


@pytest.mark.parametrize(
    ("variables", "warning"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": NOWHERE, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "otlp over grpc is not supported"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "zipkin over http/protobuf is not supported"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": f"{NOWHERE}/?token=s3cret"}, "must not contain credentials"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": NOWHERE, "OTEL_TRACES_EXPORTER": "none"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": NOWHERE, "OTEL_SDK_DISABLED": "true"}, ""),
    ],
)
def test_nothing_is_exported(
    variables: dict[str, str], warning: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(traces, "_started", lambda _: pytest.fail("it was"))
    with traces.exported(logging.NullHandler(), variables):
        pass
    assert warning in caplog.text
    assert bool(warning) == bool(caplog.records)


def test_a_missing_package_is_a_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with traces.exported(logging.NullHandler(), {"OTEL_EXPORTER_OTLP_ENDPOINT": NOWHERE}):
        pass
    assert "pip install '.[otel]'" in caplog.text


def test_a_wrong_configuration_is_a_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "-1")
    with traces.exported(logging.NullHandler(), {"OTEL_EXPORTER_OTLP_ENDPOINT": NOWHERE}):
        pass
    assert "no traces are exported: ValueError: " in caplog.text


def test_nothing_is_loaded_unless_traces_are_requested(made: disk.Checkpoint, tmp_path: Path) -> None:
    code = "import sys; from reshard.cli import program; program(); print(*sys.modules, file=sys.stderr)"
    given = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    given |= {"OTEL_SERVICE_NAME": "a", "TRACEPARENT": f"00-{TRACE}-{PARENT}-01"}
    command = [sys.executable, "-c", code, *made.arguments(tmp_path / "out")]
    loaded = subprocess.run(command, env=given, capture_output=True, text=True, check=True).stderr.split()
    assert "reshard.telemetry" in loaded
    assert not [name for name in loaded if name.startswith("opentelemetry")]


def test_an_application_gets_the_spans_of_the_library(made: disk.Checkpoint, tmp_path: Path) -> None:
    code = """
import sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from reshard.cli import main

exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
with trace.get_tracer("mine").start_as_current_span("mine"):
    code = main()
print(*(f"{span.name}:{span.parent is not None}" for span in exporter.get_finished_spans()))
sys.exit(code)
"""
    given = os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": NOWHERE}  # not for a command in another program
    command = [sys.executable, "-c", code, *made.arguments(tmp_path / "out")]
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=True)
    *_, spans = done.stdout.splitlines()
    assert spans.split()[-2:] == ["transform_checkpoint:True", "mine:False"]
    assert "span" not in done.stderr
