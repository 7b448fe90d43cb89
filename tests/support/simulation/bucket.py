"""A simulated prefix in S3."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from reshard.errors import DataError, LockedError, MissingInputError, StorageError
from reshard.storage.protocol import PROBE, WriteCost
from simulation.store import SimulatedStore, SimulatedWriter
from simulation.world import File

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from reshard.spec.storage_options import Link
    from reshard.storage.protocol import Stat


class SimulatedBucket(SimulatedStore):
    """A prefix in S3: requests with conditions, multipart uploads, no renames. Answers can be lost, and requests repeated.

    As in AWS, an object can be deleted on the condition that it is unchanged.
    """

    remote = True
    renames = False
    _server = True

    def write_cost(self, size: int, memory: int) -> WriteCost:
        del size, memory
        return WriteCost(memory=8 << 20)

    def _version(self, content: bytes) -> str:
        return hashlib.md5(content, usedforsecurity=False).hexdigest()

    def create(
        self, path: str, *, temporary: str, mode: int | None, size: int | None = None, memory: int = 0, copies: bool = False
    ) -> SimulatedWriter:
        del temporary, mode, size, memory, copies
        uploads: list[int] = []

        def begin(_: bytes) -> None:
            self.world.serial += 1
            uploads.append(self.world.serial)
            self._write(f"begin upload {path}", lambda: self.world.uploads.update({uploads[0]: (path, self.world.now)}))

        def complete(content: bytes) -> None:
            if not uploads:
                self.write(path, content, mode=None)
            elif not self._write(f"complete upload {path}", lambda: self._complete(uploads, content), fenced=True):
                raise StorageError("NoSuchUpload", "the upload was aborted", where=path, fix="retry")

        return SimulatedWriter(begin, complete, lambda: [self._abort(upload) for upload in uploads], None)

    def _complete(self, uploads: list[int], content: bytes) -> bool:
        """Complete an upload. If it was completed by a request whose answer was lost, this succeeds again, as in `S3Writer`."""
        found = self.world.uploads.pop(uploads[0], None)
        if found is not None:
            self._put(found[0], content)
            uploads.append(uploads[0])
        return len(uploads) > 1

    def _abort(self, upload: int) -> None:
        if upload in self.world.uploads:
            self._write("abort upload", lambda: self.world.uploads.pop(upload, None) and None)

    def _put_if(self, path: str, content: bytes, holds: Callable[[File | None], bool]) -> bool:
        """Write an object under a condition, as `S3Store`: an equal object counts as success."""

        def act() -> bool:
            if not holds(self.world.files.get(path)):
                return False
            self._put(path, content)
            return True

        if self._write(f"conditional put {path}", act, fenced=True):
            return True
        try:
            return self.read(path, len(content)) == content
        except (MissingInputError, DataError):
            return False

    def write_new(self, path: str, content: bytes, *, mode: int | None) -> bool:
        del mode
        return self._put_if(path, content, lambda found: found is None)

    def swap(self, path: str, content: bytes, version: str, *, mode: int | None) -> bool:
        del mode
        return self._put_if(path, content, lambda found: found is not None and found.version == version)

    def move(self, path: str, to: str, *, make_folder: bool = True, seen: Stat | None = None) -> None:
        del make_folder

        def copy() -> bool | None:
            if (found := self.world.files.get(path)) is None or not self._is_current(path, seen):
                return None if found is None else False
            self._put(to, found.content)
            return True

        copied = self._write(f"copy {path} to {to}", copy, fenced=seen is not None)
        if copied is None:
            raise MissingInputError("NotFound", "no such object", where=path, fix="check the path")
        self._delete_seen(path, seen, unchanged=bool(copied))

    def _is_current(self, path: str, seen: Stat | None) -> bool:
        """Return whether a condition of a request holds."""
        return seen is None or self.world.files[path].version == seen.version

    def _delete_seen(self, path: str, seen: Stat | None, *, unchanged: bool = True) -> None:
        """Delete an object, if the server can do that on a condition and the object is unchanged."""

        def act() -> bool:
            if path in self.world.files and not self._is_current(path, seen):
                return False
            self.world.files.pop(path, None)
            return True

        if not unchanged or not self._write(f"delete {path}", act, fenced=seen is not None):
            raise LockedError("LockLost", "another run or program has replaced this object", where=path, fix="wait")

    def delete_files(
        self, paths: Collection[str], *, seen: Mapping[str, Stat] | None = None, prune: bool = False, through: str = ""
    ) -> None:
        del prune, through
        for path in paths:
            if seen is None:
                self.delete(path)
            elif path in seen:
                self._delete_seen(path, seen[path])

    def delete(self, path: str) -> None:
        below = sorted(each for each in self.world.files if each.startswith(f"{path}/"))
        for each in [path, *below]:
            if each in self.world.files or not below:
                self._write(f"delete {each}", lambda each=each: self.world.files.pop(each, None) and None)

    def touch(self, path: str) -> None:
        if (file := self.world.files.get(path)) is not None:
            self.world.files[path] = File(file.content, file.version, self.world.now)

    def link(self, path: str, to: str, how: Link, *, temporary: str, mode: int | None) -> SimulatedWriter:
        raise NotImplementedError

    def abort_stale_uploads(self, paths: Iterable[str], *, silent: float) -> None:
        wanted = {*paths} - {PROBE}
        for upload, (path, begun) in list(self.world.uploads.items()):
            if path in wanted and self.world.now - begun >= silent:
                self._abort(upload)
