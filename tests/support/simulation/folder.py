"""A simulated folder in a file system."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from reshard.errors import StorageError
from simulation.store import SimulatedStore, SimulatedWriter
from simulation.world import File

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from reshard.spec.storage_options import Link
    from reshard.storage.protocol import Stat


class SimulatedFolder(SimulatedStore):
    """A folder in a file system: atomic renames, exclusive creation, temporary names. Folders are deleted file by file."""

    def _put(self, path: str, content: bytes) -> None:
        self._make_folders(path)
        super()._put(path, content)

    def _put_new(self, path: str, content: bytes) -> bool:
        """Write a file, unless one exists."""
        if path in self.world.files:
            return False
        self._put(path, content)
        return True

    def _make_folders(self, path: str) -> None:
        while path := path.rpartition("/")[0]:
            self.world.folders.add(path)

    def create(
        self, path: str, *, temporary: str, mode: int | None, size: int | None = None, memory: int = 0, copies: bool = False
    ) -> SimulatedWriter:
        del mode, size, memory, copies

        def begin() -> None:
            self._make_folders(path)
            self._put(temporary, b"")

        self._write(f"create {temporary}", begin)
        keep = partial(self._fill, temporary)
        return SimulatedWriter(keep, lambda _: self.move(temporary, path), lambda: self._forget(temporary), temporary)

    def _fill(self, path: str, content: bytes) -> None:
        """Write to an open file, which may have been deleted. This changes all of its links."""
        if (before := self.world.files.get(path)) is None:
            return
        self._put(path, content)
        for other in [other for other, file in self.world.files.items() if file is before]:
            self.world.files[other] = self.world.files[path]

    def _forget(self, path: str) -> None:
        if path in self.world.files:
            self.delete(path)

    def write_new(self, path: str, content: bytes, *, mode: int | None) -> bool:
        del mode
        return bool(self._write(f"write new {path}", lambda: self._put_new(path, content)))

    def swap(self, path: str, content: bytes, version: str, *, mode: int | None) -> bool:
        def bury() -> bool:
            there = self.world.files.get(path)
            if there is None or there.version != version:
                return False
            del self.world.files[path]
            return True

        return bool(self._write(f"rename {path} away", bury)) and self.write_new(path, content, mode=mode)

    def move(self, path: str, to: str, *, make_folder: bool = True, seen: Stat | None = None) -> None:
        del seen

        def act() -> bool:
            if path not in self.world.files or not (make_folder or to.rpartition("/")[0] in self.world.folders):
                return False
            self._make_folders(to)
            if self.world.files.get(to) is self.world.files[path]:  # rename(2) does nothing with two links to one file
                return True
            self.world.files[to] = self.world.files.pop(path)
            return True

        if not self._write(f"rename {path} to {to}", act):
            raise StorageError(
                "WriteFailed", "no such file or directory", where=path, fix="check the storage for errors, then retry"
            )

    def delete(self, path: str) -> None:
        below = sorted(each for each in self.world.files if each.startswith(f"{path}/"))
        for each in below:
            self._write(f"delete {each}", lambda each=each: self.world.files.pop(each, None) and None)
        if below or path in self.world.folders:
            self._write(f"delete folder {path}", lambda: self._delete_folder(path))
        else:
            self._write(f"delete {path}", lambda: self.world.files.pop(path, None) and None)

    def _delete_folder(self, path: str) -> None:
        """Delete a folder with what was created in it meanwhile, as rmtree does when it finds that the folder is not empty."""
        for each in [each for each in self.world.files if each.startswith(f"{path}/")]:
            del self.world.files[each]
        self.world.folders = {each for each in self.world.folders if each != path and not each.startswith(f"{path}/")}

    def delete_files(
        self, paths: Collection[str], *, seen: Mapping[str, Stat] | None = None, prune: bool = False, through: str = ""
    ) -> None:
        del seen
        for path in paths:
            if through:
                self._write(f"delete {path} through {through}", lambda path=path: self._delete_through(through, path))
            else:
                self.delete(path)
        if prune:
            self.world.folders -= {folder for path in paths if not self._listed(folder := path.rpartition("/")[0])}

    def _delete_through(self, folder: str, path: str) -> None:
        if folder not in self.world.folders:
            raise StorageError("WriteFailed", "no such file or directory", where=folder, fix="retry")
        self.world.files.pop(path, None)

    def touch(self, path: str) -> None:
        if (file := self.world.files.get(path)) is not None:
            self.world.files[path] = File(file.content, f"{file.version}+", self.world.now)

    def can_link(self, folder: str, how: Link) -> bool:
        del folder, how
        return True

    def link(self, path: str, to: str, how: Link, *, temporary: str, mode: int | None) -> SimulatedWriter:
        del mode

        def link() -> bool:
            if (original := self.world.files.get(path)) is None or not self._put_new(temporary, b""):
                return False
            self.world.files[temporary] = original
            return True

        def clone() -> bool:
            if (original := self.world.files.get(path)) is not None:
                self._fill(temporary, original.content)
            return original is not None

        created = how == "HardLink" or self._write(f"create {temporary}", lambda: self._put_new(temporary, b""))
        if not (created and self._write(f"{how} {path} as {temporary}", link if how == "HardLink" else clone)):
            raise StorageError("WriteFailed", "no such file or directory", where=path, fix="retry")
        return SimulatedWriter(lambda _: None, lambda _: self.move(temporary, to), lambda: self._forget(temporary), temporary)

    def abort_stale_uploads(self, paths: Iterable[str], *, silent: float) -> None:
        pass
