"""A folder on a file system as a storage."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat as stat_bits
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from reshard.errors import BugError, DataError, MissingInputError, OutputError, StorageError
from reshard.storage.local_failures import denied, failures
from reshard.storage.protocol import Stat, WriteCost

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from reshard.storage.protocol import Reader, Store

# Written bytes are handed to the disk in steps of this size while later ones are still being computed, so that the final
# fsync finds little left to do.
_WRITEBACK_STEP = 8 << 20


class LocalReader:
    """An open file of a local store."""

    def __init__(self, path: str) -> None:
        with failures(path):
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait for its writer
        found = os.fstat(self._file)
        if not stat_bits.S_ISREG(found.st_mode):
            os.close(self._file)
            kind = "a folder" if stat_bits.S_ISDIR(found.st_mode) else "a pipe or device"
            raise MissingInputError("NotAFile", f"a file is expected here, this is {kind}", where=path, fix="give a file")
        self.name = path
        self.size = found.st_size
        self.version = _version(found)

    def read(self, offset: int, length: int) -> bytes:
        """See `Reader.read`."""
        if offset + length > self.size:  # before a buffer of a hostile length is made
            self._ends_early(offset, length)
        with failures(self.name):
            content = os.pread(self._file, length, offset)
        if len(content) < length:  # the system gives at most 2 GiB at once
            rest = bytearray(length - len(content))
            self.read_into(memoryview(rest), offset + len(content))
            content += rest
        return content

    def read_into(self, view: memoryview, offset: int) -> None:
        """See `Reader.read_into`."""
        done = 0
        while done < len(view):
            try:
                n = os.preadv(self._file, [view[done:] if done else view], offset + done)
            except OSError as error:
                raise StorageError(
                    "ReadFailed",
                    f"reading {len(view)} bytes at {offset} failed: {error.strerror}",
                    where=self.name,
                    fix="check the storage for faults and run again",
                ) from error
            if n == 0:
                self._ends_early(offset, len(view))
            done += n

    def read_runs(self, view: memoryview, length: int, offsets: Sequence[int]) -> None:
        """See `Reader.read_runs`: a system call for each run, with as little as possible around it."""
        file, preadv, at = self._file, os.preadv, 0
        with failures(self.name):
            for offset in offsets:
                run = view[at : at + length]
                if preadv(file, (run,), offset) != length:
                    self.read_into(run, offset)
                at += length

    def _ends_early(self, offset: int, length: int) -> NoReturn:
        raise DataError(
            "Truncated",
            f"{length} bytes are expected at {offset}, but the file ends at {os.fstat(self._file).st_size}",
            where=self.name,
            fix="the file is damaged; restore it",
        )

    def close(self) -> None:
        """See `Reader.close`."""
        os.close(self._file)


class LocalWriter:
    """A file under a temporary name, renamed when it is whole."""

    def __init__(self, path: str, temporary: str, mode: int) -> None:
        self._path = path
        self._temporary = temporary
        self._offset = 0
        self._handed_over = 0
        _make_folder(os.path.dirname(path), mode)
        _make_folder(os.path.dirname(temporary), mode)
        with failures(path, writing=True):
            self._file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
            os.fchmod(self._file, mode)  # whatever the umask
        self._open = True

    def write(self, data: memoryview | bytes | bytearray) -> None:
        """See `Writer.write`."""
        view = memoryview(data)
        with failures(self._path, writing=True):
            while view:
                n = os.write(self._file, view)
                self._offset += n
                view = view[n:]
            if self._offset - self._handed_over >= _WRITEBACK_STEP:
                # Linux starts writing dirty pages back when told that they will not be needed, and lets go of clean ones.
                os.posix_fadvise(self._file, self._handed_over, self._offset - self._handed_over, os.POSIX_FADV_DONTNEED)
                self._handed_over = self._offset

    def copy(self, reader: Reader, offset: int, length: int) -> None:
        """See `Writer.copy`: no store is copied from."""
        raise BugError(
            "NoServer",
            f"{length} bytes at {offset} of {reader.name} cannot be copied by a server",
            where=self._path,
            fix="please report this",
        )

    def cut(self) -> None:
        """See `Writer.cut`: a file has no parts."""

    def finish(self) -> None:
        """See `Writer.finish`."""
        with failures(self._path, writing=True):
            os.fsync(self._file)
            self._close()
            os.rename(self._temporary, self._path)
            _sync_folder(os.path.dirname(self._path))

    def abort(self) -> None:
        """See `Writer.abort`."""
        self._close()
        with contextlib.suppress(OSError):
            os.unlink(self._temporary)

    def _close(self) -> None:
        if self._open:
            self._open = False
            os.close(self._file)


class LocalStore:
    """The files below one folder."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.path.abspath(root)
        self.url = self.root
        self.remote = False
        self.renames = True

    def copies_from(self, other: Store) -> bool:
        """See `Store.copies_from`."""
        del other
        return False

    @property
    def part_limits(self) -> None:
        """See `Store.part_limits`."""

    def around(self) -> list[tuple[int, int] | str]:
        """See `Store.around`: device and inode, for a folder can be mounted in two places; the path where nothing is yet."""
        found: list[tuple[int, int] | str] = []
        path = os.path.realpath(self.root)
        while True:
            try:
                status = os.stat(path)
                found.append((status.st_dev, status.st_ino))
            except OSError:
                found.append(path)
            parent = os.path.dirname(path)
            if parent == path:
                return found
            path = parent

    def _at(self, path: str) -> str:
        if ".." in path.split("/") or path.startswith("/"):  # whatever a hostile document says
            raise DataError(
                "UnsafePath", f"{path!r} leads out of the folder", where=self.root, fix="restore the file that names it"
            )
        return os.path.join(self.root, path) if path else self.root

    def list(self, path: str) -> list[Stat]:
        """See `Store.list`."""
        folder = self._at(path)
        try:
            with failures(folder), os.scandir(folder) as entries:
                return sorted((_stat(e.name, e.stat()) for e in entries if _exists(e)), key=lambda s: s.name)
        except MissingInputError:
            return []

    def stat(self, path: str) -> Stat | None:
        """See `Store.stat`."""
        full = self._at(path)
        try:
            with failures(full):
                return _stat(os.path.basename(full), os.stat(full))
        except MissingInputError:
            return None

    def open(self, path: str) -> LocalReader:
        """See `Store.open`."""
        return LocalReader(self._at(path))

    def read(self, path: str, limit: int) -> bytes:
        """See `Store.read`."""
        with contextlib.closing(self.open(path)) as reader:
            if reader.size > limit:
                raise DataError(
                    "FileTooLarge",
                    f"{reader.size} bytes where at most {limit} can be meant",
                    where=reader.name,
                    fix="give the file that is meant",
                )
            return reader.read(0, reader.size)

    def create(
        self, path: str, *, temporary: str, mode: int, size: int | None = None, memory: int = 0, copies: bool = False
    ) -> LocalWriter:
        """See `Store.create`."""
        del size, memory, copies
        return LocalWriter(self._at(path), self._at(temporary), mode)

    def write_cost(self, size: int, memory: int) -> WriteCost:
        """See `Store.write_cost`: the page cache holds what is under way."""
        del size, memory
        return WriteCost()

    def write(self, path: str, content: bytes, *, mode: int) -> None:
        """See `Store.write`."""
        writer = self.create(path, temporary=f"{path}.{os.urandom(6).hex()}.tmp", mode=mode)
        try:
            writer.write(content)
            writer.finish()
        finally:
            writer.abort()

    def write_new(self, path: str, content: bytes, *, mode: int) -> bool:
        """See `Store.write_new`: a link to a whole temporary, for O_EXCL alone would let others see an empty file."""
        full = self._at(path)
        _make_folder(os.path.dirname(full), mode)
        with failures(full, writing=True):
            file, temporary = _open_temporary(full, mode)
            try:
                os.fchmod(file, mode)
                os.write(file, content)
                os.fsync(file)
                # With a descriptor given Python calls linkat(2), which follows the link that stands for a nameless file.
                os.link(temporary or f"/proc/self/fd/{file}", full, src_dir_fd=file, follow_symlinks=True)
            except (FileExistsError, FileNotFoundError):  # someone else was quicker, or has cleared the temporary away
                return False
            finally:
                os.close(file)
                if temporary is not None:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(temporary)
            return True

    def swap(self, path: str, content: bytes, version: str, *, mode: int) -> bool:
        """See `Store.swap`: moved out of the way first, so that of several who try one succeeds, and none removes a successor."""
        full = self._at(path)
        grave = f"{full}.{os.urandom(6).hex()}.dead"
        with failures(full, writing=True):
            try:
                os.rename(full, grave)
            except FileNotFoundError:
                return False
            try:
                if _version(os.stat(grave)) != version:
                    with contextlib.suppress(FileExistsError):
                        os.link(grave, full)
                    return False
            finally:
                os.unlink(grave)
        return self.write_new(path, content, mode=mode)

    def move(self, path: str, to: str) -> None:
        """See `Store.move`."""
        source, target = self._at(path), self._at(to)
        _make_folder(os.path.dirname(target), stat_bits.S_IMODE(os.stat(source).st_mode) if os.path.exists(source) else 0o640)
        with failures(target, writing=True):
            os.rename(source, target)
            _sync_folder(os.path.dirname(target))

    def delete(self, path: str) -> None:
        """See `Store.delete`."""
        full = self._at(path)
        with failures(full, writing=True):
            if os.path.isdir(full) and not os.path.islink(full):
                shutil.rmtree(full)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(full)

    def touch(self, path: str) -> None:
        """See `Store.touch`."""
        with failures(self._at(path), writing=True), contextlib.suppress(FileNotFoundError):
            os.utime(self._at(path))

    def age(self, path: str) -> float | None:
        """See `Store.age`: a new file beside it tells what time it is where the files are."""
        full = self._at(path)
        try:
            with failures(full):
                then = os.stat(full).st_mtime
        except MissingInputError:
            return None
        with failures(full, writing=True):
            file, temporary = _open_temporary(full, 0o600)
            try:
                os.utime(file)
                return os.fstat(file).st_mtime - then
            finally:
                os.close(file)
                if temporary is not None:
                    os.unlink(temporary)

    def abort_stale_uploads(self, paths: Iterable[str], *, silent: float) -> None:
        """See `Store.abort_stale_uploads`: there is nothing but temporaries."""

    def check_writable(self) -> None:
        """See `Store.check_writable`."""
        folder = self._nearest()
        if not folder.is_dir():
            raise OutputError(
                "CannotCreate",
                "a folder is expected here, this is a file",
                where=str(folder),
                fix="choose another target",
            )
        with failures(str(folder), writing=True):
            read_only = bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
        if read_only:
            raise OutputError(
                "CannotWrite", os.strerror(errno.EROFS), where=str(folder), fix="mount it for writing, or choose another target"
            )
        if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
            raise denied(str(folder), writing=True)

    def _nearest(self) -> Path:
        """The folder, or the nearest one around it that is there."""
        folder = Path(self.root)
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        return folder

    def free_bytes(self) -> int | None:
        """See `Store.free_bytes`."""
        folder = self._nearest()
        with failures(str(folder), writing=True):
            found = os.statvfs(folder)
        return found.f_bavail * found.f_frsize


def _open_temporary(path: str, mode: int) -> tuple[int, str | None]:
    """A new file without a name, which a killed process cannot leave behind; or with one, where there is no such thing (NFS)."""
    try:
        return os.open(os.path.dirname(path), os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, mode), None
    except OSError:
        temporary = f"{path}.{os.urandom(6).hex()}.tmp"
        return os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), temporary


def _exists(entry: os.DirEntry[str]) -> bool:
    """A link that leads nowhere is as good as nothing."""
    try:
        entry.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return False
        raise
    return True


def _stat(name: str, found: os.stat_result) -> Stat:
    folder = stat_bits.S_ISDIR(found.st_mode)
    return Stat(name, folder, 0 if folder else found.st_size, _version(found))


def _version(found: os.stat_result) -> str:
    return f"{found.st_size}-{found.st_mtime_ns}"


def _make_folder(folder: str, mode: int) -> None:
    """With search permission for whoever may read."""
    with failures(folder, writing=True):
        missing = []
        while not os.path.isdir(folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
        for path in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(path)
                os.chmod(path, mode | (mode & 0o444) >> 2 | 0o300)  # in which this process can go on writing
                _sync_folder(os.path.dirname(path))


def _sync_folder(folder: str) -> None:
    """Make names durable."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
