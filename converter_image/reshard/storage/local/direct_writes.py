"""Write a file past the page cache (O_DIRECT), in blocks whose position, length and address in memory are aligned.

A copy in the page cache takes memory, and processor time for the copy and its writeback.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from functools import partial
from typing import TYPE_CHECKING

from reshard.errors import BugError
from reshard.storage.buffers import ALIGNMENT, STAGE_BYTES, address, buffers
from reshard.storage.local.descriptors import open_descriptor
from reshard.storage.local.filesystem import UNSUPPORTED, no_bytes_accepted, no_direct_io

if TYPE_CHECKING:
    from reshard.storage.protocol import Write


class DirectFile:
    """A new file. Parts are appended in order. Threads may write them at the same time.

    Args:
        path: path of the file.
        size: number of bytes to allocate in advance. Emulations of this are slow, so it is 0 where it is not supported.
        mode: permission bits to create the file with.
        insist: whether to fail rather than use the page cache.

    Attributes:
        number: file descriptor.

    Raises:
        OSError: the file cannot be created for direct writes, or its space cannot be allocated.
    """

    def __init__(self, path: str, size: int, mode: int, *, insist: bool = False) -> None:
        self._path, self._insist = path, insist
        self.number = open_descriptor(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_DIRECT, mode)
        self._end = 0  # of the parts that were appended
        self._size = size
        self._stage = memoryview(b"")
        self._staged = 0
        self._written = 0
        self._lock = threading.Lock()
        try:
            if size:
                os.posix_fallocate(self.number, 0, size)
        except BaseException:
            os.close(self.number)
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise

    def append_later(self, view: memoryview) -> Write | None:
        """Append bytes, see `Writer.write_later`."""
        whole = 0 if self._staged or address(view) % ALIGNMENT else len(view) - len(view) % ALIGNMENT
        at, self._end = self._end, self._end + whole
        self.append(view[whole:])
        return partial(self._write, view[:whole], at) if whole else None

    def append(self, view: memoryview) -> None:
        """Append bytes. The caller may modify them afterwards."""
        while view:
            self._stage = self._stage or buffers(STAGE_BYTES, 1)[0]
            n = min(len(view), STAGE_BYTES - self._staged)
            self._stage[self._staged : self._staged + n] = view[:n]
            self._staged += n
            view = view[n:]
            if self._staged == STAGE_BYTES:
                self._write(self._stage, self._end)
                self._end, self._staged = self._end + STAGE_BYTES, 0

    def finish(self) -> None:
        """Write the bytes that are left. The last incomplete block takes the page cache.

        Raises:
            BugError: an appended part was not written. Allocated space would read as zeros there.
        """
        whole = self._staged - self._staged % ALIGNMENT
        self._write(self._stage[:whole], self._end)
        if whole < self._staged:
            self._use_page_cache()
            self._write(self._stage[whole : self._staged], self._end + whole)
        self._end, self._staged = self._end + self._staged, 0
        if self._written != self._end:
            raise BugError(
                "Internal",
                f"{self._written} of {self._end} bytes were written",
                where=self._path,
                fix="this is a bug in reshard: please report it",
            )
        if self._size > self._end:
            os.ftruncate(self.number, self._end)

    def _write(self, view: memoryview, at: int) -> None:
        direct = True
        while view:
            try:
                n = os.pwrite(self.number, view, at)
            except OSError as error:
                # Some file systems refuse only the write. After a short write, the rest may not be aligned.
                if error.errno not in UNSUPPORTED or not direct:
                    raise
                if self._insist and not at % ALIGNMENT:
                    raise no_direct_io(self._path, error) from error
                direct = False
                self._use_page_cache()
                continue
            if n == 0:
                raise no_bytes_accepted()
            view, at = view[n:], at + n
            with self._lock:
                self._written += n

    def _use_page_cache(self) -> None:
        """Write through the page cache from now on."""
        fcntl.fcntl(self.number, fcntl.F_SETFL, fcntl.fcntl(self.number, fcntl.F_GETFL) & ~os.O_DIRECT)
