"""The number of requests that many files take: fixed ones, one per file where its content is needed, one per listed page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import thin_s3

from reshard.errors import AccessError
from reshard.storage import open_store
from reshard.storage.s3 import client

if TYPE_CHECKING:
    from collections.abc import Iterator

KEYS = [f"rank_{number}/x&y <{number}>.ckpt" for number in range(1200)]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[thin_s3.ThinServer]:
    client.client_of.cache_clear()
    with thin_s3.running() as found:
        for name, value in found.environment().items():
            monkeypatch.setenv(name, value)
        yield found
    client.client_of.cache_clear()


def put_all(server: thin_s3.ThinServer, keys: list[str]) -> None:
    for key in keys:
        server.put("bucket", f"a/{key}", b"1")


def test_a_thousand_files_are_deleted_with_one_request(server: thin_s3.ThinServer) -> None:
    put_all(server, [*KEYS, "rank_1", "other"])
    open_store("s3://bucket/a").delete_files([*KEYS, "nothing"])
    assert {key for _, key in server.objects} == {"a/rank_1", "a/other"}
    assert len(server.requests) == 2


def test_a_folder_is_deleted_page_by_page(server: thin_s3.ThinServer) -> None:
    put_all(server, [*(f"rank_1/{key}" for key in KEYS), "rank_1", "rank_10"])
    open_store("s3://bucket/a").delete("rank_1")
    assert {key for _, key in server.objects} == {"a/rank_10"}
    assert len(server.requests) == 5


@pytest.mark.parametrize("refusal", [(501, "NotImplemented"), (400, "InvalidRequest"), (403, "AccessDenied"), (404, "NoSuchKey")])
def test_files_are_deleted_one_by_one_where_a_server_cannot_do_more(server: thin_s3.ThinServer, refusal: thin_s3.Refusal) -> None:
    put_all(server, KEYS[:40])
    server.refuse = lambda request: refusal if request.method == "POST" else None
    store = open_store("s3://bucket/a")
    store.delete_files(KEYS[:20])
    store.delete_files(KEYS[20:40])
    assert server.objects == {}
    assert [request.method for request in server.requests].count("POST") == 1


def test_a_file_that_cannot_be_deleted_is_named(server: thin_s3.ThinServer) -> None:
    put_all(server, KEYS[:40])
    server.refuse = lambda request: (403, "AccessDenied") if request.key == f"a/{KEYS[7]}" else None
    with pytest.raises(AccessError) as caught:
        open_store("s3://bucket/a").delete_files(KEYS[:40])
    assert caught.value.where == f"s3://bucket/a/{KEYS[7]}"
    assert [key for _, key in server.objects] == [f"a/{KEYS[7]}"]


def leave_uploads(server: thin_s3.ThinServer, keys: list[str]) -> None:
    for number, key in enumerate(keys):
        server.uploads[f"left-{number}"] = ("bucket", f"a/{key}", {})


def uploads(server: thin_s3.ThinServer) -> list[str]:
    return sorted(key for _, key, _ in server.uploads.values())


def test_uploads_of_many_files_are_listed_together(server: thin_s3.ThinServer) -> None:
    others = ["rank_1/x", "part0.safetensors", f"{KEYS[3]}.part"]
    leave_uploads(server, [KEYS[3], *others, KEYS[3]])
    open_store("s3://bucket/a").abort_stale_uploads(KEYS, silent=0.0)
    assert uploads(server) == sorted(f"a/{key}" for key in others)
    assert len(server.requests) == 5  # the probe, its abort, the listing, and two that were left


@pytest.mark.parametrize("lacks", ["prefixes", "pages"])
def test_uploads_are_listed_file_by_file_where_a_server_cannot_do_more(server: thin_s3.ThinServer, lacks: str) -> None:
    server.lists_by_prefix, server.longest_page = lacks != "prefixes", 1 if lacks == "pages" else 1000
    leave_uploads(server, [KEYS[3], "other", KEYS[39]])
    open_store("s3://bucket/a").abort_stale_uploads(KEYS[:40], silent=0.0)
    assert uploads(server) == ["a/other"]
    assert len([request for request in server.requests if "uploads" in request.query and request.method == "GET"]) >= 41


def test_uploads_below_a_whole_bucket_are_listed_file_by_file(server: thin_s3.ThinServer) -> None:
    server.uploads["left"] = ("bucket", KEYS[3], {})
    open_store("s3://bucket").abort_stale_uploads(KEYS[:40], silent=0.0)
    assert server.uploads == {}
    assert {request.query["prefix"] for request in server.requests if request.method == "GET"} == set(KEYS[:40])
