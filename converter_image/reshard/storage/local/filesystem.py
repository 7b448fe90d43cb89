"""Optional system calls that some file systems do not support. They are skipped, and a note is recorded for each of them.

Such file systems are FAT, CIFS, FUSE (gcsfuse, rclone, blobfuse) and NFS with squashed users, see docs/storage.md.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat as stat_bits
from typing import TYPE_CHECKING

from reshard.errors import RequestError
from reshard.storage.local.descriptors import open_descriptor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reshard.spec.storage_options import Io

# File systems that accept several direct writes at a time if space was allocated in advance. Others may not, or may send each of
# them to a server.
_DIRECT = {"ext4", "xfs"}
UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTTY}
_REFUSED = {*UNSUPPORTED, errno.EPERM, errno.EACCES}


class FileSystem:
    """The file system of one store, and the operations that it does not support.

    Attributes:
        io: see `StorageOptions.io`.
    """

    def __init__(self, io: Io = "Auto") -> None:
        self.io = io
        self._notes: dict[str, None] = {}
        self._direct: dict[int, bool] = {}

    @property
    def notes(self) -> Sequence[str]:
        """Skipped operations, in order."""
        return tuple(self._notes)

    def note(self, what: str, error: OSError | None = None) -> None:
        """Record that an operation was skipped."""
        self._notes[what if error is None else f"{what} ({error.strerror or error})"] = None

    def allocates(self, folder: str) -> bool:
        """Return whether files in a folder can be allocated in advance, and are then written faster past the page cache."""
        device = os.stat(folder).st_dev
        if device not in self._direct:
            self._direct[device] = _type_of(device) in _DIRECT
        return self._direct[device]

    def set_mode(self, file: int | str, mode: int | None) -> None:
        """Set the permission bits of a file or folder that was created with the same `mode`, unless it is None.

        Correct permission bits are not set again, because chmod clears the set-group-ID bit of a folder if the user is not a
        member of its group.
        """
        if mode is None:
            return
        found = stat_bits.S_IMODE(os.stat(file).st_mode)
        if found & 0o777 == mode:
            return
        what = "the file system does not support changing permission bits"
        try:
            os.chmod(file, mode | found & (stat_bits.S_ISGID | stat_bits.S_ISVTX))
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            self.note(what, error)
        else:
            if os.stat(file).st_mode & 0o777 != mode:  # for example exFAT
                self.note(what)

    def sync_file(self, file: int) -> None:
        """Make a file's content durable."""
        try:
            os.fsync(file)
        except OSError as error:  # EIO, ENOSPC and EDQUOT mean that bytes are lost
            if error.errno not in UNSUPPORTED:
                raise
            self.note("the file system does not support fsync on files; a power failure can lose recently written data", error)

    def sync_folder(self, folder: str) -> None:
        """Make the names in a folder durable."""
        try:
            file = open_descriptor(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(file)
            finally:
                os.close(file)
        except OSError as error:
            if error.errno not in {*_REFUSED, errno.EBADF, errno.EISDIR}:
                raise
            self.note("the file system does not support fsync on folders; a power failure can lose the names of new files", error)

    def make_folder(self, folder: str, mode: int | None) -> None:
        """Create a folder and its missing parents. Each class of users with read permission also gets search permission."""
        missing = []
        while not os.path.isdir(folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
        wanted = None if mode is None else mode | (mode & 0o444) >> 2 | 0o300  # in which this process can still write
        for path in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o777 if wanted is None else wanted)
                self.set_mode(path, wanted)
                self.sync_folder(os.path.dirname(path))

    def free_bytes(self, folder: str) -> int | None:
        """Return the free space in bytes, or None if the file system does not report it."""
        try:
            found = os.statvfs(folder)
        except OSError as error:
            self.note("the file system does not report its free space", error)
            return None
        if not found.f_blocks:  # like mounted object stores, which have no size
            self.note("the file system does not report its free space")
            return None
        return found.f_bavail * found.f_frsize

    def is_read_only(self, folder: str) -> bool:
        """Return whether the file system is known to be mounted read-only."""
        try:
            return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
        except OSError:
            return False

    def link(self, source: str | int, target: str) -> bool:
        """Create a hard link to a file. Return whether the file system supports hard links.

        Args:
            source: path of the file, or descriptor of a file without a name.
            target: path of the new link.

        Raises:
            FileExistsError: the path of the new link exists.
        """
        try:
            if isinstance(source, int):
                # With a descriptor given, Python calls linkat(2), which follows the link to a nameless file in /proc.
                os.link(f"/proc/self/fd/{source}", target, src_dir_fd=source, follow_symlinks=True)
            else:
                os.link(source, target)
        except OSError as error:
            if error.errno not in {*_REFUSED, errno.EMLINK, errno.EXDEV}:
                raise
            self.note("the file system does not support hard links; new files are created with O_EXCL instead", error)
            return False
        return True


def _type_of(device: int) -> str:
    """Return the type of a mounted file system, such as "ext4", or "" if it is unknown. See proc_pid_mountinfo(5)."""
    number = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
        for mount in mounts:
            described, _, kind = mount.partition(" - ")
            if described.split(" ")[2] == number:
                return kind.split(" ")[0]
    return ""


def no_direct_io(path: str, error: OSError) -> RequestError:
    """Return the error for a file that cannot be read or written past the page cache, although the request insists on it."""
    return RequestError(
        "DirectIoUnsupported",
        f"the file system does not support direct I/O: {error.strerror}",
        where=path,
        fix="omit --io direct (spec.execution.io: Direct), or choose another file system",
    )


def write_all(file: int, content: bytes | memoryview) -> None:
    """Write all bytes, with several system calls if necessary.

    Raises:
        OSError: not all bytes can be written.
    """
    view = memoryview(content)
    while view:
        n = os.write(file, view)
        if n == 0:
            raise no_bytes_accepted()
        view = view[n:]


def no_bytes_accepted() -> OSError:
    """Return the error for a write that writes nothing, and would be repeated forever."""
    return OSError(errno.EIO, "the file system accepted no bytes")
