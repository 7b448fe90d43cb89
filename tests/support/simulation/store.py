"""The common parts of simulated stores. Each process has a store of one world, and each request is a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memory_store import MemoryReader

from reshard.errors import DataError, MissingInputError, StorageError
from reshard.storage.protocol import Stat, WriteCost
from reshard.storage.traffic import current_meter
from simulation.world import File

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reshard.spec.storage_options import Link
    from reshard.storage.protocol import Store
    from simulation.world import World


def _folder(name: str) -> Stat:
    return Stat(name, is_folder=True, size=0, version="")


def _file(name: str, file: File) -> Stat:
    return Stat(name, is_folder=False, size=len(file.content), version=file.version, modified=file.modified)


class SimulatedWriter:
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


class SimulatedStore:
    """A store without the operations in which a folder and S3 differ."""

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

    def names(self, path: str) -> list[str]:
        return [found.name for found in self.list(path)]

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
