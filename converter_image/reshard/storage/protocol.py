"""The protocol that every storage implements: read bytes by range, and write whole files.

It is not the interface of a file system, because an object store has no renames and no folders, and each request costs a round
trip. Attributes such as `renames` and `remote` describe differences that affect callers. Operations such as `swap`, `age` and
`abort_stale_uploads` replace those that are implemented with renames or times in a file system. One test suite covers all
storages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence

    # Writes appended bytes, see `Writer.write_later`.
    Write = Callable[[], None]

    from reshard.spec.storage_options import Link
    from reshard.storage.traffic import Meter

# Name of a file that a storage may write to detect its capabilities.
PROBE = ".reshard/probe"


@dataclass(frozen=True, slots=True)
class Stat:
    """One entry of a listing.

    Attributes:
        name: last component of the path.
        is_folder: whether the entry can contain other entries.
        size: length in bytes, or 0 for a folder.
        version: value that changes whenever the content may have changed.
        modified: modification time in seconds since 1970; None means that the storage does not report it.
        changed: see `Reader.changed`.
    """

    name: str
    is_folder: bool
    size: int
    version: str
    modified: float | None = field(default=None, compare=False)
    changed: int = field(default=0, compare=False)


class WriteCost(NamedTuple):
    """The cost of writing a file.

    Attributes:
        memory: number of bytes that are buffered until they are sent.
        requests: number of requests to a server.
    """

    memory: int = 0
    requests: int = 0


class PartLimits(NamedTuple):
    """Limits of the parts of an upload, some of which a server copies.

    Attributes:
        smallest: minimum size in bytes of all parts except the last.
        most: maximum number of parts of one upload.
        longest_copy: maximum number of bytes that are copied as one part. `Writer.copy` divides longer ranges into parts of
            about equal length.
    """

    smallest: int
    most: int
    longest_copy: int

    def parts_of_copy(self, nbytes: int) -> int:
        """Return the number of parts of a copy."""
        return -(-nbytes // self.longest_copy)


class Reader(Protocol):
    """A file that is open for reading. Threads may share it."""

    @property
    def name(self) -> str:
        """The path, for messages."""

    @property
    def size(self) -> int:
        """Length in bytes when the file was opened."""

    @property
    def version(self) -> str:
        """The version that was opened. All bytes are read from it."""

    @property
    def changed(self) -> int:
        """Time of the last change of content or attributes, in nanoseconds since 1970, or 0 if the storage does not report it.

        Unlike the modification time, which is part of the version, this time cannot be set by programs.
        """

    @property
    def waits(self) -> bool:
        """Whether large reads probably wait for a server or a disk, so that early reads of whole blocks are faster."""

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`.

        Raises:
            StorageError: reading failed, or the file ends before.
        """

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill `view` with the bytes from `offset`.

        Raises:
            StorageError: reading failed, or the file ends before.
        """

    def read_runs(self, view: memoryview, length: int, offsets: Sequence[int]) -> None:
        """Fill `view` with consecutive runs of equal length, read from these ascending offsets.

        Raises:
            StorageError: reading failed, or the file ends before.
        """

    def will_read(self, offset: int, length: int) -> None:
        """Announce that a few bytes will soon be read. A disk may read them in the meantime, without memory of this process."""

    def count_in(self, meter: Meter) -> None:
        """Count in this meter too what is fetched from now on. The store counts everything that its readers fetch."""

    def close(self) -> None:
        """Release the file."""


class NewFile(Protocol):
    """A new file that is not visible at its path yet. It appears as a whole or not at all."""

    def flush(self) -> str | None:
        """Make all bytes durable before the file is visible at its path.

        Returns:
            Temporary path in the store at which the file can be read, or None if the file cannot be read before `finish`.
        """

    def finish(self) -> None:
        """Flush the file unless it is flushed, and make it visible at its path.

        Raises:
            OutputError, StorageError: the file cannot be completed, or another process has deleted the temporary file.
        """

    def abort(self) -> None:
        """Remove everything that was written. Safe to call at any time, even after `finish`."""


class Writer(NewFile, Protocol):
    """A new file that is written sequentially."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append `data`. The caller may modify the buffer after this returns.

        Raises:
            OutputError, StorageError: the bytes cannot be written.
        """

    @property
    def any_order(self) -> bool:
        """Whether the functions of `write_later` may be called in any order and at the same time, and not only in order."""

    def room(self, nbytes: int) -> memoryview | None:
        """Return memory of the writer in which the next `nbytes` bytes or more may be produced. None: it has none.

        Content in this memory is written without a copy. The caller must not modify it afterwards.
        """

    def write_later(self, data: memoryview) -> Write | None:
        """Append `data`. Return a function that writes it, or None if it was written.

        Any thread may call the function. The caller must not modify the buffer before, and must call all functions before
        `write` or `finish`.

        Raises:
            OutputError, StorageError: the bytes cannot be written. The function raises the same errors.
        """

    def copy(self, reader: Reader, offset: int, length: int, meter: Meter) -> None:
        """Append bytes of a file in another store without transferring them to this process, see `Store.copies_from`.

        Each copy is a part of the upload, and so are the bytes written between two copies, see `Store.part_limits`. The meter
        counts what the server has copied.

        Raises:
            DataError: the file has changed since it was opened.
        """

    def cut(self) -> None:
        """End the current part."""


class ReadStore(Protocol):
    """A folder or bucket prefix for reading. Paths are relative to it, and use '/' as the separator."""

    @property
    def url(self) -> str:
        """Address of the store, for messages and as part of a transform's identity."""

    @property
    def remote(self) -> bool:
        """True if each read costs a round trip, so that large, concurrent and early reads are faster."""

    def list(self, path: str) -> list[Stat]:
        """Return the entries of `path`, sorted by name. A path that does not exist has no entries.

        Raises:
            AccessError, StorageError: the path cannot be listed.
        """

    def stat(self, path: str) -> Stat | None:
        """Return the entry of `path`, or None if it does not exist."""

    def list_folders(self, paths: Sequence[str]) -> Sequence[Sequence[Stat]]:
        """Return the entries of each folder, see `list`, in as few round trips as possible."""

    def stats(self, paths: Sequence[str]) -> dict[str, Stat]:
        """Return the entries of the files that exist, in as few round trips as possible. Folders may be omitted."""

    def open(self, path: str) -> Reader:
        """Open a file for reading.

        Raises:
            MissingInputError: the file does not exist.
            AccessError: reading is denied.
        """

    def read(self, path: str, limit: int) -> bytes:
        """Return the content of a small file.

        Raises:
            MissingInputError: the file does not exist.
            DataError: the file is longer than `limit` bytes.
        """


class Store(ReadStore, Protocol):
    """A store for reading and writing."""

    @property
    def notes(self) -> Sequence[str]:
        """Messages for the user about operations that were skipped because the storage does not support them."""

    @property
    def renames(self) -> bool:
        """True if moving a finished file is cheap and atomic. Otherwise, files that replace others are written in place."""

    def names(self, path: str) -> Sequence[str]:
        """Return the names of the entries of `path`, in any order, without a round trip for each one as `list` may need."""

    def copies_from(self, other: Store) -> bool:
        """Return whether the server can copy files of another store."""

    @property
    def part_limits(self) -> PartLimits | None:
        """Limits of uploads with parts that the server copies, or None if the store cannot copy."""

    def around(self) -> Sequence[Hashable]:
        """Return the identities of this folder and its ancestors, innermost first. Names of the same folder have one identity."""

    def create(
        self, path: str, *, temporary: str, mode: int | None, size: int | None = None, memory: int = 0, copies: bool = False
    ) -> Writer:
        """Create a file that replaces `path` when it is finished.

        Args:
            path: final path.
            temporary: path in the same store that the file has until it is finished, if the storage requires one.
            mode: permission bits. Folders get the same bits and search permission. None means 0666 and 0777, minus the umask.
                Object stores ignore it.
            size: final length in bytes, if known. It determines the size of parts.
            memory: maximum number of bytes that are buffered before they are sent. Only a single larger part may exceed it.
            copies: whether the server copies some parts, see `Writer.copy`.
        """

    def write_cost(self, size: int, memory: int) -> WriteCost:
        """Return the cost of writing a file of this length with `memory`.

        Raises:
            OutputError: the file would be too large.
        """

    def write(self, path: str, content: bytes, *, mode: int | None) -> None:
        """Write a small file. An existing file is replaced atomically."""

    def write_new(self, path: str, content: bytes, *, mode: int | None) -> bool:
        """Write a small file atomically unless the path exists. Return whether it was written."""

    def swap(self, path: str, content: bytes, version: str, *, mode: int | None) -> bool:
        """Replace a small file if it still has this version. Return whether it was written."""

    def move(self, path: str, to: str, *, make_folder: bool = True, seen: Stat | None = None) -> None:
        """Rename a small file within the store, replacing an existing one. In an object store, both names exist temporarily.

        Args:
            path: path of the file.
            to: its new path.
            make_folder: whether to create the folder of the new path if it does not exist. Otherwise, this is an error.
            seen: result of `stat`. An object store does not move an object that was written after it.

        Raises:
            LockedError: the object was written after `seen`.
        """

    def can_link(self, folder: str, how: Link) -> bool:
        """Return whether files in a folder can be created with `link`. A note is recorded if they cannot."""

    def link(self, path: str, to: str, how: Link, *, temporary: str, mode: int | None) -> NewFile:
        """Create a file that shares the content of a finished file. It replaces `to` when it is finished. See `create`.

        Raises:
            OutputError, StorageError: the file cannot be created.
        """

    def delete(self, path: str) -> None:
        """Delete a file, or a folder with its content. It is not an error if the path does not exist."""

    def delete_files(
        self, paths: Collection[str], *, seen: Mapping[str, Stat] | None = None, prune: bool = False, through: str = ""
    ) -> None:
        """Delete files in as few round trips as possible. It is not an error if a file does not exist.

        Args:
            paths: paths of the files.
            seen: result of `stats`. An object store deletes only these objects, and only if they were not written after it, as
                far as the server can delete on a condition.
            prune: whether to also delete their folders if they become empty.
            through: folder that the files are moved to before they are deleted, if the store renames files. If it does not
                exist, this is an error, and the files remain.

        Raises:
            LockedError: a file was written after `seen`.
        """

    def touch(self, path: str) -> None:
        """Refresh the time of a small file, unless it was deleted or replaced."""

    def age(self, path: str) -> float | None:
        """Return the seconds since a file was written or refreshed, by the storage's clock, or None if it does not exist."""

    def abort_stale_uploads(self, paths: Iterable[str], *, silent: float) -> None:
        """Remove unfinished uploads of these files to which nothing was added for `silent` seconds.

        This affects only storages whose listings do not contain unfinished uploads.
        """

    def check_writable(self) -> None:
        """Check that files can be created and deleted. An object store may write `PROBE` and delete it again.

        Raises:
            AccessError, OutputError: files cannot be created or deleted.
        """

    def free_bytes(self) -> int | None:
        """Return the free space in bytes, or None if it is unknown."""
