"""Run a fuzz target over a corpus: once, or with atheris if it is installed and options are given."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from reshard.errors import DataError, MissingInputError, ReshardError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

DATA = Path(__file__).parents[1] / "unit" / "data" / "torch"


class Reader:
    """Bytes by range, never outside."""

    name = "fuzz.pt"

    def __init__(self, content: bytes) -> None:
        self._content = content

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


def run(read: Callable[[bytes], object], corpus: Iterable[Path | bytes]) -> None:
    """Call a parser with each file or content of the corpus, with what atheris makes of them, or with one file."""

    def target(content: bytes) -> None:
        with contextlib.suppress(ReshardError):
            read(content)

    if len(sys.argv) == 2 and Path(sys.argv[1]).is_file():
        target(Path(sys.argv[1]).read_bytes())
        return
    contents = [each if isinstance(each, bytes) else each.read_bytes() for each in corpus]
    if len(sys.argv) == 1:
        for content in contents:
            target(content)
        print(f"{len(contents)} files")  # noqa: T201 - a program that prints its result
        return
    atheris = import_module("atheris")
    with tempfile.TemporaryDirectory() as folder:
        for number, content in enumerate(contents):
            Path(folder, str(number)).write_bytes(content)
        atheris.instrument_all()
        atheris.Setup([*sys.argv, folder], target)
        atheris.Fuzz()
