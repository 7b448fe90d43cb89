"""Bytes by range: one small protocol, and the storages that keep it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reshard.spec.access import Access
from reshard.storage.local import LocalStore

if TYPE_CHECKING:
    from reshard.storage.protocol import Store

__all__ = ["open_store", "parent_and_name", "root_and_path"]

_S3 = "s3://"


def open_store(url: str, access: Access | None = None) -> Store:
    """The storage that an address names: a folder's path, or s3://bucket/prefix.

    Raises:
        AccessError, UsageError: it cannot be reached as it is said.
    """
    if url.startswith(_S3):
        from reshard.storage.s3 import S3Store  # noqa: PLC0415 - boto3 takes a third of a second and 30 MB

        return S3Store(url, access or Access())
    return LocalStore(url)


def parent_and_name(url: str) -> tuple[str, str]:
    """The folder around what an address names, and its name there.

    >>> parent_and_name("s3://bucket/strategies/a.ckpt"), parent_and_name("a.ckpt"), parent_and_name("/a")
    (('s3://bucket/strategies', 'a.ckpt'), ('.', 'a.ckpt'), ('/', 'a'))
    """
    folder, _, name = url.rstrip("/").rpartition("/")
    if url.startswith(_S3) and not folder.removeprefix(_S3.rstrip("/")).strip("/"):  # a bucket is in nothing
        return url.rstrip("/"), ""
    return folder or ("/" if url.startswith("/") else "."), name


def root_and_path(url: str) -> tuple[str, str]:
    """The whole storage that an address lies in, and where it is there.

    >>> root_and_path("s3://bucket/rank_0/a.ckpt"), root_and_path("/rank_0/../a.ckpt")
    (('s3://bucket', 'rank_0/a.ckpt'), ('/', 'a.ckpt'))
    """
    if url.startswith(_S3):
        bucket, _, path = url.removeprefix(_S3).partition("/")
        return _S3 + bucket, path
    return "/", LocalStore(url).root.lstrip("/")
