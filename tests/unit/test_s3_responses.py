"""Responses that lack what all servers state, or contain something else: they are refused by name, and never used."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import thin_s3

from reshard.errors import ReshardError
from reshard.spec.storage_options import StorageOptions
from reshard.storage import open_store
from reshard.storage.protocol import Store
from reshard.storage.s3 import parts, prepared
from reshard.storage.traffic import Meter

PART = 1 << 20
CONTENT = bytes(range(256)) * (2 * PART // 256)


def write(store: Store) -> None:
    thin_s3.write_parts(store, CONTENT, PART)


def copy(store: Store) -> None:
    reader = store.open("x")
    writer = store.create("y", temporary="", mode=None, size=len(CONTENT), memory=2 * PART, copies=True)
    try:
        writer.copy(reader, 0, len(CONTENT), Meter())
        writer.finish()
    finally:
        writer.abort()


def read_range(store: Store) -> None:
    assert store.open("x").read(1, PART) == CONTENT[1 : 1 + PART]


def without(field: str) -> Callable[[bytes], bytes]:
    """Remove an element from a document, with its content."""
    return lambda body: re.sub(rf"<{field}>.*?</{field}>".encode(), b"", body)


Altered = tuple[Callable[[Store], object], str, dict[str, str] | Callable[[bytes], bytes], str]
# What is done, the query or header that tells its request, what becomes of its response, and what the error says.
CASES: dict[str, Altered] = {
    "a part has no ETag": (write, "partNumber", {"ETag": ""}, "has no ETag"),
    "a copied part has no ETag": (copy, "x-amz-copy-source", without("ETag"), "has no ETag"),
    "a copied part has no result": (copy, "x-amz-copy-source", lambda _: b"<R/>", "has no"),
    "an upload has no ID": (write, "uploads", without("UploadId"), "has no UploadId"),
    "a range has no length": (read_range, "range", {"Content-Length": ""}, "has no content-length"),
    "a range is not stated": (read_range, "range", {"Content-Range": ""}, "has no content-range"),
    "a range is another one": (
        read_range,
        "range",
        {"Content-Range": f"bytes 0-{PART - 1}/{len(CONTENT)}"},
        "instead of bytes 1-",
    ),
    "a range is of another version": (read_range, "range", {"ETag": '"other"'}, "SourceChanged"),
    "a small object has no length": (
        lambda store: store.read("x", 1 << 22),
        "x-amz-checksum-mode",
        {"Content-Length": ""},
        "has no",
    ),
    "a listed object has no size": (lambda store: store.list(""), "list-type", without("Size"), "has no Size"),
    "a listed object has no version": (lambda store: store.stat("x"), "list-type", without("ETag"), "has no ETag"),
    "a listed object has no time": (lambda store: store.age("x"), "list-type", without("LastModified"), "has no LastModified"),
    "a listed object has no key": (lambda store: store.list(""), "list-type", without("Key"), "has no Key"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("by", ["prepared requests", "botocore"])
def test_such_a_response_is_refused_by_name(
    server: thin_s3.ThinServer, monkeypatch: pytest.MonkeyPatch, case: str, by: str
) -> None:
    does, told_by, change, said = CASES[case]
    if by == "botocore":
        monkeypatch.setattr(prepared, "_SESSION", "gone")
    monkeypatch.setattr(parts, "_USUAL_PART", PART)
    server.put("bucket", "a/x", CONTENT)
    store = open_store("s3://bucket/a", StorageOptions(checksums="None"))

    def alter(request: thin_s3.Request, headers: dict[str, str], body: bytes) -> bytes:
        if told_by not in {**request.query, **request.headers}:
            return body
        if isinstance(change, dict):
            headers.update(change)
            return body
        body = change(body)
        headers["Content-Length"] = str(len(body))
        return body

    server.alter = alter
    with pytest.raises(ReshardError, match=said) as error:
        does(store)
    assert error.value.reason in ("ResponseInvalid", "SourceChanged")
    assert error.value.where.startswith("s3://bucket/a")
    assert server.uploads == {} or told_by == "uploads"
    assert ("bucket", "a/y") not in server.objects


def test_a_server_may_send_a_whole_object_instead_of_a_range(server: thin_s3.ThinServer) -> None:
    def alter(_: thin_s3.Request, headers: dict[str, str], body: bytes) -> bytes:
        headers.pop("Content-Range", None)
        return body

    server.alter = alter
    server.put("bucket", "a/x", b"123")
    assert open_store("s3://bucket/a").open("x").read(0, 3) == b"123"
