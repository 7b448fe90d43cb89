"""Bytes by range: one small protocol, and the storages that keep it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reshard.storage.local import LocalStore

if TYPE_CHECKING:
    from reshard.storage.protocol import Store

__all__ = ["open_store"]


def open_store(url: str) -> Store:
    """The storage that an address names: so far a folder's path."""
    return LocalStore(url)
