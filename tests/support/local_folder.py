"""A folder of this machine as the readers of formats see it, which counts what is read."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from reshard.checkpoint.dtypes import DTYPES
from reshard.errors import DataError, MissingInputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from reshard.model import Checkpoint, TensorMeta


class LocalReader:
    """A file read by ranges."""

    def __init__(self, folder: LocalFolder, name: str, foreseen: Iterable[tuple[int, int]]) -> None:
        self.name, self._folder, self._file = name, folder, (folder.path / name).open("rb")
        self._foreseen = list(foreseen)
        self.size = (folder.path / name).stat().st_size

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= self.size, (offset, length, self.size)
        self._folder.reads += 1
        self._folder.unforeseen += not any(a <= offset and offset + length <= a + n for a, n in self._foreseen)
        self._folder.nbytes += length
        self._file.seek(offset)
        return self._file.read(length)

    def close(self) -> None:
        self._file.close()


class LocalFolder:
    """The files of a folder.

    Attributes:
        path: the folder.
        only: names of files; None: all files of the folder.
        reads: number of reads so far.
        unforeseen: number of those outside of the ranges that were given when a file was opened.
        nbytes: number of bytes read so far.
    """

    def __init__(self, path: Path, only: Sequence[str] | None = None) -> None:
        self.path, self.url, self._only = path, path.name, only
        self.reads = self.unforeseen = self.nbytes = 0

    @property
    def names(self) -> Sequence[str]:
        return sorted(each.name for each in self.path.iterdir() if each.is_file()) if self._only is None else self._only

    def read(self, name: str, most: int) -> bytes:
        if not (self.path / name).is_file():
            raise MissingInputError("FileMissing", "no such file", where=name, fix="restore it")
        content = (self.path / name).read_bytes()
        if len(content) > most:
            raise DataError("FileTooLarge", f"more than {most} bytes", where=name, fix="restore it")
        return content

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        return {name: (self.path / name).stat().st_size for name in names if (self.path / name).is_file()}

    @contextmanager
    def open(self, name: str, reads: Iterable[tuple[int, int]] = ()) -> Iterator[LocalReader]:
        if not (self.path / name).is_file():
            raise MissingInputError("FileMissing", "no such file", where=name, fix="restore it")
        reader = LocalReader(self, name, reads)
        try:
            yield reader
        finally:
            reader.close()


def content_of(folder: Path, found: Checkpoint, tensor: TensorMeta) -> bytes:
    """The whole tensor, row-major, from all copies of all its shards."""
    itemsize = DTYPES[tensor.dtype].itemsize
    whole = np.zeros(tensor.shape, f"V{itemsize}")
    for tile in range(len(tensor.shards.tiling)):
        box = tensor.shards.tiling.box(tile)
        copies = set()
        for place in tensor.shards.places(tile):
            assert place.length == box.size * itemsize
            content = (folder / found.files[place.file]).read_bytes()
            copies.add(content[place.offset : place.offset + place.length])
        (content,) = copies
        whole[box.slices()] = np.frombuffer(content, whole.dtype).reshape(box.shape)
    return whole.tobytes()
