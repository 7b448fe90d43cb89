"""A folder on a file system as a storage."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat as stat_bits
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from reshard.errors import DataError, MissingInputError, OutputError
from reshard.parallel import parallel
from reshard.storage.local import exclusive, links
from reshard.storage.local.failures import denied, failures
from reshard.storage.local.filesystem import FileSystem
from reshard.storage.local.reader import LocalReader, changed_of, refuse_outside, version_of
from reshard.storage.local.writer import LocalNewFile, LocalWriter
from reshard.storage.protocol import Stat, WriteCost
from reshard.storage.traffic import current_meter

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from reshard.spec.storage_options import Io, Link
    from reshard.storage.protocol import Store

# Linux renames a deleted file that is still open to such a name, and deletes it when it is closed (fs/nfs/unlink.c).
_OPEN_ON_NFS = ".nfs"


class LocalStore:
    """The files below one folder.

    Args:
        root: path of the folder.
        io: see `StorageOptions.io`.
        inside: see `StorageOptions.inside`.
    """

    def __init__(self, root: str | os.PathLike[str], io: Io = "Auto", inside: str | None = None) -> None:
        self.root = os.path.abspath(root)
        self._inside = os.path.realpath(inside) if inside is not None else None
        self.url = self.root
        self.remote = False
        self.renames = True
        self._system = FileSystem(io)
        self._meter = current_meter()

    @property
    def notes(self) -> Sequence[str]:
        """See `Store.notes`."""
        return self._system.notes

    def copies_from(self, other: Store) -> bool:
        """See `Store.copies_from`."""
        del other
        return False

    @property
    def part_limits(self) -> None:
        """See `Store.part_limits`."""

    def around(self) -> list[tuple[int, int] | str]:
        """See `Store.around`. An identity is a device and an inode, or the path of a folder that does not exist."""
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

    def _at(self, path: str, *, follow: bool = False) -> str:
        """Return the path of a file or folder, and refuse one that links lead out of the folder `inside`.

        Args:
            path: path in the store.
            follow: whether the last name may be a link that the caller follows. Otherwise, the caller creates, renames or deletes
                this name itself, or only reads its attributes.
        """
        if ".." in path.split("/") or path.startswith("/"):  # whatever path a malicious document contains
            raise DataError(
                "UnsafePath",
                f"the path {path!r} leads out of the folder",
                where=self.root,
                fix="restore the file that contains this path",
            )
        full = os.path.join(self.root, path) if path else self.root
        if self._inside is not None:
            refuse_outside(os.path.realpath(full if follow or not path else os.path.dirname(full)), self._inside, full)
        return full

    def list(self, path: str) -> list[Stat]:
        """See `Store.list`."""
        folder = self._at(path, follow=True)
        try:
            with failures(folder), os.scandir(folder) as entries:
                return sorted((_stat(e.name, e.stat()) for e in entries if _exists(e)), key=lambda s: s.name)
        except MissingInputError:
            return []

    def names(self, path: str) -> Sequence[str]:
        """See `Store.names`."""
        folder = self._at(path, follow=True)
        try:
            with failures(folder):
                return os.listdir(folder)
        except MissingInputError:
            return ()

    def stat(self, path: str) -> Stat | None:
        """See `Store.stat`."""
        full = self._at(path)
        try:
            with failures(full):
                return _stat(os.path.basename(full), os.stat(full))
        except MissingInputError:
            return None

    def list_folders(self, paths: Sequence[str]) -> Sequence[Sequence[Stat]]:
        """See `Store.list_folders`. Lists folders concurrently, because NFS takes a round trip for each of them."""
        return list(parallel(self.list, paths))

    def stats(self, paths: Sequence[str]) -> dict[str, Stat]:
        """See `Store.stats`. Reads them concurrently, because NFS takes a round trip for each of them."""
        found = zip(paths, parallel(self.stat, paths), strict=True)
        return {path: stat for path, stat in found if stat is not None and not stat.is_folder}

    def open(self, path: str) -> LocalReader:
        """See `Store.open`."""
        return LocalReader(self._at(path), self._meter, self._system.io, self._inside)

    def read(self, path: str, limit: int) -> bytes:
        """See `Store.read`."""
        with contextlib.closing(self.open(path)) as reader:
            if reader.size > limit:
                raise DataError(
                    "FileTooLarge",
                    f"the file has {reader.size} bytes; at most {limit} are supported for a file of this kind",
                    where=reader.name,
                    fix="check that this is the intended file",
                )
            return reader.read(0, reader.size)

    def create(
        self, path: str, *, temporary: str, mode: int | None, size: int | None = None, memory: int = 0, copies: bool = False
    ) -> LocalWriter:
        """See `Store.create`."""
        del memory, copies
        return LocalWriter(self._at(path), self._at(temporary), temporary, mode, self._system, size)

    def write_cost(self, size: int, memory: int) -> WriteCost:
        """See `Store.write_cost`. The page cache of the system buffers writes."""
        del size, memory
        return WriteCost()

    def write(self, path: str, content: bytes, *, mode: int | None) -> None:
        """See `Store.write`."""
        writer = self.create(path, temporary=f"{path}.{os.urandom(6).hex()}.tmp", mode=mode)
        try:
            writer.write(content)
            writer.finish()
        finally:
            writer.abort()

    def write_new(self, path: str, content: bytes, *, mode: int | None) -> bool:
        """See `Store.write_new`."""
        full = self._at(path)
        with failures(full, writing=True):
            self._system.make_folder(os.path.dirname(full), mode)
            return exclusive.create_exclusively(full, content, mode, self._system)

    def swap(self, path: str, content: bytes, version: str, *, mode: int | None) -> bool:
        """See `Store.swap`."""
        full = self._at(path, follow=True)
        with failures(full, writing=True):
            return exclusive.replace_exclusively(full, content, version, mode, self._system)

    def move(self, path: str, to: str, *, make_folder: bool = True, seen: Stat | None = None) -> None:
        """See `Store.move`. A new folder gets the permission bits of the file's previous folder. Ignores `seen`."""
        del seen
        source, target = self._at(path), self._at(to)
        with failures(target, writing=True):
            if not os.path.isdir(folder := os.path.dirname(target)) and make_folder:
                self._system.make_folder(folder, stat_bits.S_IMODE(os.stat(os.path.dirname(source)).st_mode) & 0o777)
            os.rename(source, target)
            self._system.sync_folder(folder)

    def can_link(self, folder: str, how: Link) -> bool:
        """See `Store.can_link`."""
        full = self._at(folder, follow=True)
        with failures(full, writing=True):
            return links.can_link(full, how, self._system)

    def link(self, path: str, to: str, how: Link, *, temporary: str, mode: int | None) -> LocalNewFile:
        """See `Store.link`."""
        target, new = self._at(to), self._at(temporary)
        with failures(target, writing=True):
            for folder in (os.path.dirname(target), os.path.dirname(new)):
                self._system.make_folder(folder, mode)
            links.create_link(self._at(path, follow=True), new, how, mode, self._system)
        self._system.note(links.NOTES[how])
        return LocalNewFile(target, new, temporary, self._system)

    def delete(self, path: str) -> None:
        """See `Store.delete`."""
        full = self._at(path)
        with failures(full, writing=True):
            if os.path.isdir(full) and not os.path.islink(full):
                _delete_tree(full)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(full)

    def delete_files(
        self, paths: Collection[str], *, seen: Mapping[str, Stat] | None = None, prune: bool = False, through: str = ""
    ) -> None:
        """See `Store.delete_files`. Ignores `seen`, because `through` prevents what it would prevent."""
        del seen
        for _ in parallel(partial(self._delete_through, through) if through else self.delete, paths):
            pass
        for folder in sorted({path.rpartition("/")[0] for path in paths} - {""}) if prune else ():
            with contextlib.suppress(OSError):  # it is gone, or has other entries
                os.rmdir(self._at(folder))

    def _delete_through(self, folder: str, path: str) -> None:
        full, through = self._at(path), self._at(folder, follow=True)
        aside = f"{through}/{os.urandom(6).hex()}.old"
        with failures(full, writing=True):
            try:
                os.rename(full, aside)
            except FileNotFoundError:
                os.stat(through)  # an error if the folder does not exist
                return
            os.unlink(aside)

    def touch(self, path: str) -> None:
        """See `Store.touch`."""
        full = self._at(path, follow=True)
        with failures(full, writing=True):
            exclusive.refresh(full)

    def age(self, path: str) -> float | None:
        """See `Store.age`."""
        full = self._at(path)
        try:
            with failures(full):
                modified = os.stat(full).st_mtime
        except MissingInputError:
            return None
        with failures(full, writing=True):
            return exclusive.age_seconds(full, modified)

    def abort_stale_uploads(self, paths: Iterable[str], *, silent: float) -> None:
        """See `Store.abort_stale_uploads`. Does nothing, because unfinished files are ordinary files."""

    def check_writable(self) -> None:
        """See `Store.check_writable`."""
        folder = self._nearest()
        refuse_outside(os.path.realpath(folder), self._inside, str(folder))
        if not folder.is_dir():
            raise OutputError(
                "CannotCreate",
                "expected a folder, found a file",
                where=str(folder),
                fix="choose another target",
            )
        if self._system.is_read_only(str(folder)):
            raise OutputError(
                "CannotWrite",
                os.strerror(errno.EROFS),
                where=str(folder),
                fix="mount the file system for writing, or choose another target",
            )
        if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
            raise denied(str(folder), writing=True)

    def _nearest(self) -> Path:
        """Return the folder, or its nearest ancestor that exists."""
        folder = Path(self.root)
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        return folder

    def free_bytes(self) -> int | None:
        """See `Store.free_bytes`."""
        return self._system.free_bytes(str(self._nearest()))


def _exists(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry exists. A dangling link does not."""
    try:
        entry.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return False
        raise
    return True


def _stat(name: str, found: os.stat_result) -> Stat:
    folder = stat_bits.S_ISDIR(found.st_mode)
    return Stat(name, folder, 0 if folder else found.st_size, version_of(found), found.st_mtime, changed_of(found))


def _delete_tree(folder: str) -> None:
    """Delete a folder. On NFS, it remains until the last process on this machine closes the files that were deleted in it."""
    try:
        shutil.rmtree(folder)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EBUSY}:
            raise
        shutil.rmtree(folder, ignore_errors=True)
        left = (name for _, _, names in os.walk(folder) for name in names)
        if not all(name.startswith(_OPEN_ON_NFS) for name in left):
            raise
