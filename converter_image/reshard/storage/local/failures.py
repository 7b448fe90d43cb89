"""Convert errors of the operating system to errors with a remedy."""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import stat as stat_bits
from pathlib import Path
from typing import TYPE_CHECKING

from reshard.errors import AccessError, MissingInputError, OutputError, ReshardError, StorageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

_CANNOT_WRITE = {
    errno.ENOSPC: "free or add space, or choose another target",
    errno.EDQUOT: "free space or raise the quota, or choose another target",
    errno.EROFS: "mount the file system for writing, or choose another target",
    errno.EFBIG: "raise the file size limit of the file system or of `ulimit -f`, or choose another target",
}
_UNUSABLE = {errno.ENAMETOOLONG, errno.ELOOP}
_IN_THE_WAY = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR}
_NOT_FOUND = ("NotFound", "no such file or folder", "correct the path")
_CANNOT_READ: dict[int | None, tuple[str, str, str]] = {
    errno.ENOENT: _NOT_FOUND,
    errno.ENOTDIR: _NOT_FOUND,
    errno.EISDIR: ("NotAFile", "expected a file, found a folder", "specify a file"),
}
_TOO_MANY_FILES = {errno.EMFILE, errno.ENFILE}


@contextlib.contextmanager
def failures(path: str, *, writing: bool = False) -> Iterator[None]:
    """Convert OSErrors in the body to errors of this package, with the information that a user needs to fix them."""
    try:
        yield
    except OSError as error:
        raise _translated(error, path, writing=writing) from error


def _translated(error: OSError, path: str, *, writing: bool) -> ReshardError:
    reason = error.strerror or str(error)
    if error.errno in (errno.EACCES, errno.EPERM):
        return denied(path, writing=writing)
    if (wrong := _wrong_path(error.errno, reason, path, writing=writing)) is not None:
        return wrong
    if error.errno in _CANNOT_WRITE:
        return OutputError("CannotWrite", reason, where=path, fix=_CANNOT_WRITE[error.errno])
    kind, fix = "WriteFailed" if writing else "ReadFailed", "check the storage for errors, then retry"
    if error.errno in _TOO_MANY_FILES:
        kind, fix = "TooManyOpenFiles", "raise the limit (ulimit -n), or write fewer ranks at a time (--only-ranks)"
    return StorageError(kind, reason, where=path, fix=fix)


def _wrong_path(number: int | None, reason: str, path: str, *, writing: bool) -> ReshardError | None:
    """Return the error for a path that cannot be used, or None if the path is not the cause."""
    if number in _UNUSABLE:
        fix = "use a shorter path, without links that lead to themselves"
        return UsageError("InvalidPath", reason, where=path, fix=fix)
    if not writing:
        found = _CANNOT_READ.get(number)
        return None if found is None else MissingInputError(found[0], found[1], where=path, fix=found[2])
    if number == errno.ENOENT and (link := _broken_link(path)) is not None:
        return OutputError("CannotCreate", f"the link {link} leads to nothing", where=path, fix="correct or remove the link")
    if number in _IN_THE_WAY:
        return OutputError("CannotCreate", reason, where=path, fix="choose another target")
    return None


def _broken_link(path: str) -> Path | None:
    """Return the link above a path whose target does not exist."""
    found = Path(path)
    return next((each for each in (found, *found.parents) if each.is_symlink() and not each.exists()), None)


def denied(path: str, *, writing: bool) -> AccessError:
    """Return an error that names the file or folder that denies access, its owner and mode, and the current user."""
    culprit = Path(path)
    while not os.path.lexists(culprit) or not _searchable(culprit.parent):
        if culprit == culprit.parent:
            break
        culprit = culprit.parent
    who = f"this process is uid {os.geteuid()}, gid {os.getegid()}, groups {sorted(os.getgroups())}"
    try:
        found = os.stat(culprit)
    except OSError:
        return AccessError(
            "PermissionDenied",
            f"permission denied; {who}",
            where=path,
            fix="run as a user or group that has access, or change the file's mode",
        )
    fix = "run as that user or group (in a pod: runAsUser, runAsGroup, fsGroup, supplementalGroups), or change the file's mode"
    if os.geteuid() in (0, found.st_uid):
        fix = "change the file's mode; if it already allows access, check the mount, its server and SELinux (such as root_squash)"
    action, owner = "writing" if writing else "reading", f"uid {found.st_uid}{_user(found.st_uid)}, gid {found.st_gid}"
    return AccessError(
        "PermissionDenied",
        f"{action} denied: {culprit} is owned by {owner} with mode {stat_bits.S_IMODE(found.st_mode):04o}; {who}",
        where=path,
        fix=fix,
    )


def _searchable(folder: Path) -> bool:
    return os.access(folder, os.X_OK, effective_ids=True)


def _user(uid: int) -> str:
    try:
        return f" ({pwd.getpwuid(uid).pw_name})"
    except KeyError:
        return ""
