"""Inputs of fuzz targets: bytes and folders in memory."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reshard.errors import DataError, MissingInputError, ReshardError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

DATA = Path(__file__).parents[1] / "unit" / "data" / "torch"


class Reader:
    """Bytes by range, never outside."""

    def __init__(self, content: bytes, name: str = "fuzz.pt") -> None:
        self._content, self.name = content, name

    @property
    def size(self) -> int:
        return len(self._content)

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= self.size, (offset, length)
        return self._content[offset : offset + length]


class Folder:
    """Files in memory, see `reshard.formats.protocol.Folder`."""

    url = "fuzz"

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files
        self.names = sorted(files)

    def read(self, name: str, most: int) -> bytes:
        if len(self._content(name)) > most:
            raise DataError("FileTooLarge", "too large", where=name, fix="")
        return self._content(name)

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        return {name: len(self._files[name]) for name in names if name in self._files}

    @contextlib.contextmanager
    def open(self, name: str, reads: Iterable[tuple[int, int]] = ()) -> Iterator[Reader]:
        content = self._content(name)
        assert all(0 <= offset <= offset + length <= len(content) for offset, length in reads)
        yield Reader(content)

    def _content(self, name: str) -> bytes:
        if name not in self._files:
            raise MissingInputError("FileMissing", "missing", where=name, fix="")
        return self._files[name]


def files_of(path: Path) -> dict[str, bytes]:
    """Return the files of a folder."""
    return {each.name: each.read_bytes() for each in path.iterdir() if each.is_file()}


def json_in(content: bytes, **options: Any) -> Any:
    """Return what another reader of JSON finds. It also refuses text that is not UTF-8 in parts that nothing reads."""
    return json.loads(content.decode(errors="replace").removeprefix("\ufeff"), **options)


def outcome(read: Callable[[], object]) -> object:
    """Return what a reader returns, or the class of its refusal."""
    try:
        return read()
    except ReshardError as error:
        return type(error)
