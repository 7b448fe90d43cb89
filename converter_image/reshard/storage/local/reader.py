"""Read a local file by ranges, from any number of threads."""

from __future__ import annotations

import contextlib
import os
import stat as stat_bits
import threading
from typing import TYPE_CHECKING, NoReturn

from reshard.errors import BugError, DataError, MissingInputError, StorageError
from reshard.storage.local.descriptors import READERS, Descriptor, open_descriptor
from reshard.storage.local.direct_reads import SMALLEST_DIRECT_READ, DirectReads
from reshard.storage.local.failures import failures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reshard.spec.storage_options import Io
    from reshard.storage.traffic import Meter


class LocalReader:
    """A file of a local store. If its descriptor is closed between two reads, the file is opened and checked again.

    Attributes:
        name: path of the file.
        size: length in bytes.
        version: see `Stat.version`.
        changed: see `Reader.changed`.
        recently_read: whether the file was read since the pool last checked.
        descriptor: open descriptor, or None if it is closed.
    """

    __slots__ = (
        *("_closed", "_direct", "_inside", "_lock", "_meters"),
        *("changed", "descriptor", "name", "recently_read", "size", "version"),
    )

    def __init__(self, path: str, meter: Meter, io: Io = "Auto", inside: str | None = None) -> None:
        self.name = path
        self._inside = inside
        self._meters: tuple[Meter, ...] = (meter,)
        self.recently_read = True  # or it would be the first to be closed
        self.descriptor: Descriptor | None = None
        self._closed = False
        self._lock = threading.Lock()
        descriptor, found = _open(path, inside)
        self.size = found.st_size
        self.version = version_of(found)
        self.changed = changed_of(found)
        self._direct = DirectReads(path, self.size, io, self._count)
        self.descriptor = descriptor
        READERS.add(self)

    def read(self, offset: int, length: int) -> bytes:
        """See `Reader.read`."""
        if offset + length > self.size:  # before a buffer of a malicious length is allocated
            self._ends_early(offset, length)
        file = self._opened()
        with failures(self.name):
            content = os.pread(file.number, length, offset)
        self._count(len(content), 1)
        if len(content) < length:  # the system returns at most 2 GiB at once
            rest = bytearray(length - len(content))
            self.read_into(memoryview(rest), offset + len(content))
            content += rest
        return content

    def read_into(self, view: memoryview, offset: int) -> None:
        """See `Reader.read_into`."""
        file = self._opened()
        done, large = 0, len(view) >= SMALLEST_DIRECT_READ
        while done < len(view):
            left = view[done:] if done else view
            try:
                n = self._direct.read_into(file, left, offset + done) if large else 0
                if not n:
                    n = os.preadv(file.number, [left], offset + done)
                    self._count(n, 1)
            except OSError as error:
                raise StorageError(
                    "ReadFailed",
                    f"reading {len(view)} bytes at byte {offset} failed: {error.strerror}",
                    where=self.name,
                    fix="check the storage for errors, then retry",
                ) from error
            if n == 0:
                self._ends_early(offset, len(view))
            done += n

    def read_runs(self, view: memoryview, length: int, offsets: Sequence[int]) -> None:
        """See `Reader.read_runs`. Makes one system call for each run."""
        file = self._opened()  # the reference keeps the number valid
        number, preadv, at, missing = file.number, os.preadv, 0, 0
        with failures(self.name):
            for offset in offsets:
                run = view[at : at + length]
                if (n := preadv(number, (run,), offset)) != length:
                    self.read_into(run[n:], offset + n)
                    missing += length - n
                at += length
        self._count(at - missing, len(offsets))

    def will_read(self, offset: int, length: int) -> None:
        """See `Reader.will_read`."""
        file = self._opened()
        with contextlib.suppress(OSError):  # only a hint
            os.posix_fadvise(file.number, offset, length, os.POSIX_FADV_WILLNEED)

    def count_in(self, meter: Meter) -> None:
        """See `Reader.count_in`."""
        self._meters = (*self._meters, meter)

    def _count(self, nbytes: int, calls: int) -> None:
        for meter in self._meters:
            meter.add(nbytes, calls)

    @property
    def waits(self) -> bool:
        """See `Reader.waits`. The middle of the file is probed."""
        return self._direct.applies(self._opened(), self.size // 2)

    def close(self) -> None:
        """See `Reader.close`."""
        with self._lock:
            self._closed = True
            if self.descriptor is not None:
                self._direct.forget(self.descriptor)
            READERS.discard(self)

    def _opened(self) -> Descriptor:
        """The open descriptor. The caller must keep a reference to it while it uses the number."""
        file = self.descriptor or self._reopened()
        self.recently_read = True
        return file

    def _reopened(self) -> Descriptor:
        """Open the file again.

        Raises:
            DataError: the file was deleted, or has changed.
        """
        with self._lock:
            if self._closed:
                raise BugError(
                    "ReaderClosed", "a closed file was read", where=self.name, fix="this is a bug in reshard: please report it"
                )
            file = self.descriptor
            if file is not None:  # another thread has opened it
                return file
            try:
                file, found = _open(self.name, self._inside)
            except MissingInputError as error:
                raise self._changed("was deleted") from error
            if version_of(found) != self.version:
                raise self._changed("changed")
            self.descriptor = file
            READERS.add(self)
            return file

    def _changed(self, how: str) -> DataError:
        return DataError(
            "SourceChanged",
            f"the file {how} while it was being read",
            where=self.name,
            fix="wait until nothing writes to the file any more, then retry",
        )

    def _ends_early(self, offset: int, length: int) -> NoReturn:
        with failures(self.name):
            found = os.fstat(self._opened().number)
        if version_of(found) != self.version:
            raise self._changed("changed")
        raise DataError(
            "Truncated",
            f"{length} bytes were expected at byte {offset}, but the file ends at byte {found.st_size}",
            where=self.name,
            fix="the file is damaged; restore it",
        )


def version_of(found: os.stat_result) -> str:
    """Return a version that changes whenever the file's content may have changed."""
    return f"{found.st_size}-{found.st_mtime_ns}"


def refuse_outside(path: str, inside: str | None, name: str) -> None:
    """Refuse a path without links that is not in a folder, see `StorageOptions.inside`. `name` is the path with links.

    Raises:
        DataError: the path leads out of the folder.
    """
    if inside is not None and path != inside and not path.startswith(f"{inside}/"):
        raise DataError(
            "LinkOutside",
            "a symbolic link leads out of the volume",
            where=name,
            fix="replace the link by the file or folder itself, or use the claim that contains it",
        )


def _open(path: str, inside: str | None) -> tuple[Descriptor, os.stat_result]:
    """Open a regular file for reading.

    Raises:
        AccessError: reading is denied.
        DataError: the file is outside of a folder, see `StorageOptions.inside`.
        MissingInputError: the file does not exist, or is not a regular file.
    """
    with failures(path):
        file = Descriptor(open_descriptor(path, os.O_RDONLY | os.O_NONBLOCK))  # a pipe would wait for its writer
        found = os.fstat(file.number)
    if inside is not None:  # of the open file, because a link can be replaced at any time
        with failures(path):
            refuse_outside(os.readlink(f"/proc/self/fd/{file.number}"), inside, path)
    if not stat_bits.S_ISREG(found.st_mode):
        kind = "a folder" if stat_bits.S_ISDIR(found.st_mode) else "a pipe or device"
        raise MissingInputError("NotAFile", f"expected a file, found {kind}", where=path, fix="specify a file")
    return file, found


def changed_of(found: os.stat_result) -> int:
    """Return the time of the last change of content or attributes, see `Reader.changed`."""
    return max(0, found.st_ctime_ns)
