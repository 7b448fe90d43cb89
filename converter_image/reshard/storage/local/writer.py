"""Create a local file under a temporary name."""

from __future__ import annotations

import contextlib
import errno
import os
from functools import partial
from typing import TYPE_CHECKING

from reshard.errors import BugError, OutputError
from reshard.storage.local.descriptors import open_descriptor
from reshard.storage.local.direct_writes import DirectFile
from reshard.storage.local.failures import failures
from reshard.storage.local.filesystem import UNSUPPORTED, no_direct_io, write_all

if TYPE_CHECKING:
    from reshard.storage.local.filesystem import FileSystem
    from reshard.storage.protocol import Reader, Write
    from reshard.storage.traffic import Meter

# Written bytes are handed to the disk in steps of this size while later ones are still being computed, so that the final
# fsync finds little left to do. Once they are on the disk, they leave the page cache, which uses the memory for the next bytes:
# memory that was not used before costs more time, and other programs would lose what they have cached. Up to
# _CACHED_BYTES before a step may still be on their way to the disk. On slower disks, more bytes stay in the page cache.
_WRITEBACK_STEP = 8 << 20
_CACHED_BYTES = 32 << 20
# Smaller files are finished sooner in the page cache.
_SMALLEST_DIRECT = 8 << 20


class LocalNewFile:
    """A complete file with a temporary name.

    Args:
        path: path of the finished file.
        temporary: path until then.
        name: temporary path in the store.
        system: file system of the files.
    """

    def __init__(self, path: str, temporary: str, name: str, system: FileSystem) -> None:
        self._path, self._temporary, self._name, self._system = path, temporary, name, system

    def flush(self) -> str:
        """See `NewFile.flush`."""
        return self._name

    def finish(self) -> None:
        """See `NewFile.finish`."""
        self.flush()
        with failures(self._path, writing=True):
            self._rename()
            self._system.sync_folder(os.path.dirname(self._path))

    def _rename(self) -> None:
        """Make the file visible at its path.

        Raises:
            OutputError: the file system cannot rename files.
        """
        try:
            os.rename(self._temporary, self._path)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EXDEV):
                raise
            raise OutputError(
                "CannotRename",
                f"the file system does not support renaming files: {error.strerror}",
                where=self._path,
                fix="choose a target on another file system; for a mounted bucket, use s3://bucket/prefix instead of the mount",
            ) from error

    def abort(self) -> None:
        """See `NewFile.abort`. rename(2) keeps the temporary name of a hard link to the file that it would replace."""
        with contextlib.suppress(OSError):
            os.unlink(self._temporary)


class LocalWriter(LocalNewFile):
    """A file that is written under a temporary name."""

    def __init__(
        self, path: str, temporary: str, name: str, mode: int | None, system: FileSystem, size: int | None = None
    ) -> None:
        super().__init__(path, temporary, name, system)
        self._offset = 0
        self._handed_over = 0
        self._open = False
        with failures(path, writing=True):
            system.make_folder(os.path.dirname(path), mode)
            system.make_folder(os.path.dirname(temporary), mode)
            created_with = 0o666 if mode is None else mode
            self._direct = self._create_direct(size, created_with)
            if self._direct is not None:
                self._file = self._direct.number
            else:
                self._file = open_descriptor(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, created_with)
            self._open = True
            try:
                system.set_mode(self._file, mode)
            except BaseException:
                self.abort()
                raise

    def _create_direct(self, size: int | None, mode: int) -> DirectFile | None:
        """Create the file for direct writes, or return None if this is not supported, or would not be faster.

        Raises:
            RequestError: direct writes are requested, but not supported.
        """
        io = self._system.io
        if size is None or io == "Buffered" or (io == "Auto" and size < _SMALLEST_DIRECT):
            return None
        allocate = self._system.allocates(os.path.dirname(self._temporary))
        if io == "Auto" and not allocate:
            return None
        try:
            return DirectFile(self._temporary, size if allocate else 0, mode, insist=io == "Direct")
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            if io == "Direct":
                raise no_direct_io(self._path, error) from error
            return None

    def write(self, data: memoryview | bytes | bytearray) -> None:
        """See `Writer.write`."""
        view = memoryview(data)
        with failures(self._path, writing=True):
            if self._direct is not None:
                self._direct.append(view)
                return
            write_all(self._file, view)
        self._offset += len(view)
        if self._offset - self._handed_over >= _WRITEBACK_STEP:
            # On this advice, Linux starts to write dirty pages back and drops clean ones, which were written by earlier steps.
            with contextlib.suppress(OSError):  # only a hint: fsync reports write errors
                start = max(0, self._handed_over - _CACHED_BYTES)
                os.posix_fadvise(self._file, start, self._offset - start, os.POSIX_FADV_DONTNEED)
            self._handed_over = self._offset

    @property
    def any_order(self) -> bool:
        """See `Writer.any_order`."""
        return self._direct is not None

    def room(self, nbytes: int) -> memoryview | None:
        """See `Writer.room`. Always None."""
        del nbytes
        return None

    def write_later(self, data: memoryview) -> Write | None:
        """See `Writer.write_later`."""
        if self._direct is None:
            return partial(self.write, data)
        with failures(self._path, writing=True):
            write = self._direct.append_later(data)
        return None if write is None else partial(self._carry_out, write)

    def _carry_out(self, write: Write) -> None:
        with failures(self._path, writing=True):
            write()

    def copy(self, reader: Reader, offset: int, length: int, meter: Meter) -> None:
        """See `Writer.copy`. Always raises an error, because a local store cannot copy from other stores."""
        del meter
        raise BugError(
            "Internal",
            f"a local file cannot copy {length} bytes at byte {offset} of {reader.name} on a server",
            where=self._path,
            fix="this is a bug in reshard: please report it",
        )

    def cut(self) -> None:
        """See `Writer.cut`. Does nothing, because a local file has no parts."""

    def flush(self) -> str:
        """See `NewFile.flush`."""
        if self._open:
            with failures(self._path, writing=True):
                if self._direct is not None:
                    self._direct.finish()
                self._system.sync_file(self._file)
                self._close()  # network file systems report here that the space or a quota is used up
        return self._name

    def abort(self) -> None:
        """See `NewFile.abort`."""
        with contextlib.suppress(OSError):
            self._close()
        super().abort()

    def _close(self) -> None:
        if self._open:
            self._open = False  # Linux closes it even if it reports an error
            os.close(self._file)
