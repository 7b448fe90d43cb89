"""Read the parts of a file that are not in the page cache past it (O_DIRECT), so that they do not displace others there."""

from __future__ import annotations

import os
import random
import threading
from typing import TYPE_CHECKING

import numpy as np

from reshard.storage.buffers import ALIGNMENT, address, buffers
from reshard.storage.local.filesystem import UNSUPPORTED, no_direct_io

if TYPE_CHECKING:
    from collections.abc import Callable

    from reshard.spec.storage_options import Io
    from reshard.storage.local.descriptors import Descriptor

# Smaller reads are faster through the page cache, which reads ahead.
SMALLEST_DIRECT_READ = 128 << 10
_SMALLEST_FILE = 8 << 20
# Bytes that one system call reads into the buffer of a thread.
_LARGEST_READ = 1 << 20
# Parts of a file that were probably read at the same time. Each is probed when it is first read.
_SEGMENT_BYTES = 16 << 20
_PROBES = 3


class DirectReads:
    """Reads of one file past the page cache. Threads may share it.

    A few random bytes of each segment are read on condition that they are in memory (`RWF_NOWAIT`). File systems that do not
    support this, such as NFS, are read through the page cache. A byte that is not in memory lets the kernel read its page, so
    other bytes are probed the next time. A wrong answer costs time, but is never an error.

    Args:
        name: path of the file, for messages.
        size: length of the file in bytes.
        io: see `StorageOptions.io`.
        count: callback with the number of bytes and of system calls.
    """

    def __init__(self, name: str, size: int, io: Io, count: Callable[[int, int], None]) -> None:
        self._name, self._size, self._io, self._count = name, size, io, count
        self._supported = io == "Direct" or (io == "Auto" and size >= _SMALLEST_FILE)
        self._cached: dict[int, int] = {}  # number of probes of each segment that were in the page cache

    def applies(self, file: Descriptor, offset: int) -> bool:
        """Return whether bytes from this offset should be read past the page cache."""
        if not self._supported or self._io == "Direct":
            return self._supported
        segment = offset // _SEGMENT_BYTES
        found = self._cached.get(segment)
        if found is None:
            found = self._cached[segment] = self._probe(file.number, segment)
        return found <= _PROBES // 2

    def read_into(self, file: Descriptor, view: memoryview, offset: int) -> int:
        """Fill the start of `view`. Return the number of bytes, which is 0 if they should be read through the page cache.

        Raises:
            OSError: the read failed.
            RequestError: direct reads are requested, but not supported.
        """
        if not self.applies(file, offset):
            return 0
        try:
            if offset % ALIGNMENT == len(view) % ALIGNMENT == address(view) % ALIGNMENT == 0:
                found = fetched = os.preadv(file.direct(), [view], offset)
            else:
                found, fetched = _UNALIGNED.read_into(file.direct(), view, offset)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            if self._io == "Direct":
                raise no_direct_io(self._name, error) from error
            self._supported = False
            return 0
        self._count(fetched, 1)
        return found

    def forget(self, file: Descriptor) -> None:
        """Drop what small reads have left in segments of the page cache that held nothing before."""
        for segment, cached in self._cached.items():
            if not cached:
                os.posix_fadvise(file.number, segment * _SEGMENT_BYTES, _SEGMENT_BYTES, os.POSIX_FADV_DONTNEED)

    def _probe(self, file: int, segment: int) -> int:
        """Return how many of some random bytes of a segment are in the page cache."""
        start = segment * _SEGMENT_BYTES
        end = min(start + _SEGMENT_BYTES, self._size)
        read = found = 0
        for _ in range(_PROBES):
            try:
                read += os.preadv(file, [bytearray(1)], random.randrange(start, end), os.RWF_NOWAIT)  # noqa: S311 - not for security
                found += 1
            except BlockingIOError:
                pass
            except OSError:  # not supported
                self._supported = False
                return _PROBES
        self._count(read, _PROBES)
        return found


class _Unaligned(threading.local):
    """Reads any range through a buffer of the thread."""

    def __init__(self) -> None:
        (self._buffer,) = buffers(_LARGEST_READ + 2 * ALIGNMENT, 1)

    def read_into(self, file: int, view: memoryview, offset: int) -> tuple[int, int]:
        """Fill the start of `view`. Return the number of its bytes, which is 0 at the end of the file, and of all read bytes."""
        lead = offset % ALIGNMENT
        wanted = min(len(view), _LARGEST_READ)
        length = -(-(lead + wanted) // ALIGNMENT) * ALIGNMENT
        fetched = os.preadv(file, [self._buffer[:length]], offset - lead)
        found = max(0, min(fetched - lead, wanted))
        np.copyto(np.frombuffer(view, np.uint8, found), np.frombuffer(self._buffer, np.uint8, found, lead))  # releases the GIL
        return found, fetched


_UNALIGNED = _Unaligned()
