"""Simulated stores: one world of files, seen by each process through a store with the semantics of a folder or of S3."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from memory_store import MemoryReader

from reshard.errors import DataError, LockedError, MissingInputError, StorageError
from reshard.storage.protocol import PROBE, Stat, WriteCost
from reshard.storage.traffic import current_meter

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from reshard.spec.storage_options import Link
    from reshard.storage.protocol import Store
    from simulation.processes import Process, Scheduler


@dataclass(frozen=True)
class File:
    """One version of a file."""

    content: bytes
    version: str
    modified: float


@dataclass
class World:
    """The content of a store, and its clock.

    Attributes:
        files: files by path.
        folders: folders, in a file system.
        uploads: unfinished uploads by number, as path and content.
        now: clock of the store.
        scheduler: scheduler of the processes. None: each call takes effect at once, and the clock is that of the machine.
    """

    files: dict[str, File] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    uploads: dict[int, tuple[str, float]] = field(default_factory=dict)
    clock: float = 1_000_000.0
    scheduler: Scheduler | None = None
    serial: int = 0

    @property
    def now(self) -> float:
        return self.clock if self.scheduler is not None else time.time()

    @property
    def state(self) -> object:
        """What distinguishes this state from others."""
        return frozenset(self.files.items()), frozenset(self.uploads.items()), frozenset(self.folders), self.clock

    def step(self, what: str, *, writes: bool = False, server: bool = False, fenced: bool = True) -> str:
        return self.scheduler.step(what, writes=writes, server=server, fenced=fenced) if self.scheduler is not None else ""

    def advance(self, seconds: float, beating: Sequence[Process]) -> None:
        """Let time pass, after which these processes have refreshed their locks."""
        self.clock += seconds
        for path in [path for process in beating for path in process.beats]:
            if (file := self.files.get(path)) is not None:
                self.serial += 1
                self.files[path] = File(file.content, f"{file.version}+{self.serial}", self.clock)

    def observe(self, *what: object) -> None:
        if self.scheduler is not None:
            self.scheduler.observe(*what)


def _folder(name: str) -> Stat:
    return Stat(name, is_folder=True, size=0, version="")


def _file(name: str, file: File) -> Stat:
    return Stat(name, is_folder=False, size=len(file.content), version=file.version, modified=file.modified)


class _Writer:
    """A new file whose content is in memory."""

    any_order = False

    def __init__(
        self, keep: Callable[[bytes], None], publish: Callable[[bytes], None], abort: Callable[[], object], name: str | None
    ) -> None:
        self._content, self._keep, self._publish, self._abort, self._name = bytearray(), keep, publish, abort, name
        self._open = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._content += data

    def room(self, nbytes: int) -> None:
        del nbytes

    def write_later(self, data: memoryview) -> None:
        self.write(data)

    def cut(self) -> None:
        pass

    def flush(self) -> str | None:
        if self._open:
            self._open = False
            self._keep(bytes(self._content))
        return self._name

    def finish(self) -> None:
        if self._name is not None:
            self.flush()
        self._publish(bytes(self._content))

    def abort(self) -> None:
        self._abort()


class _Simulated:
    """What both kinds of stores have in common. Each request is a step."""

    remote = False
    renames = True
    notes = ()
    part_limits = None
    _server = False

    def __init__(self, world: World, url: str) -> None:
        self.world, self.url, self._meter = world, url, current_meter()

    def copies_from(self, other: Store) -> bool:
        del other
        return False

    def around(self) -> list[str]:
        parts = self.url.split("/")
        return ["/".join(parts[:n]) for n in range(len(parts), 1, -1)]

    def _write(self, what: str, act: Callable[[], object], *, fenced: bool = False) -> object:
        """Change something in one step. A server may answer that it has failed, or carry it out twice."""
        fault = self.world.step(what, writes=True, server=self._server, fenced=fenced)
        result = act()
        if fault == "lost":
            self.world.observe(what, "lost")
            raise StorageError("Unreachable", "the answer was lost", where=what, fix="retry")
        if fault == "twice":
            self.world.step(f"repeated {what}")
            result = act()
        self.world.observe(what, result)
        return result

    def _read(self, what: str) -> None:
        self.world.step(what)

    def _put(self, path: str, content: bytes) -> None:
        self.world.serial += 1
        self.world.files[path] = File(content, self._version(content), self.world.now)

    def _version(self, content: bytes) -> str:
        return f"{len(content)}-{self.world.serial}"

    def list(self, path: str) -> list[Stat]:
        self._read(f"list {path}")
        found = self._listed(path)
        self.world.observe("list", path, tuple(found))
        return found

    def _listed(self, path: str) -> list[Stat]:
        prefix = f"{path}/" if path else ""
        names: dict[str, Stat] = {}
        for each in self.world.folders:
            if each.startswith(prefix) and each != path:
                name = each[len(prefix) :].partition("/")[0]
                names[name] = _folder(name)
        for each, file in self.world.files.items():
            if each.startswith(prefix):
                name, slash, _ = each[len(prefix) :].partition("/")
                names[name] = _folder(name) if slash else _file(name, file)
        return [names[name] for name in sorted(names)]

    def stat(self, path: str) -> Stat | None:
        self._read(f"stat {path}")
        parent, _, name = path.rpartition("/")
        found = next((each for each in self._listed(parent) if each.name == name), None)
        self.world.observe("stat", path, found)
        return found

    def list_folders(self, paths: Sequence[str]) -> Sequence[Sequence[Stat]]:
        return [self.list(path) for path in paths]

    def stats(self, paths: Sequence[str]) -> dict[str, Stat]:
        found = ((path, self.stat(path)) for path in paths)
        return {path: stat for path, stat in found if stat is not None and not stat.is_folder}

    def open(self, path: str) -> MemoryReader:
        self._read(f"open {path}")
        file = self.world.files.get(path)
        self.world.observe("open", path, file)
        if file is None:
            raise MissingInputError("NotFound", "no such file", where=path, fix="correct the path")
        return MemoryReader(f"{self.url}/{path}", file.content, file.version)

    def read(self, path: str, limit: int) -> bytes:
        content = self.open(path).content
        if len(content) > limit:
            raise DataError("FileTooLarge", f"the file has {len(content)} bytes", where=path, fix="check the file")
        return content

    def write_cost(self, size: int, memory: int) -> WriteCost:
        del size, memory
        return WriteCost()

    def can_link(self, folder: str, how: Link) -> bool:
        del folder, how
        return False

    def write(self, path: str, content: bytes, *, mode: int | None) -> None:
        del mode
        self._write(f"write {path}", lambda: self._put(path, content))

    def age(self, path: str) -> float | None:
        self._read(f"age of {path}")
        file = self.world.files.get(path)
        age = None if file is None else self.world.now - file.modified
        self.world.observe("age", path, age)
        return age

    def check_writable(self) -> None:
        pass

    def free_bytes(self) -> None:
        return None


class SimulatedFolder(_Simulated):
    """A folder in a file system: atomic renames, exclusive creation, temporary names. Folders are deleted file by file."""

    def _put(self, path: str, content: bytes) -> None:
        self._make_folders(path)
        super()._put(path, content)

    def _make_folders(self, path: str) -> None:
        while path := path.rpartition("/")[0]:
            self.world.folders.add(path)

    def create(
        self, path: str, *, temporary: str, mode: int | None, size: int | None = None, memory: int = 0, copies: bool = False
    ) -> _Writer:
        del mode, size, memory, copies

        def begin() -> None:
            self._make_folders(path)
            self._put(temporary, b"")

        self._write(f"create {temporary}", begin)
        keep = partial(self._fill, temporary)
        return _Writer(keep, lambda _: self.move(temporary, path), lambda: self._forget(temporary), temporary)

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

        def act() -> bool:
            if path in self.world.files:
                return False
            self._put(path, content)
            return True

        return bool(self._write(f"write new {path}", act))

    def swap(self, path: str, content: bytes, version: str, *, mode: int | None) -> bool:
        found = self.world.files.get(path)
        grave: list[File] = []

        def bury() -> bool:
            there = self.world.files.get(path)
            if there is None or there.version != version:
                return False
            grave.append(self.world.files.pop(path))
            return True

        del found
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

    def link(self, path: str, to: str, how: Link, *, temporary: str, mode: int | None) -> _Writer:
        del mode

        def act() -> bool:
            if (original := self.world.files.get(path)) is None or temporary in self.world.files:
                return False
            self._put(temporary, original.content)
            if how == "HardLink":
                self.world.files[temporary] = original
            return True

        if not self._write(f"link {path} to {temporary}", act):
            raise StorageError("WriteFailed", "no such file or directory", where=path, fix="retry")
        return _Writer(lambda _: None, lambda _: self.move(temporary, to), lambda: self._forget(temporary), temporary)

    def abort_stale_uploads(self, paths: Iterable[str], *, silent: float) -> None:
        pass


class SimulatedBucket(_Simulated):
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
    ) -> _Writer:
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

        return _Writer(begin, complete, lambda: [self._abort(upload) for upload in uploads], None)

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

    def link(self, path: str, to: str, how: Link, *, temporary: str, mode: int | None) -> _Writer:
        raise NotImplementedError

    def abort_stale_uploads(self, paths: Iterable[str], *, silent: float) -> None:
        wanted = {*paths} - {PROBE}
        for upload, (path, begun) in list(self.world.uploads.items()):
            if path in wanted and self.world.now - begun >= silent:
                self._abort(upload)
