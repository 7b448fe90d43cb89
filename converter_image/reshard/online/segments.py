"""The parameters of one file, or of one rank that lie in several files, read into memory."""

from __future__ import annotations

from contextlib import closing
from io import BytesIO
from typing import TYPE_CHECKING
from warnings import warn

from reshard.checkpoint import check_crc, format_of, read_header
from reshard.checkpoint.arrays import array_of
from reshard.errors import DataError, MissingInputError, RequestError
from reshard.source.encrypted import as_plain
from reshard.source.listing import preview
from reshard.source.selection import epoch_and_step, natural
from reshard.storage import open_store, parent_and_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from reshard.checkpoint.arrays import Array
    from reshard.checkpoint.inventory import TensorEntry
    from reshard.spec.access import Access
    from reshard.spec.keys import Encryption
    from reshard.storage.protocol import Reader, ReadStore


def read_segments(
    url: str,
    wanted: Callable[[str], bool] = lambda _: True,
    *,
    access: Access | None = None,
    decryption: Encryption | None = None,
) -> Iterator[tuple[str, Array]]:
    """All parameters in the checkpoint files of one folder, such as `rank_0/` with a part of each pipeline stage.

    Of a parameter that several files hold the first counts, in the order of their numbers: `_part2` before `_part10`. Memory:
    that of the one parameter, beside what the caller keeps.

    Args:
        url: the folder.
        wanted: whether a name is wanted.
        access: the way to it, if it is in an object store.
        decryption: the key of its files; None: they are not encrypted.

    Raises:
        DataError: a file is damaged, or there are files of both formats.
        MissingInputError: there is none.
        RequestError: the files are of several training steps.
    """
    store = as_plain(open_store(url, access), decryption)
    names = sorted((e.name for e in store.list("") if not e.is_folder and _is_checkpoint(e.name)), key=natural)
    if not names:
        raise MissingInputError(
            "SourceMissing",
            "the folder contains no .ckpt or .safetensors file",
            where=url,
            fix="specify the folder that contains the files of one rank",
        )
    if len({format_of(name) for name in names}) > 1:
        raise DataError(
            "MixedFormats",
            "the folder contains both .ckpt and .safetensors files",
            where=url,
            fix="move away the files that do not belong to the checkpoint",
        )
    if len(steps := {epoch_and_step(name) for name in names}) > 1:
        raise RequestError(
            "AmbiguousFiles",
            f"the folder contains files of {len(steps)} training steps, but one is required: {preview(names)}",
            where=url,
            fix="move away the files of other steps, or load one file with load_checkpoint",
        )
    known: set[str] = set()
    for name in names:
        yield from _read(store, name, lambda parameter: wanted(parameter) and parameter not in known, known)


def read_file(
    source: str | BytesIO,
    wanted: Callable[[str], bool] = lambda _: True,
    *,
    crc_check: bool = False,
    access: Access | None = None,
    decryption: Encryption | None = None,
) -> Iterator[tuple[str, Array]]:
    """Yield the parameters of one checkpoint file. Memory: one parameter, in addition to what the caller keeps.

    Args:
        source: the path of the file, or the content of a safetensors file.
        wanted: whether a name is wanted.
        crc_check: compare the content with the CRC32 in the file; a file without one is warned of.
        access: the way to it, if it is in an object store.
        decryption: the key of the file; None: it is not encrypted.

    Raises:
        DataError: the file is damaged.
        MissingInputError: there is no such file.
    """
    reader: Reader | _Memory
    if isinstance(source, BytesIO):
        reader = _Memory(source.getvalue())
    else:
        folder, name = parent_and_name(source)
        reader = as_plain(open_store(folder, access), decryption).open(name)
    with closing(reader):
        header = read_header(reader)
        if crc_check:
            if header.crc is None:
                warn(f"{reader.name} has no CRC32, so its content is not verified", stacklevel=2)
            check_crc(reader, header)
        for entry in header.structure.tensors:
            if wanted(entry.name):
                yield entry.name, array_of(_content(reader, entry), entry.dtype, entry.shape, entry.name)


class _Memory:
    """A safetensors file in memory."""

    name = "BytesIO.safetensors"

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.size = len(content)

    def read(self, offset: int, length: int) -> bytes:
        """Read some bytes; the header was checked against the length of the content."""
        return self._content[offset : offset + length]

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer."""
        buffer[:] = self._content[offset : offset + len(buffer)]

    def close(self) -> None:
        """Do nothing."""


def _read(store: ReadStore, path: str, wanted: Callable[[str], bool], known: set[str]) -> Iterator[tuple[str, Array]]:
    with closing(store.open(path)) as reader:
        for entry in read_header(reader).structure.tensors:
            if wanted(entry.name):
                known.add(entry.name)
                yield entry.name, array_of(_content(reader, entry), entry.dtype, entry.shape, entry.name)


def _content(reader: Reader | _Memory, entry: TensorEntry) -> bytearray:
    content, done = bytearray(entry.nbytes), 0
    for offset, length in entry.extents:
        reader.read_into(memoryview(content)[done : done + length], offset)
        done += length
    return content


def _is_checkpoint(name: str) -> bool:
    return format_of(name) is not None and not name.startswith(".")
