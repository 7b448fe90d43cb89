"""Run a fuzz target over a corpus: once, or with atheris if it is installed and options are given."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from reshard.errors import ReshardError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

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


def run(read: Callable[[bytes], object], corpus: Iterable[Path]) -> None:
    """Call a parser with each file of the corpus; or with whatever atheris makes of them."""

    def target(content: bytes) -> None:
        with contextlib.suppress(ReshardError):
            read(content)

    paths = sorted(corpus)
    if len(sys.argv) == 1:
        for path in paths:
            target(path.read_bytes())
        print(f"{len(paths)} files")  # noqa: T201 - a program that prints its result
        return
    atheris = import_module("atheris")
    with tempfile.TemporaryDirectory() as folder:
        for number, path in enumerate(paths):
            Path(folder, str(number)).write_bytes(path.read_bytes())
        atheris.instrument_all()
        atheris.Setup([*sys.argv, folder], target)
        atheris.Fuzz()
