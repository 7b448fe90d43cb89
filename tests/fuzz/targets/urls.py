"""Fuzz paths and URLs: a path stays what it is, and an address keeps its meaning if it is made canonical again."""

from __future__ import annotations

from reshard.errors import ReshardError
from reshard.spec.resource import check_relative
from reshard.spec.urls import S3, is_url, local_path, normalized
from reshard.storage import address_of, parent_and_name, root_and_path

SEEDS = (b"file:///data/run%201", b"S3://bucket/x/y", b"data/x", b"./gs:/x", b"obs://b", b"s3:/b/..", b"file://localhost/a%2f..")


def read(content: bytes) -> None:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return
    try:
        check_relative(text, "fuzz")
    except ReshardError:
        pass
    else:
        assert not text.startswith("/")
        assert ".." not in text.split("/")
        assert not is_url(text)
    found = normalized(text)
    assert "\0" not in found
    if found.startswith(S3):
        assert normalized(found) == found
    else:
        assert local_path(text) == found
        assert address_of(text).startswith("/")
    root, path = root_and_path(text)
    assert not path.startswith("/") or root.startswith(S3)
    parent_and_name(text)
