"""A store in memory, for tests that make thousands of checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from reshard.errors import MissingInputError, StorageError
from reshard.storage.protocol import Stat

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reshard.storage.traffic import Meter


@dataclass
class MemoryReader:
    name: str
    content: bytes
    version: str = "1"
    changed: int = 0
    reads: list[tuple[int, int]] = field(default_factory=list)
    announced: list[tuple[int, int]] = field(default_factory=list)
    meters: list[Meter] = field(default_factory=list)

    @property
    def size(self) -> int:
        return len(self.content)

    @property
    def waits(self) -> bool:
        return False

    def read(self, offset: int, length: int) -> bytes:
        self.reads.append((offset, length))
        for meter in self.meters:
            meter.add(length, 1)
        if offset < 0 or length < 0 or offset + length > len(self.content):
            raise StorageError("ShortRead", f"{length} bytes at {offset} are not there", where=self.name)
        return self.content[offset : offset + length]

    def read_into(self, view: memoryview, offset: int) -> None:
        view[:] = self.read(offset, len(view))

    def read_runs(self, view: memoryview, length: int, offsets: Sequence[int]) -> None:
        for i, offset in enumerate(offsets):
            view[i * length : (i + 1) * length] = self.read(offset, length)

    def will_read(self, offset: int, length: int) -> None:
        self.announced.append((offset, length))

    def count_in(self, meter: Meter) -> None:
        self.meters.append(meter)

    def close(self) -> None:
        pass


class MemoryWriter:
    any_order = False

    def __init__(self) -> None:
        self.content = bytearray()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.content += data

    def room(self, nbytes: int) -> None:
        del nbytes

    def write_later(self, data: memoryview) -> Callable[[], None]:
        return partial(self.write, data)

    def finish(self) -> None:
        pass

    def abort(self) -> None:
        pass


class MemorySource:
    """The operations of a store that reading a source needs."""

    remote = False

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.readers: list[MemoryReader] = []

    @property
    def url(self) -> str:
        return "memory"

    def list(self, path: str) -> list[Stat]:
        prefix = f"{path}/" if path else ""
        names: dict[str, Stat] = {}
        for each, content in self.files.items():
            if each.startswith(prefix):
                name, slash, _ = each[len(prefix) :].partition("/")
                names[name] = Stat(name, bool(slash), 0 if slash else len(content), "1")
        return [names[name] for name in sorted(names)]

    def stat(self, path: str) -> Stat | None:
        content = self.files.get(path)
        return None if content is None else Stat(path.rpartition("/")[2], is_folder=False, size=len(content), version="1")

    def names(self, path: str) -> list[str]:
        return [found.name for found in self.list(path)]

    def list_folders(self, paths: Sequence[str]) -> Sequence[Sequence[Stat]]:
        return [self.list(path) for path in paths]

    def stats(self, paths: Sequence[str]) -> dict[str, Stat]:
        return {path: found for path in paths if (found := self.stat(path)) is not None}

    def open(self, path: str) -> MemoryReader:
        if path not in self.files:
            raise MissingInputError("FileMissing", "no such file", where=path)
        reader = MemoryReader(path, self.files[path])
        self.readers.append(reader)
        return reader
