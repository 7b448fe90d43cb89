"""S3 servers that differ from AWS: checksums, conditions, clocks, rights, names of folders."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import disk
import pytest
import thin_s3
from instant_uploads import processor_seconds

from reshard.cli import main
from reshard.errors import AccessError, LockedError, StorageError, UsageError
from reshard.spec.storage_options import StorageOptions
from reshard.storage import open_store
from reshard.storage.s3 import client
from reshard.target import lock
from reshard.target.documents import LOCK

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from reshard.storage.protocol import Store

MODE = 0o640
CONTENT = bytes(range(256)) * (20 << 12)  # of three parts


def write(store: Store, path: str, content: bytes = CONTENT) -> None:
    writer = store.create(path, temporary="", mode=MODE, size=len(content))
    try:
        writer.write(content)
        writer.finish()
    finally:
        writer.abort()


# Checksums.

Refuses = "Callable[[thin_s3.Request], bool]"
CHECKSUM_REFUSALS: dict[str, tuple[Refuses, thin_s3.Refusal]] = {
    "object": (lambda r: r.method == "PUT" and not r.query and "x-amz-checksum-crc32" in r.headers, (400, "InvalidRequest")),
    "create": (lambda r: "x-amz-checksum-algorithm" in r.headers, (400, "InvalidArgument")),
    "part": (lambda r: "partNumber" in r.query and "x-amz-checksum-crc32" in r.headers, (501, "NotImplemented")),
    "complete": (lambda r: b"ChecksumCRC32" in r.body, (400, "MalformedXML")),
    "gcs": (lambda r: b"ChecksumCRC32" in r.body, (412, "PreconditionFailed")),
    "md5-too": (lambda r: "content-md5" in r.headers or "x-amz-checksum-crc32" in r.headers, (501, "NotImplemented")),
}


@pytest.mark.parametrize("case", CHECKSUM_REFUSALS)
def test_a_checksum_that_is_refused_gives_way_to_a_weaker_one(server: thin_s3.ThinServer, case: str) -> None:
    refuses, refusal = CHECKSUM_REFUSALS[case]
    server.refuse = lambda request: refusal if refuses(request) else None
    store = open_store("s3://bucket/a")
    write(store, "x")
    store.write("y", b"1", mode=MODE)
    write(store, "z")
    assert {key: found.content for (_, key), found in server.objects.items()} == {"a/x": CONTENT, "a/y": b"1", "a/z": CONTENT}
    assert server.uploads == {}
    sent = [request.headers for request in server.requests if request.method == "PUT"][-3:]
    assert all(("content-md5" in headers) == (case != "md5-too") for headers in sent)


def test_a_server_that_supports_all_checksums_gets_crc32(server: thin_s3.ThinServer) -> None:
    write(open_store("s3://bucket/a"), "x")
    sent = [request.headers for request in server.requests if "partNumber" in request.query]
    assert len(sent) == 4  # with that of the probe
    assert all("x-amz-checksum-crc32" in headers for headers in sent)


@pytest.mark.parametrize("checksums", ["MD5", "None"])
def test_a_kind_that_the_user_chooses_is_not_probed(server: thin_s3.ThinServer, checksums: str) -> None:
    write(open_store("s3://bucket/a", StorageOptions(checksums=checksums)), "x")
    assert [request for request in server.requests if "probe" in request.key] == []


def test_a_refused_completion_is_not_a_changed_source(server: thin_s3.ThinServer) -> None:
    server.refuse = lambda r: (412, "PreconditionFailed") if r.method == "POST" and "uploadId" in r.query else None
    with pytest.raises(StorageError, match=r"RequestFailed: s3://bucket/a/x: CompleteMultipartUpload .* PreconditionFailed"):
        write(open_store("s3://bucket/a", StorageOptions(checksums="None")), "x")


# Options.


def test_each_side_has_the_server_that_its_options_name(
    server: thin_s3.ThinServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.write(tmp_path, disk.example())
    for path in (p for p in tmp_path.rglob("*") if p.is_file()):
        server.put("bucket", f"in/{path.relative_to(tmp_path)}", path.read_bytes())
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    sides = ["--source", "s3://bucket/in/src", "--source-strategy", "s3://bucket/in/source.ckpt", "--target", "s3://bucket/out"]
    with thin_s3.running() as other:
        ways = ["--source-endpoint-url", server.endpoint, "--endpoint-url", other.endpoint, "--addressing-style", "path"]
        assert main(["transform", *sides, *ways, "--checksums", "none"]) == 0
        sent = [request for request in other.requests if request.method == "PUT" and not request.query]
        assert sent
        assert all({"content-md5", "x-amz-checksum-crc32"}.isdisjoint(request.headers) for request in sent)
        for command in ("verify", "inspect", "commit"):
            assert main([command, "s3://bucket/out", "--endpoint-url", other.endpoint, "--addressing-style", "path"]) == 0
    assert [key for _, key in server.objects if key.startswith("out/")] == []
    target = str(tmp_path / "out")
    assert main(["fetch", *sides[:4], "--endpoint-url", server.endpoint, "--rank", "0", "--target", target]) == 0


def test_a_secret_in_an_option_is_not_shown(refused: Callable[..., str]) -> None:
    line = refused(2, "InvalidAddress", "verify", "s3://bucket/a", "--endpoint-url", "http://key:secret@127.0.0.1:9")
    assert "secret@" not in line
    assert "key:" not in line


# Uploads.


def test_uploads_are_found_although_the_server_refuses_its_own_markers(server: thin_s3.ThinServer) -> None:
    server.longest_page = 2
    for number in range(7):
        key = "a/x" if number != 3 else "a/x.other"
        server.uploads[f"{number}"] = ("bucket", key, {})
    open_store("s3://bucket/a").abort_stale_uploads(["x", "y"], silent=0)
    assert [key for _, key, _ in server.uploads.values()] == ["a/x.other"]


def test_uploads_that_stay_listed_are_not_searched_for_ever(server: thin_s3.ThinServer) -> None:
    server.longest_page = 2
    server.uploads = {f"{number}": ("bucket", "a/x", {}) for number in range(3)}
    server.refuse = lambda request: (404, "NoSuchUpload") if request.method == "DELETE" else None
    open_store("s3://bucket/a").abort_stale_uploads(["x"], silent=0)
    assert len(server.requests) == 4


# Cost of writing.


def test_the_parts_that_were_sent_cost_nothing_more() -> None:
    few, many = (min(processor_seconds(count) for _ in range(3)) for count in (1250, 5000))
    assert many < 10 * few  # four times as many parts; a walk over all sent parts would take sixteen times as long


def test_a_failed_part_ends_the_upload(server: thin_s3.ThinServer) -> None:
    server.refuse = lambda request: (403, "AccessDenied") if request.query.get("partNumber") == "2" else None
    writer = open_store("s3://bucket/a").create("x", temporary="", mode=MODE)
    with pytest.raises(AccessError, match="PermissionDenied"):
        writer.write(bytes(64 << 20))
    writer.abort()
    assert server.uploads == {}


# Names.


@pytest.mark.parametrize("slash", ["", "/"])
def test_an_empty_object_named_like_a_folder_is_the_folder(server: thin_s3.ThinServer, tmp_path: Path, slash: str) -> None:
    made = disk.write(tmp_path, disk.example())
    for path in (p for p in tmp_path.rglob("*") if p.is_file()):
        server.put("bucket", f"run/{path.relative_to(tmp_path)}", path.read_bytes())
    for folder in ("run/src", "run/src/rank_0", "run"):
        server.put("bucket", folder, b"")
    store = open_store("s3://bucket/run")
    assert [(found.name, found.is_folder) for found in store.list("src") if found.name == "rank_0"] == [("rank_0", True)]
    sides = ["--source-strategy", str(made.source_strategy), "--target-strategy", str(made.target_strategy)]
    assert main(["transform", "--source", f"s3://bucket/run/src{slash}", *sides, "--target", str(tmp_path / "out")]) == 0
    assert disk.differences(made.model, tmp_path / "out", "ckpt") == []


def test_a_slash_at_the_end_means_a_folder(server: thin_s3.ThinServer) -> None:
    server.put("bucket", "run/src", b"not empty")
    assert not open_store("s3://bucket/run/src/").stat("").is_folder
    server.put("bucket", "run/src/rank_0/a.ckpt", b"1")
    assert open_store("s3://bucket/run/src/").stat("").is_folder
    assert not open_store("s3://bucket/run/src").stat("").is_folder


# Clocks.


def test_without_a_date_the_time_of_a_new_object_gives_the_servers_clock(server: thin_s3.ThinServer) -> None:
    server.dates, server.clock = False, lambda: datetime.now(UTC) + timedelta(hours=3)
    store = open_store("s3://bucket/a")
    store.write("lock", b"1", mode=MODE)
    server.clock = lambda: datetime.now(UTC) + timedelta(hours=3, seconds=100)
    age = store.age("lock")
    assert age is not None
    assert 98 <= age <= 103
    store.touch("lock")
    assert store.age("lock") < 3
    assert [key for _, key in server.objects] == ["a/lock"]


def test_a_lock_is_kept_alive_on_a_server_that_sends_no_date(server: thin_s3.ThinServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.dates = False
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.05)
    store = open_store("s3://bucket/a")
    deadline = time.monotonic() + 30
    with lock.locked(store, LOCK, owner=None, mode=MODE):
        while _beats(server) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def _beats(server: thin_s3.ThinServer) -> int:
    return sum(request.method == "PUT" and "if-match" in request.headers for request in server.requests)


# Rights.


@pytest.fixture
def undeletable(server: thin_s3.ThinServer) -> thin_s3.ThinServer:
    server.refuse = lambda request: (403, "AccessDenied") if request.method == "DELETE" and not request.query else None
    return server


def test_a_plan_finds_that_nothing_may_be_deleted(
    undeletable: thin_s3.ThinServer, tmp_path: Path, refused: Callable[..., str]
) -> None:
    made = disk.write(tmp_path, disk.example())
    arguments = ["--source", str(made.source), "--source-strategy", str(made.source_strategy), "--target", "s3://bucket/out"]
    assert "DeleteObject" in refused(77, "PermissionDenied", "plan", *arguments)
    assert "DeleteObject" in refused(77, "PermissionDenied", "transform", *arguments)
    undeletable.refuse = lambda _: None
    assert main(["transform", *arguments]) == 0
    assert [key for _, key in undeletable.objects if "/.reshard/" in key] == []


@pytest.mark.parametrize("owner", [None, "shared"])
def test_a_lock_that_may_not_be_deleted_expires(undeletable: thin_s3.ThinServer, owner: str | None) -> None:
    store = open_store("s3://bucket/a")
    with pytest.raises(AccessError, match="DeleteObject"), lock.locked(store, LOCK, owner=owner, mode=MODE):
        pass
    undeletable.clock = lambda: datetime.now(UTC) + timedelta(seconds=lock.STALE_SECONDS / 2)
    with pytest.raises(LockedError), lock.locked(store, LOCK, owner=None, mode=MODE):
        pass
    undeletable.clock = lambda: datetime.now(UTC) + timedelta(seconds=lock.STALE_SECONDS + 5)
    entered = False
    with pytest.raises(AccessError, match="DeleteObject"), lock.locked(store, LOCK, owner=None, mode=MODE):
        entered = True
    assert entered


# Secrets.


@pytest.mark.parametrize("way", ["access", "environment", "address"])
def test_credentials_in_a_url_are_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    client.client_of.cache_clear()
    endpoint, address, storage_options = "https://key:sec/ret@s3.example.org", "s3://bucket/a", StorageOptions()
    if way == "access":
        storage_options = StorageOptions(endpoint=endpoint)
    elif way == "environment":
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    else:
        address = "s3://key:secret@bucket/a"
    with pytest.raises(UsageError, match=r"InvalidAddress.*AWS_ACCESS_KEY_ID") as raised:
        open_store(address, storage_options)
    assert "ret@" not in str(raised.value)
    assert "key:" not in str(raised.value)
