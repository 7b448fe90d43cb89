"""The protocol of storages: read bytes by range, write whole files. One contract test suite covers every storage.

It is not a file system: an object store has neither renames nor folders, and each request costs a round trip. Where that
affects the caller, a storage has an attribute for it (`renames`, `remote`). Where a file system would use a rename or a time, the
protocol has the operation itself (`swap`, `age`, `abort_stale_uploads`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterable, Sequence

# Name of a file that a storage may write to detect its capabilities.
PROBE = ".reshard/probe"


@dataclass(frozen=True, slots=True)
class Stat:
    """The entry of one name in a listing.

    Attributes:
        name: the last component of the path.
        is_folder: whether it can contain other names.
        size: length in bytes; 0 for a folder.
        version: changes whenever the content may have changed.
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
        memory: bytes that wait until they are sent.
        requests: requests to a server.
    """

    memory: int = 0
    requests: int = 0


class PartLimits(NamedTuple):
    """Limits of the parts of an upload, some of which a server copies.

    Attributes:
        smallest: bytes of each part but the last.
        most: parts of one upload.
        longest_copy: bytes that are copied as one part; `Writer.copy` divides longer ranges into parts of about equal length.
    """

    smallest: int
    most: int
    longest_copy: int

    def parts_of_copy(self, nbytes: int) -> int:
        """Return the number of parts of a copy."""
        return -(-nbytes // self.longest_copy)


class Reader(Protocol):
    """An open file for reading. Threads may share it."""

    @property
    def name(self) -> str:
        """The path, for messages."""

    @property
    def size(self) -> int:
        """Length in bytes, as found when it was opened."""

    @property
    def version(self) -> str:
        """The version that was opened; all bytes come from it."""

    @property
    def changed(self) -> int:
        """Time of the last change of content or attributes, in nanoseconds since 1970, or 0 if the storage does not report it.

        Unlike the modification time, which is part of the version, this time cannot be set by programs.
        """

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
        """Fill `view` with runs of equal length from these ascending offsets, one after the other.

        Raises:
            StorageError: reading failed, or the file ends before.
        """

    def close(self) -> None:
        """Release the file."""


class Writer(Protocol):
    """One new file, written from its first byte to its last, that appears whole or not at all."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append `data`; it may be changed by the caller once this returns.

        Raises:
            OutputError, StorageError: the bytes cannot be written.
        """

    def copy(self, reader: Reader, offset: int, length: int) -> None:
        """Append bytes of a file in a store that this one `copies_from`, without transferring them to this process.

        Bytes written since the last copy form a part of the upload, and so does each copy: see `Store.part_limits`.

        Raises:
            DataError: the file has changed since it was opened.
        """

    def cut(self) -> None:
        """End the current part."""

    def finish(self) -> None:
        """Make all bytes durable, and the file visible at its path."""

    def abort(self) -> None:
        """Remove everything that was written. Safe to call at any time, even after `finish`."""


class ReadStore(Protocol):
    """A folder or bucket prefix for reading. Paths are relative to it, with '/' between components."""

    @property
    def url(self) -> str:
        """Address, for messages and as part of a transform's identity."""

    @property
    def remote(self) -> bool:
        """True if each read costs a round trip, so that large, concurrent and early reads are worthwhile."""

    def list(self, path: str) -> list[Stat]:
        """Return the entries of `path`, sorted by name; empty if the path does not exist.

        Raises:
            AccessError, StorageError: the path cannot be listed.
        """

    def stat(self, path: str) -> Stat | None:
        """Return the entry of `path`; None if it does not exist."""

    def list_folders(self, paths: Sequence[str]) -> Sequence[Sequence[Stat]]:
        """Return the entries of each folder, see `list`, in as few round trips as possible."""

    def stats(self, paths: Sequence[str]) -> dict[str, Stat]:
        """Return the entries of the files that exist, in as few round trips as possible. Folders may be left out."""

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
        """Notes for the user on operations that were skipped because the storage does not support them."""

    @property
    def renames(self) -> bool:
        """True if moving a finished file is free and atomic. Otherwise files that replace others are written in place."""

    def copies_from(self, other: Store) -> bool:
        """Return whether the server can copy files of another store."""

    @property
    def part_limits(self) -> PartLimits | None:
        """Limits of uploads with parts that the server copies. None if the store cannot copy."""

    def around(self) -> Sequence[Hashable]:
        """Identities of this place and its ancestors, innermost first; equal for one place under two names."""

    def create(
        self, path: str, *, temporary: str, mode: int | None, size: int | None = None, memory: int = 0, copies: bool = False
    ) -> Writer:
        """Create a file that replaces `path` when it is finished.

        Args:
            path: the final path.
            temporary: a path in the same store for its bytes until then, if the storage requires one.
            mode: permission bits; its folders get the same with search permission. None means 0666 and 0777, less the umask.
                Ignored by object stores.
            size: the final length, if known, which determines the size of parts.
            memory: bytes that may be buffered before they are sent; exceeded only if one part requires it.
            copies: whether the server copies some parts, see `Writer.copy`.
        """

    def write_cost(self, size: int, memory: int) -> WriteCost:
        """Return the cost of writing a file of this length with `memory`.

        Raises:
            OutputError: the file would be too large.
        """

    def write(self, path: str, content: bytes, *, mode: int | None) -> None:
        """Write a small file, replacing an existing one atomically."""

    def write_new(self, path: str, content: bytes, *, mode: int | None) -> bool:
        """Write a small file atomically unless the path exists. Return whether it was written."""

    def swap(self, path: str, content: bytes, version: str, *, mode: int | None) -> bool:
        """Replace a small file if it still has this version. Return whether it was written."""

    def move(self, path: str, to: str) -> None:
        """Rename a small file within the store, replacing an existing one. In an object store, both exist for a moment."""

    def delete(self, path: str) -> None:
        """Delete a file, or a folder with its content. It is not an error if the path does not exist."""

    def delete_files(self, paths: Collection[str], *, prune: bool = False) -> None:
        """Delete files in as few round trips as possible. It is not an error if a file does not exist.

        Args:
            paths: the files.
            prune: whether to delete their folders too, if they become empty.
        """

    def touch(self, path: str) -> None:
        """Refresh the time of a small file, unless it was deleted or replaced."""

    def age(self, path: str) -> float | None:
        """Return the seconds since a file was written or refreshed, by the storage's clock; None if it does not exist."""

    def abort_stale_uploads(self, paths: Iterable[str], *, silent: float) -> None:
        """Remove unfinished uploads of these files to which nothing was added for `silent` seconds.

        For storages whose listings do not show them; temporaries are ordinary files.
        """

    def check_writable(self) -> None:
        """Check that files can be created and deleted. An object store may write `PROBE` and delete it again.

        Raises:
            AccessError, OutputError: files cannot be created or deleted.
        """

    def free_bytes(self) -> int | None:
        """Return the free space in bytes; None if it is unknown."""
