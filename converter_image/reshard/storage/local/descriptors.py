"""Limit the number of open file descriptors for reading. No descriptor is closed while it is in use."""

from __future__ import annotations

import errno
import os
import resource
import threading
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

# Connections, locks and the program itself need the rest of the descriptors that the process may open.
_SHARE = 3 / 8
_WRITTEN_SHARE = 1 / 2
_FEWEST = 8
_MOST = 4096
# A file that is read past the page cache has two descriptors.
_DESCRIPTORS_PER_FILE = 2


class Descriptor:
    """An open file. It is closed when the last reference is gone, so that a thread that reads from it keeps it open.

    Attributes:
        number: file descriptor. A caller must hold a reference to this object while it uses the descriptor.
    """

    __slots__ = ("_direct", "number")
    _lock = threading.Lock()

    def __init__(self, number: int) -> None:
        self.number = number
        self._direct: int | None = None

    def direct(self) -> int:
        """Return another descriptor of the same file, for reads past the page cache.

        Raises:
            OSError: the file system does not support it.
        """
        with self._lock:
            if self._direct is None:
                self._direct = open_descriptor(f"/proc/self/fd/{self.number}", os.O_RDONLY | os.O_DIRECT)
            return self._direct

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # at exit the module may be unloaded already
        """Close the file. Errors are ignored, because nothing was written to it."""
        close(self.number)
        if self._direct is not None:
            close(self._direct)


class Evictable(Protocol):
    """A reader that can open its file again."""

    recently_read: bool
    descriptor: Descriptor | None


class DescriptorPool:
    """Limits the number of readers with an open file.

    The pool closes the files of readers that were not used recently, by the CLOCK algorithm. Each read sets a flag, without a
    lock. A reader whose flag is set keeps its file for another round.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers: dict[Evictable, None] = {}

    def __len__(self) -> int:
        return len(self._readers)

    def add(self, reader: Evictable) -> None:
        """Add a reader that has opened its file. Close the files of other readers if too many are open."""
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
        """Close a reader's file as soon as no thread reads from it."""
        with self._lock:
            self._readers.pop(reader, None)
            reader.descriptor = None

    def close_all(self) -> None:
        """Close the files of all readers. Each reader opens its file again on the next read."""
        with self._lock:
            for reader in self._readers:
                reader.descriptor = None
            self._readers.clear()


READERS = DescriptorPool()


def budget() -> int:
    """Return the maximum number of files that readers may have open. It depends on the limit of the process (`ulimit -n`)."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    most = _MOST if limit == resource.RLIM_INFINITY else min(_MOST, int(limit * _SHARE))
    return max(_FEWEST, most // _DESCRIPTORS_PER_FILE)


def writable_files() -> int:
    """Return the maximum number of files to write at the same time. It depends on the limit of the process (`ulimit -n`)."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MOST if limit == resource.RLIM_INFINITY else max(1, min(_MOST, int(limit * _WRITTEN_SHARE)))


def open_descriptor(path: str, flags: int, mode: int = 0o666) -> int:
    """Open a file like `os.open`. If the process has too many open files, close those of all readers first."""
    try:
        return os.open(path, flags | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        READERS.close_all()
        return os.open(path, flags | os.O_CLOEXEC, mode)
