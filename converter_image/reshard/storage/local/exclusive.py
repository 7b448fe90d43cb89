"""Create and replace small files atomically. If several processes try at the same time, exactly one succeeds."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from reshard.storage.local.descriptors import open_descriptor
from reshard.storage.local.filesystem import write_all
from reshard.storage.local.reader import version_of

if TYPE_CHECKING:
    from reshard.storage.local.filesystem import FileSystem

# Time for which a file that was created with O_EXCL may be empty until its content follows.
_PATIENCE_SECONDS = 2.0
_POLL_SECONDS = 0.01


def create_exclusively(path: str, content: bytes, mode: int | None, system: FileSystem) -> bool:
    """Create a small file unless it exists. Return whether it was created.

    The content is written to a temporary file, which is then linked to its name, so that other processes never see partial
    content. If hard links are not supported, the file is created with O_EXCL and then written. Other processes wait until the
    file has content.
    """
    file, temporary = open_temporary(path, 0o666 if mode is None else mode)
    try:
        system.set_mode(file, mode)
        write_all(file, content)
        system.sync_file(file)
        if _link(file, temporary, path, content, mode, system):
            system.sync_folder(os.path.dirname(path))
            return True
    except (FileExistsError, FileNotFoundError):  # another process was first, or has removed the folder's files
        pass
    finally:
        with contextlib.suppress(OSError):  # content written to it is discarded
            os.close(file)
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
    return False


def _link(file: int, temporary: str | None, path: str, content: bytes, mode: int | None, system: FileSystem) -> bool:
    if temporary is not None:
        return system.link(temporary, path) or _create_with_o_excl(path, content, mode, system)
    with contextlib.suppress(FileNotFoundError):  # /proc is not mounted
        if system.link(file, path):
            return True
    return _create_with_o_excl(path, content, mode, system)


def _create_with_o_excl(path: str, content: bytes, mode: int | None, system: FileSystem) -> bool:
    try:
        file = open_descriptor(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else mode)
    except FileExistsError:
        _await_content(path)
        return False
    try:
        try:
            system.set_mode(file, mode)
            write_all(file, content)
            system.sync_file(file)
        finally:
            os.close(file)
    except BaseException:
        os.unlink(path)
        raise
    return True


def _await_content(path: str) -> None:
    """Wait until the process that created a file has written it. The wait is limited, as the process may have been killed."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            if os.stat(path).st_size:
                return
        except FileNotFoundError:
            return
        time.sleep(_POLL_SECONDS)


def replace_exclusively(path: str, content: bytes, version: str, mode: int | None, system: FileSystem) -> bool:
    """Replace a small file if it still has this version. Return whether it was replaced.

    The file is renamed first. If several processes try to replace it, only one succeeds, and none of them removes a newer file.
    """
    with contextlib.suppress(FileNotFoundError):
        if version_of(os.stat(path)) != version:  # do not disturb a process that is writing its successor
            return False
    grave = f"{path}.{os.urandom(6).hex()}.dead"
    try:
        os.rename(path, grave)
    except FileNotFoundError:
        return False
    try:
        if version_of(os.stat(grave)) != version:
            _put_back(grave, path, mode, system)
            return False
    finally:
        os.unlink(grave)
    return create_exclusively(path, content, mode, system)


def _put_back(grave: str, path: str, mode: int | None, system: FileSystem) -> None:
    with contextlib.suppress(FileExistsError):
        if not system.link(grave, path):
            _await_content(grave)  # its creator may still be writing
            with open(grave, "rb") as file:
                _create_with_o_excl(path, file.read(), mode, system)


def refresh(path: str) -> None:
    """Set the modification time of a small file to now, or rewrite the file if that is not permitted. Ignore a missing file."""
    with contextlib.suppress(FileNotFoundError):
        try:
            os.utime(path)
        except FileNotFoundError:
            raise
        except OSError:
            file = open_descriptor(path, os.O_RDWR)
            try:
                content = os.pread(file, 1, 0)
                os.pwrite(file, content, 0)
                os.fsync(file)
            finally:
                os.close(file)


def age_seconds(path: str, modified: float) -> float:
    """Return the seconds since a modification time, by the clock of the file system (the time of a new file next to it)."""
    file, temporary = open_temporary(path, 0o600)
    try:
        with contextlib.suppress(OSError):  # the file is new, so its time is close enough
            os.utime(file)
        return os.fstat(file).st_mtime - modified
    finally:
        os.close(file)
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def open_temporary(path: str, mode: int) -> tuple[int, str | None]:
    """Open a new file without a name, so that it disappears if the process is killed, or with a name if that is unsupported."""
    try:
        return open_descriptor(os.path.dirname(path), os.O_WRONLY | os.O_TMPFILE, mode), None
    except OSError:
        temporary = f"{path}.{os.urandom(6).hex()}.tmp"
        return open_descriptor(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), temporary
