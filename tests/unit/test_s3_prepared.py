"""Ranges and parts after the first, which are sent without botocore's work per request: nothing else differs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import EndpointConnectionError
from botocore.httpsession import URLLib3Session

from reshard.errors import AccessError, DataError, StorageError
from reshard.progress import Cancellation, CancelledError
from reshard.spec.storage_options import StorageOptions
from reshard.storage import open_store
from reshard.storage.cancellable import cancelled_by
from reshard.storage.s3 import client, prepared, retries
from reshard.storage.traffic import metered

if TYPE_CHECKING:
    from pathlib import Path

    import thin_s3

    from reshard.storage.protocol import Reader, Store

PART = 8 << 20
CONTENT = bytes(range(256)) * (4 * PART // 256)
RANGES = [(0, 100), (100, 1), (PART, PART), (len(CONTENT) - 7, 7)]
# A header of requests that botocore sends by itself.
BY_BOTOCORE = "amz-sdk-invocation-id"


def read_all(reader: Reader) -> None:
    for offset, length in RANGES:
        assert reader.read(offset, length) == CONTENT[offset : offset + length]


def write(store: Store, path: str) -> None:
    writer = store.create(path, temporary="", mode=None, size=len(CONTENT), memory=2 * PART)
    try:
        for at in range(0, len(CONTENT), PART // 2):
            writer.write(CONTENT[at : at + PART // 2])
        writer.finish()
    finally:
        writer.abort()


def ranges(server: thin_s3.ThinServer) -> list[thin_s3.Request]:
    return [request for request in server.requests if "range" in request.headers]


def parts(server: thin_s3.ThinServer) -> list[thin_s3.Request]:
    return [request for request in server.requests if "partNumber" in request.query and "probe" not in request.key]


def test_ranges_take_no_call_of_botocore(server: thin_s3.ThinServer) -> None:
    etag = server.put("bucket", "a/x y+&", CONTENT).etag
    with metered() as meter:
        read_all(open_store("s3://bucket/a").open("x y+&"))
    assert not any(BY_BOTOCORE in request.headers for request in ranges(server))
    assert {request.headers["if-match"] for request in ranges(server)} == {etag}
    assert meter.traffic[:2] == (sum(length for _, length in RANGES), len(RANGES))


def test_parts_take_no_call_of_botocore(server: thin_s3.ThinServer) -> None:
    write(open_store("s3://bucket/a"), "x y+&")
    assert server.objects["bucket", "a/x y+&"].content == CONTENT
    assert sorted(request.query["partNumber"] for request in parts(server)) == ["1", "2", "3", "4"]
    for request in parts(server):
        assert BY_BOTOCORE not in request.headers
        assert "x-amz-checksum-crc32" in request.headers


def test_other_versions_of_urllib3_only_take_longer(server: thin_s3.ThinServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The response of http.client is no public attribute."""
    monkeypatch.setattr(prepared, "_WITHOUT_COPIES", "gone")
    server.put("bucket", "a/x", CONTENT)
    read_all(open_store("s3://bucket/a").open("x"))


def test_other_versions_of_botocore_only_take_longer(server: thin_s3.ThinServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The HTTP session of a client is no public attribute."""
    monkeypatch.setattr(prepared, "_SESSION", "gone")
    server.put("bucket", "a/x", CONTENT)
    store = open_store("s3://bucket/a")
    read_all(store.open("x"))
    write(store, "y")
    assert server.objects["bucket", "a/y"].content == CONTENT
    assert all(BY_BOTOCORE in request.headers for request in server.requests)


def test_credentials_are_renewed_between_ranges_and_between_parts(server: thin_s3.ThinServer, tmp_path: Path) -> None:
    def renew(key: str) -> None:
        for name in ("accessKeyId", "secretAccessKey", "sessionToken"):
            (tmp_path / name).write_text(f"{key}-{name}")

    renew("first")
    store = open_store("s3://bucket/a", StorageOptions(credentials=str(tmp_path)))
    server.put("bucket", "a/x", CONTENT)
    reader = store.open("x")
    read_all(reader)
    writer = store.create("y", temporary="", mode=None, size=len(CONTENT))
    writer.write(CONTENT[: PART + 1])
    while not parts(server):
        time.sleep(0.01)
    renew("second")
    read_all(reader)
    writer.write(CONTENT[PART + 1 :])
    writer.finish()
    for requests, count in ((ranges(server), len(RANGES)), (parts(server), 1)):
        keys = [request.headers["authorization"].partition("Credential=")[2].partition("/")[0] for request in requests]
        assert keys == ["first-accessKeyId"] * count + ["second-accessKeyId"] * (len(keys) - count)
        tokens = [request.headers["x-amz-security-token"] for request in requests]
        assert tokens == [key.replace("accessKeyId", "sessionToken") for key in keys]
    (tmp_path / "accessKeyId").unlink()
    with pytest.raises(AccessError, match="CredentialsMissing"):
        reader.read(0, 1)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between two tries of a request, in seconds. They take no time."""
    found: list[float] = []
    monkeypatch.setattr(retries, "wait", found.append)
    return found


def refuse_first(server: thin_s3.ThinServer, times: int, refusal: thin_s3.Refusal) -> list[str]:
    """Refuse the first tries of each range and each part. Return what is refused."""
    refused: list[str] = []

    def refuse(request: thin_s3.Request) -> thin_s3.Refusal | None:
        what = request.headers.get("range") or request.query.get("partNumber")
        if what is None or refused.count(what) == times or "probe" in request.key:
            return None
        refused.append(what)
        return refusal

    server.refuse = refuse
    return refused


@pytest.mark.parametrize("refusal", [(503, "SlowDown"), (429, "TooManyRequests"), (500, "InternalError"), (400, "BadDigest")])
def test_a_refused_request_is_repeated_after_a_pause(
    server: thin_s3.ThinServer, refusal: thin_s3.Refusal, pauses: list[float]
) -> None:
    server.put("bucket", "a/x", CONTENT)
    store = open_store("s3://bucket/a")
    refused = refuse_first(server, 1, refusal)
    with metered() as meter:
        read_all(open_store("s3://bucket/a").open("x"))
    assert meter.traffic[:2] == (sum(length for _, length in RANGES), 2 * len(RANGES))
    write(store, "y")
    assert server.objects["bucket", "a/y"].content == CONTENT
    assert len(refused) == len(pauses) == len(RANGES) + 4
    assert all(pauses)


def test_a_busy_server_determines_the_shortest_pause(server: thin_s3.ThinServer, pauses: list[float]) -> None:
    server.put("bucket", "a/x", CONTENT)
    refuse_first(server, 1, (503, "SlowDown"))
    server.refusal_headers["Retry-After"] = "4"
    read_all(open_store("s3://bucket/a").open("x"))
    assert pauses == [4.0] * len(RANGES)
    server.refusal_headers["Retry-After"] = "86400"
    open_store("s3://bucket/a").open("x").read(7, 7)
    assert 5 <= pauses[-1] <= 6
    server.refusal_headers["Retry-After"] = "9" * 5000
    open_store("s3://bucket/a").open("x").read(8, 8)
    assert pauses[-1] < 5


def test_a_server_that_stays_busy_is_given_up(server: thin_s3.ThinServer, pauses: list[float]) -> None:
    server.put("bucket", "a/x", CONTENT)
    refused = refuse_first(server, 1000, (503, "SlowDown"))
    with pytest.raises(StorageError, match="GetObject failed with SlowDown"):
        open_store("s3://bucket/a").open("x").read(0, 1)
    assert len(refused) == len(pauses) + 1 == 8


def test_a_server_that_is_often_busy_is_not_given_up(server: thin_s3.ThinServer, pauses: list[float]) -> None:
    """Botocore repeats a limited number of requests, and counts those only that it sends itself."""
    server.put("bucket", "a/x", CONTENT)
    refused = refuse_first(server, 3, (503, "SlowDown"))
    reader = open_store("s3://bucket/a").open("x")
    for at in range(100):
        reader.read(at, 1)
    assert len(refused) == 300
    assert len(pauses) >= 300


def test_a_server_that_often_cannot_be_reached_is_not_given_up(
    server: thin_s3.ThinServer, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a busy one. There is no response that would state that botocore has given up early."""
    server.put("bucket", "a/x", CONTENT)
    reader = open_store("s3://bucket/a").open("x")
    failed: list[str] = []
    send = URLLib3Session.send

    def unreachable(session: URLLib3Session, request: Any) -> Any:
        what = str(request.headers["Range"]).strip("b'")  # botocore encodes it
        if failed.count(what) == times:
            return send(session, request)
        failed.append(what)
        raise EndpointConnectionError(endpoint_url=server.endpoint)

    monkeypatch.setattr(URLLib3Session, "send", unreachable)
    times = 3
    for at in range(100):
        assert reader.read(at, 1) == CONTENT[at : at + 1]
    assert len(failed) == 300
    assert len(pauses) >= 300
    times = 1000
    with pytest.raises(StorageError, match="Unreachable"):
        reader.read(0, 2)


@pytest.mark.parametrize("does", ["read", "write"])
def test_cancelled_work_repeats_no_request(server: thin_s3.ThinServer, monkeypatch: pytest.MonkeyPatch, does: str) -> None:
    server.put("bucket", "a/x", CONTENT)
    cancellation = Cancellation()
    monkeypatch.setattr(retries, "wait", lambda _: cancellation.cancel())
    store = open_store("s3://bucket/a")
    with cancelled_by(cancellation.check):
        reader = store.open("x")
        refused = refuse_first(server, 1000, (503, "SlowDown"))
        with pytest.raises(CancelledError):
            reader.read(0, 1) if does == "read" else write(store, "y")
    assert len(refused) - len(set(refused)) <= 1  # the second try was in time
    sent = len(server.requests)
    with pytest.raises(CancelledError):
        reader.read(0, 1)
    assert len(server.requests) == sent


def test_an_object_that_changes_between_two_ranges_is_noticed(server: thin_s3.ThinServer) -> None:
    server.put("bucket", "a/x", CONTENT)
    reader = open_store("s3://bucket/a").open("x")
    read_all(reader)
    server.put("bucket", "a/x", CONTENT[1:] + b"1")
    with pytest.raises(DataError, match="SourceChanged"):
        reader.read(0, 1)


def test_all_requests_take_the_proxy(server: thin_s3.ThinServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.put("bucket", "a/x", CONTENT)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://storage.invalid")
    monkeypatch.setenv("http_proxy", server.endpoint)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    client.client_of.cache_clear()
    store = open_store("s3://bucket/a")
    read_all(store.open("x"))
    write(store, "y")
    assert server.objects["bucket", "a/y"].content == CONTENT
    assert {request.headers["host"] for request in server.requests} == {"storage.invalid"}
