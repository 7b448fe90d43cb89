"""A folder on a file system as a store."""

from reshard.storage.local.reader import LocalReader
from reshard.storage.local.store import LocalStore

__all__ = ["LocalReader", "LocalStore"]
