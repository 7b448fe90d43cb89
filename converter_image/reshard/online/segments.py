"""Read the parameters of one file, or of one rank's several files, into memory."""

from __future__ import annotations

from contextlib import closing
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple
from warnings import warn

from reshard.checkpoint import check_crc, format_of, read_header
from reshard.checkpoint.arrays import array_of
from reshard.errors import DataError, MissingInputError, RequestError
from reshard.plan.copies import SMALL_BYTES, is_progress
from reshard.source.described import find_listing, listed_and_unchanged
from reshard.source.encrypted import as_plain
from reshard.source.listing import preview
from reshard.source.selection import epoch_and_step, natural
from reshard.storage import open_store, parent_and_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from reshard.checkpoint.arrays import Array
    from reshard.checkpoint.inventory import TensorEntry
    from reshard.spec.keys import Encryption
    from reshard.spec.storage_options import StorageOptions
    from reshard.storage.protocol import Reader, Store


def read_segments(
    url: str,
    wanted: Callable[[str], bool] = lambda _: True,
    *,
    storage_options: StorageOptions | None = None,
    decryption: Encryption | None = None,
) -> Iterator[tuple[str, Array]]:
    """Yield all parameters in the checkpoint files of one folder, such as `rank_0/` with one file per pipeline stage.

    If several files hold a parameter, the first is used, in the order of their numbers: `_part2` before `_part10`. Copies of
    small parameters are compared, unless a manifest lists the files, because the transform has already compared them. The
    generator requires memory for one parameter and the small ones.

    Args:
        url: URL or path of the folder.
        wanted: function that returns whether to read the parameter with a name.
        storage_options: options of the object store, if the folder is in one.
        decryption: key of the files. None means that they are not encrypted.

    Raises:
        DataError: a file is damaged, copies of a parameter differ, or the folder contains files of both formats.
        MissingInputError: the folder contains no checkpoint files, or a file that its manifest lists is missing.
        RequestError: the files belong to several training steps.
    """
    folder = open_store(url, storage_options)
    store = as_plain(folder, decryption)
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
            fix="move the files that do not belong to the checkpoint to another folder",
        )
    if len(steps := {epoch_and_step(name) for name in names}) > 1:
        raise RequestError(
            "AmbiguousFiles",
            f"the folder contains files of {len(steps)} training steps, but one is required: {preview(names)}",
            where=url,
            fix="move the files of other steps to another folder, or load one file with load_checkpoint",
        )
    compare, known, copies = not _is_described(folder, names, storage_options), set[str](), dict[str, _Copy]()
    for name in names:
        with closing(store.open(name)) as reader:
            for entry in read_header(reader).structure.tensors:
                chosen = wanted(entry.name)
                small = compare and entry.nbytes <= SMALL_BYTES and (chosen or is_progress(entry.name))
                new = chosen and entry.name not in known
                if not (small or new):
                    continue
                content = _content(reader, entry)
                if small:
                    _compare(_Copy(name, entry, bytes(content)), copies, url)
                if new:
                    known.add(entry.name)
                    yield entry.name, array_of(content, entry.dtype, entry.shape, entry.name)


class _Copy(NamedTuple):
    """A copy of a small parameter in a file."""

    file: str
    entry: TensorEntry
    content: bytes


def _compare(found: _Copy, copies: dict[str, _Copy], where: str) -> None:
    """Compare a small parameter with its first copy, or keep it as the first.

    Raises:
        DataError: the copies differ.
    """
    first, entry = copies.setdefault(found.entry.name, found), found.entry
    if (first.entry.dtype, first.entry.shape, first.content) == (entry.dtype, entry.shape, found.content):
        return
    raise DataError(
        "RanksDisagree",
        f"parameter {entry.name} differs between {first.file} and {found.file}",
        where=where,
        fix="restore files of one training step, or load each file with load_checkpoint",
    )


def _is_described(store: Store, names: Sequence[str], storage_options: StorageOptions | None) -> bool:
    """Return whether a manifest lists all these files in their current versions.

    Raises:
        MissingInputError: the manifest lists another file in the folder.
    """
    listings = ((name, find_listing(store, name, storage_options)) for name in names)
    name, listing = next(((name, found) for name, found in listings if found is not None), ("", None))
    if listing is None:
        return False
    place, manifest, record = listing
    listed = {other.path for other in manifest.files if other.path.rpartition("/")[0] == record.path.rpartition("/")[0]}
    paths = {f"{record.path.removesuffix(name)}{other}" for other in names}
    if record.path not in paths:  # the files are links with other names
        return False
    if missing := listed - paths:
        raise MissingInputError(
            "FileMissing",
            f"files that the manifest lists are missing: {preview(missing)}",
            where=store.url,
            fix="restore the files",
        )
    return listed_and_unchanged(place, manifest, paths) == paths


def read_file(
    source: str | BytesIO,
    wanted: Callable[[str], bool] = lambda _: True,
    *,
    crc_check: bool = False,
    storage_options: StorageOptions | None = None,
    decryption: Encryption | None = None,
) -> Iterator[tuple[str, Array]]:
    """Yield the parameters of one checkpoint file. The generator requires memory for one parameter.

    Args:
        source: path of the file, or content of a safetensors file.
        wanted: function that returns whether to read the parameter with a name.
        crc_check: whether to compare the content with the CRC32 in the file. A file without one causes a warning.
        storage_options: options of the object store, if the file is in one.
        decryption: key of the file. None means that it is not encrypted.

    Raises:
        DataError: the file is damaged.
        MissingInputError: the file does not exist.
    """
    reader: Reader | _Memory
    if isinstance(source, BytesIO):
        reader = _Memory(source.getvalue())
    else:
        folder, name = parent_and_name(source)
        reader = as_plain(open_store(folder, storage_options), decryption).open(name)
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
    """Reader of a safetensors file in memory."""

    name = "BytesIO.safetensors"

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.size = len(content)

    def read(self, offset: int, length: int) -> bytes:
        """Read bytes. The header was already checked against the length of the content."""
        return self._content[offset : offset + length]

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer."""
        buffer[:] = self._content[offset : offset + len(buffer)]

    def close(self) -> None:
        """Do nothing."""


def _content(reader: Reader | _Memory, entry: TensorEntry) -> bytearray:
    content, done = bytearray(entry.nbytes), 0
    for offset, length in entry.extents:
        reader.read_into(memoryview(content)[done : done + length], offset)
        done += length
    return content


def _is_checkpoint(name: str) -> bool:
    return format_of(name) is not None and not name.startswith(".")
