"""Storages, and the protocol that they implement."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from reshard.extras import needs_extra
from reshard.spec.storage_options import StorageOptions
from reshard.spec.urls import S3, normalized
from reshard.storage.local import LocalStore

if TYPE_CHECKING:
    from reshard.storage.protocol import Store

__all__ = ["address_of", "open_store", "parent_and_name", "root_and_path", "without_links"]


def open_store(url: str, storage_options: StorageOptions | None = None) -> Store:
    """Open the store at a folder's path, a file:// URL or s3://bucket/prefix.

    Raises:
        AccessError: the object store refuses the credentials.
        RequestError: the scheme is not supported, or a package that it requires is not installed.
        UsageError: the URL or the configuration of the object store is invalid.
    """
    url, storage_options = normalized(url), storage_options or StorageOptions()
    if url.startswith(S3):
        with needs_extra("s3", url):
            from reshard.storage.s3 import S3Store  # noqa: PLC0415 - botocore takes a fifth of a second and 30 MB

        return S3Store(url, storage_options)
    return LocalStore(url, storage_options.io, storage_options.inside)


def address_of(url: str) -> str:
    """Return the address of the store at a URL or path, without opening it."""
    url = normalized(url)
    return url.rstrip("/") if url.startswith(S3) else os.path.abspath(url)  # noqa: PTH100 - links are kept


def without_links(url: str) -> str:
    """Return the canonical form of an address: without symbolic links, dots, or a trailing `/`."""
    url = normalized(url)
    return url.rstrip("/") if url.startswith(S3) else os.path.realpath(url)


def parent_and_name(url: str) -> tuple[str, str]:
    """Return the parent folder of an address, and the name in it.

    >>> parent_and_name("s3://bucket/strategies/a.ckpt"), parent_and_name("a.ckpt"), parent_and_name("/a")
    (('s3://bucket/strategies', 'a.ckpt'), ('.', 'a.ckpt'), ('/', 'a'))
    """
    url = normalized(url)
    folder, _, name = url.rstrip("/").rpartition("/")
    if url.startswith(S3) and not folder.removeprefix(S3.rstrip("/")).strip("/"):  # a bucket has no ancestor
        return url.rstrip("/"), ""
    return folder or ("/" if url.startswith("/") else "."), name


def root_and_path(url: str) -> tuple[str, str]:
    """Return the root of the storage of an address, and the path in it.

    >>> root_and_path("s3://bucket/rank_0/a.ckpt"), root_and_path("/rank_0/../a.ckpt")
    (('s3://bucket', 'rank_0/a.ckpt'), ('/', 'a.ckpt'))
    """
    url = normalized(url)
    if url.startswith(S3):
        bucket, _, path = url.removeprefix(S3).partition("/")
        return S3 + bucket, path
    return "/", LocalStore(url).root.lstrip("/")
