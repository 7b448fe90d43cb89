"""Requests of all kinds are repeated by one rule, and end when the work is cancelled, except those that clean up."""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING, Any

import disk
import pytest
import thin_s3
from botocore.exceptions import EndpointConnectionError
from botocore.httpsession import URLLib3Session

from reshard.cli import main
from reshard.errors import StorageError
from reshard.progress import Cancellation, CancelledError
from reshard.storage import open_store
from reshard.storage.cancellable import cancelled_by
from reshard.storage.s3 import parts, retries

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from reshard.storage.protocol import Store

PART = 1 << 20
EACH = 20  # as many requests that fail seven times each would use up botocore's quota


def write(store: Store) -> None:
    thin_s3.write_parts(store, bytes(PART + 1), PART)


KINDS: dict[str, Callable[[Store], object]] = {
    "list": lambda store: store.list(""),
    "stat": lambda store: store.stat("x"),
    "read": lambda store: store.read("x", 1),
    "put": lambda store: store.write("z", b"1", mode=None),
    "put-if": lambda store: store.write_new("x", b"1", mode=None),
    "move": lambda store: (store.move("x", "y"), store.move("y", "x")),
    "upload": write,
    "delete": lambda store: store.delete("y"),
}


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_USUAL_PART", PART)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between two tries of a request, in seconds. They take no time."""
    found: list[float] = []
    monkeypatch.setattr(retries, "wait", found.append)
    return found


@pytest.mark.parametrize(("kind", "failure"), [*((kind, "unreachable") for kind in KINDS), ("list", "busy")])
def test_no_request_is_given_up_because_others_have_failed(
    server: thin_s3.ThinServer, pauses: list[float], monkeypatch: pytest.MonkeyPatch, kind: str, failure: str
) -> None:
    """Botocore limits the number of retries of all requests of a client together."""
    server.put("bucket", "a/x", b"1")
    store = open_store("s3://bucket/a")
    fails = 0
    send = URLLib3Session.send

    def unreachable(session: URLLib3Session, request: Any) -> Any:
        if fail():
            raise EndpointConnectionError(endpoint_url=server.endpoint)
        return send(session, request)

    def fail() -> bool:
        nonlocal fails
        fails -= 1
        return fails >= 0

    if failure == "busy":
        server.refuse = lambda _: (503, "SlowDown") if fail() else None
    else:
        monkeypatch.setattr(URLLib3Session, "send", unreachable)
    for _ in range(EACH):
        fails = 7
        KINDS[kind](store)
    assert len(pauses) == 7 * EACH


@pytest.mark.parametrize("kind", KINDS)
def test_a_pause_ends_when_the_work_is_cancelled(server: thin_s3.ThinServer, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    server.put("bucket", "a/x", b"1")
    store, cancellation = open_store("s3://bucket/a"), Cancellation()
    refused: list[str] = []

    def refuse(request: thin_s3.Request) -> thin_s3.Refusal:
        refused.append(request.method)
        threading.Timer(0.05, cancellation.cancel).start()
        return 503, "SlowDown"

    server.refuse, server.refusal_headers = refuse, {"Retry-After": "60"}
    monkeypatch.setattr(retries, "_MOST_DEMANDED_SECONDS", 60.0)
    began = time.monotonic()
    with cancelled_by(cancellation.check), pytest.raises(CancelledError):
        KINDS[kind](store)
    assert time.monotonic() - began < 30
    assert refused


@pytest.mark.usefixtures("pauses")
@pytest.mark.parametrize("fails", ["PUT", "POST"])
def test_a_cancelled_upload_is_aborted_although_the_server_is_busy(server: thin_s3.ThinServer, fails: str) -> None:
    store, cancellation, refused = open_store("s3://bucket/a"), Cancellation(), list[str]()

    def refuse(request: thin_s3.Request) -> thin_s3.Refusal | None:
        if request.method == fails and "uploadId" in request.query and request.key == "a/y":
            cancellation.cancel()
            return 503, "SlowDown"
        if request.method == "DELETE" and cancelled() and len(refused) < 3:
            refused.append(request.key)
            return 503, "SlowDown"
        return None

    def cancelled() -> bool:
        try:
            cancellation.check()
        except CancelledError:
            return True
        return False

    server.refuse = refuse
    with cancelled_by(cancellation.check), pytest.raises(CancelledError):
        write(store)
    assert server.uploads == {}
    assert len(refused) == 3


@pytest.mark.parametrize("way", ["together", "alone"])
def test_a_rank_that_fails_ends_the_pauses_of_the_others(
    server: thin_s3.ThinServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    way: str,
) -> None:
    """One rank is refused at once, while the others wait for a busy server."""
    disk.write(tmp_path, disk.example())
    for path in (p for p in tmp_path.rglob("*") if p.is_file()):
        server.put("bucket", f"in/{path.relative_to(tmp_path)}", path.read_bytes())
    monkeypatch.setattr(retries, "_MOST_DEMANDED_SECONDS", 60.0)
    monkeypatch.setattr(retries, "TRIES", 2)
    busy = threading.Event()

    def refuse(request: thin_s3.Request) -> thin_s3.Refusal | None:
        if request.method != "PUT" or not request.key.startswith("out/rank_"):
            return None
        if not busy.is_set():  # the first file
            busy.set()
            return 503, "SlowDown"
        return (403, "AccessDenied") if "rank_1" in request.key or "rank_2" in request.key else (503, "SlowDown")

    server.refuse, server.refusal_headers = refuse, {"Retry-After": "60"}
    sides = ["--source", "s3://bucket/in/src", "--source-strategy", "s3://bucket/in/source.ckpt"]
    sides += ["--target-strategy", "s3://bucket/in/target.ckpt"]
    limits = ["--workers", "4"] if way == "together" else ["--workers", "4", "--copy-mode", "server"]
    began = time.monotonic()
    assert main(["transform", *sides, "--target", "s3://bucket/out", *limits]) == 77
    assert time.monotonic() - began < 30
    assert "PermissionDenied" in capsys.readouterr().err
    assert not [key for _, key in server.objects if "lock" in key]


def test_a_request_that_fails_for_good_is_given_up(server: thin_s3.ThinServer, pauses: list[float]) -> None:
    store = open_store("s3://bucket/a")
    server.refuse = lambda _: (503, "SlowDown")
    with pytest.raises(StorageError, match="ServerBusy"):
        store.list("")
    assert len(server.requests) == 8
    assert len(pauses) == 7


@pytest.mark.parametrize(
    ("status", "reason", "longest"),
    [(429, "ServerBusy", 1.0), (503, "ServerBusy", 1.0), (408, "RequestFailed", 0.05), (500, "RequestFailed", 0.05)],
)
def test_a_status_without_a_body_is_enough_to_repeat_a_request(
    server: thin_s3.ThinServer, pauses: list[float], monkeypatch: pytest.MonkeyPatch, status: int, reason: str, longest: float
) -> None:
    """Proxies and gateways answer without the XML of S3."""
    monkeypatch.setattr(random, "uniform", lambda _, most: most)
    monkeypatch.setattr(thin_s3, "_refused", lambda status, _: (status, {}, b""))
    store = open_store("s3://bucket/a")
    server.refuse = lambda _: (status, "")
    for request in (lambda: store.list(""), lambda: store.stat("x")):
        pauses.clear()
        with pytest.raises(StorageError, match=reason):
            request()
        assert (len(pauses), pauses[0]) == (7, longest)


def test_a_request_that_succeeds_is_no_place_to_be_cancelled(server: thin_s3.ThinServer) -> None:
    """The ID of an upload that was created must not be lost."""
    cancellation = Cancellation()

    def refuse(request: thin_s3.Request) -> None:
        if "uploads" in request.query and request.key == "a/y":
            cancellation.cancel()

    server.refuse = refuse
    with cancelled_by(cancellation.check), pytest.raises(CancelledError):
        write(open_store("s3://bucket/a"))
    assert server.uploads == {}
