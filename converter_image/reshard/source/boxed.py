"""Sources with metadata that locates the shards of tensors. A reader in `reshard.formats` reads the metadata."""

from __future__ import annotations

from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from reshard.checkpoint.inventory import Inventory, OpaqueObject, SourceFile, Structure
from reshard.errors import DataError, RequestError
from reshard.formats.registry import detect, source_format
from reshard.formats.torch.names import is_metadata
from reshard.parallel import parallel
from reshard.source.changed import source_changed
from reshard.source.listing import is_candidate, preview
from reshard.storage.ahead import files_at_once, prefetched
from reshard.storage.digest import sample_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from reshard.checkpoint.inventory import RangeReader
    from reshard.formats.protocol import SourceFormat
    from reshard.model import Checkpoint
    from reshard.storage.protocol import ReadStore

# Number of bytes of each file that are prefetched over a network.
_FILE_AHEAD = 4 << 20


class Boxed:
    """A checkpoint that a format has read.

    Attributes:
        format: name of the format.
        checkpoint: content of the checkpoint.
        versions: versions of the files that the format has opened, by path.
        unread: names that the format has omitted, because they are not wanted.
    """

    def __init__(
        self, found: SourceFormat, store: ReadStore, names: Sequence[str], workers: int, wanted: Callable[[str], bool] | None
    ) -> None:
        unread = set()

        def is_wanted(name: str) -> bool:  # several threads may call it
            if wanted is None or wanted(name):
                return True
            unread.add(name)
            return False

        folder = _Folder(store, names)
        self.format = found.name
        self.checkpoint: Checkpoint = found.read(folder, files_at_once(workers, remote=store.remote), is_wanted)
        self.versions, self.unread = folder.versions, tuple(sorted(unread))

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of all files of the checkpoint: the numbered files with content, then the files with metadata."""
        return tuple(dict.fromkeys((*self.checkpoint.files, *self.checkpoint.documents)))


def find_boxed(
    store: ReadStore,
    names: Sequence[str],
    requested: str | None = None,
    *,
    one_file: bool = False,
    wanted: Callable[[str], bool] | None = None,
    workers: int = 1,
) -> Boxed | None:
    """Read the metadata of a checkpoint in a folder, if a format recognizes it.

    Args:
        store: folder of the checkpoint.
        names: names of the files in it, or of one requested file.
        requested: name of the format. None means that the names of the files determine it.
        one_file: whether only one file of the folder is requested.
        wanted: function that returns whether a tensor or object with this name is required. None means that all are required.
        workers: number of files that may be read at a time.

    Raises:
        DataError: the checkpoint is damaged, or contains something that is not supported.
        MissingInputError: a file of the checkpoint does not exist.
        RequestError: the folder also contains other checkpoint files, or one file of several is requested.
    """
    found = detect(names) if requested is None else source_format(requested)
    if found is None:
        return None
    if one_file and not found.one_file:
        raise RequestError(
            "OneRankOfSeveral",
            f"the file belongs to a {found.name} checkpoint, whose tensors are divided between files",
            where=f"{store.url}/{names[0]}",
            fix=f"use the folder as the source: {store.url}",
        )
    boxed = Boxed(found, store, names, workers, wanted)
    others = [name for name in names if (is_candidate(name) or is_metadata(name)) and name not in boxed.paths]
    if others and requested is None:
        raise RequestError(
            "AmbiguousFiles",
            f"the folder contains both a {found.name} checkpoint and other checkpoint files ({preview(others)})",
            where=store.url,
            fix=f"select the {found.name} checkpoint with --source-format {found.name} (spec.source.format), or the other files"
            " with --files (spec.source.files.pattern)",
        )
    return boxed


def inventory_of(store: ReadStore, boxed: Boxed, *, workers: int, advance: Callable[[int], None]) -> Inventory:
    """Return the files of a checkpoint with their versions, and its tensors.

    Args:
        store: folder of the checkpoint.
        boxed: checkpoint that a format has read.
        workers: number of files read at a time.
        advance: callback with the number of files processed since the last call.

    Raises:
        DataError: a file has changed since its metadata was read.
    """
    from reshard.model.packing import pack  # noqa: PLC0415 - sources without shards start faster without it

    def opened(each: tuple[int, str]) -> SourceFile:
        number, path = each
        with closing(store.open(path)) as reader:
            if boxed.versions.get(path, reader.version) != reader.version:
                raise source_changed(path, "changed", indexed=False)
            sample = "" if store.remote else sample_of(reader)
            advance(1)
            return SourceFile(number, path, reader.size, reader.version, 0, None, sample, reader.changed)

    files = tuple(parallel(opened, enumerate(boxed.paths), at_once=files_at_once(workers, remote=store.remote)))
    tensors = tuple(pack(tensor) for tensor in boxed.checkpoint.tensors)
    places = ((found.name, place) for found in boxed.checkpoint.objects for place in found.places)
    objects = tuple(OpaqueObject(name, place.file, place.offset, place.length) for name, place in places)
    return Inventory(
        files,
        (Structure(boxed.format, ()),),
        "Boxes",
        keys=dict(boxed.checkpoint.keys),
        tensors=tensors,
        objects=objects,
        documents=len(files) - len(boxed.checkpoint.files),
        unread=boxed.unread,
    )


class _Folder:
    """Files of a store for a format. Remembers the version of each opened file. See `formats.protocol.Folder`."""

    def __init__(self, store: ReadStore, names: Sequence[str]) -> None:
        self.url, self.names = store.url, names
        self.versions: dict[str, str] = {}
        self._store = store

    def read(self, name: str, most: int) -> bytes:
        with self.open(name) as reader:
            if reader.size > most:
                raise DataError(
                    "FileTooLarge",
                    f"the file has {reader.size} bytes, but metadata of at most {most} bytes is supported",
                    where=f"{self.url}/{name}",
                    fix="check that the source is the intended one",
                )
            return reader.read(0, reader.size)

    def sizes(self, names: Iterable[str]) -> Mapping[str, int]:
        return {path: stat.size for path, stat in self._store.stats(list(names)).items()}

    @contextmanager
    def open(self, name: str, reads: Iterable[tuple[int, int]] = ()) -> Iterator[RangeReader]:
        with closing(self._store.open(name)) as reader:
            if self.versions.setdefault(name, reader.version) != reader.version:
                raise source_changed(name, "changed", indexed=False)
            with prefetched(reader, reads, _FILE_AHEAD, remote=self._store.remote) as ahead:
                yield ahead
