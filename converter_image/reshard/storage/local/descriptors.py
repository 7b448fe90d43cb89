"""Descriptors of files that are read: their number is bounded in the process, and none is closed while it is in use."""

from __future__ import annotations

import errno
import os
import resource
import threading
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

# Workers, their target files and connections need the rest of the descriptors that the process may open.
_SHARE = 3 / 8
_FEWEST = 8
_MOST = 4096


class Descriptor:
    """An open file. It is closed when the last reference is gone, so that a thread that reads from it keeps it open.

    Attributes:
        number: the descriptor. Its user must hold a reference to this object meanwhile.
    """

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # at exit the module may be unloaded already
        """Close the file. Errors are ignored, because nothing was written to it."""
        close(self.number)


class Evictable(Protocol):
    """A reader that can open its file again."""

    recently_read: bool
    descriptor: Descriptor | None


class DescriptorPool:
    """Bounds the number of readers with an open file.

    A reader that has not been read from lately gives up its descriptor first. Recency is one flag (the CLOCK algorithm): a read
    sets it without taking a lock, and a reader that is due but has it set stays once more.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers: dict[Evictable, None] = {}

    def __len__(self) -> int:
        return len(self._readers)

    def add(self, reader: Evictable) -> None:
        """Count a reader that has opened its file, and close files of others if there are too many."""
        most = budget()
        with self._lock:
            self._readers[reader] = None
            while len(self._readers) > most:
                oldest = next(iter(self._readers))
                del self._readers[oldest]
                if oldest.recently_read:
                    oldest.recently_read = False
                    self._readers[oldest] = None
                else:
                    oldest.descriptor = None

    def discard(self, reader: Evictable) -> None:
        """Close a reader's file, or leave that to the threads that still read from it."""
        with self._lock:
            self._readers.pop(reader, None)
            reader.descriptor = None

    def close_all(self) -> None:
        """Close the files of all readers; each opens its own again when it is read from."""
        with self._lock:
            for reader in self._readers:
                reader.descriptor = None
            self._readers.clear()


READERS = DescriptorPool()


def budget() -> int:
    """Return the number of files that readers may have open at a time, from the process's limit (`ulimit -n`)."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MOST if limit == resource.RLIM_INFINITY else max(_FEWEST, min(_MOST, int(limit * _SHARE)))


def open_descriptor(path: str, flags: int, mode: int = 0o666) -> int:
    """Open a file like `os.open`; readers release their descriptors if the process has too many open files."""
    try:
        return os.open(path, flags | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        READERS.close_all()
        return os.open(path, flags | os.O_CLOEXEC, mode)
