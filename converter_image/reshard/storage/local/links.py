"""Create files that share the content of another file: clones, which a change separates, and hard links."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from typing import TYPE_CHECKING

from reshard.storage.local.descriptors import open_descriptor
from reshard.storage.local.filesystem import UNSUPPORTED

if TYPE_CHECKING:
    from reshard.spec.storage_options import Link
    from reshard.storage.local.filesystem import FileSystem

_FICLONE = 0x40049409  # linux/fs.h
_REFUSED = {*UNSUPPORTED, errno.EPERM, errno.EACCES, errno.EXDEV}
_NAMES: dict[Link, str] = {"Clone": "clones of files", "HardLink": "hard links"}
_PROBE_BYTES = 4096
NOTES: dict[Link, str] = {
    "Clone": "equal files are clones of one file",
    "HardLink": "equal files are hard links to one file; a program that changes one of them in place changes all of them",
}


def create_link(path: str, link: str, how: Link, mode: int | None, system: FileSystem) -> None:
    """Create a file with the content of another one.

    Raises:
        OSError: the file system cannot do this, or the path of the new file exists.
    """
    if how == "HardLink":
        os.link(path, link)
        return
    new = open_descriptor(link, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else mode)
    try:
        with open(path, "rb") as file:
            fcntl.ioctl(new, _FICLONE, file.fileno())
        system.set_mode(new, mode)
        system.sync_file(new)
    finally:
        os.close(new)


def can_link(folder: str, how: Link, system: FileSystem) -> bool:
    """Return whether files in a folder can be created from others. A note is recorded if they cannot."""
    path = os.path.join(folder, f"probe.{os.urandom(6).hex()}.tmp")
    link = f"{path}.link"
    try:
        with open(path, "xb") as file:
            file.write(bytes(_PROBE_BYTES))
        create_link(path, link, how, None, system)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        system.note(f"the file system does not support {_NAMES[how]}; equal files are written in full", error)
        return False
    finally:
        for each in (path, link):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(each)
    return True
