"""The page cache of the files of a folder: fill it, drop it, and measure it."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_CACHESTAT = 451  # the number of the system call on all architectures, since Linux 6.5
_PAGE = os.sysconf("SC_PAGE_SIZE")


def _files(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]


def warm(folder: Path) -> None:
    """Read all files."""
    block = bytearray(1 << 20)
    for path in _files(folder):
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass


def drop(folder: Path) -> None:
    """Remove all files from the page cache. They must have been written to the disk."""
    for path in _files(folder):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached_bytes(*folders: Path) -> int | None:
    """Return the number of bytes of all files that are in the page cache, or None if the system does not report it."""
    library, found = ctypes.CDLL(None, use_errno=True), 0
    for path in _files(*folders):
        whole, state = (ctypes.c_uint64 * 2)(0, 0), (ctypes.c_uint64 * 5)()
        with path.open("rb") as file:
            if library.syscall(_CACHESTAT, file.fileno(), whole, state, 0):
                return None
        found += state[0] * _PAGE
    return found
