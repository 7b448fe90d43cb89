"""What a storage must do: bytes by range in, whole files out. One contract test suite holds for every storage.

It is no file system: an object store has neither renames nor folders, and its requests cost a round trip each. Where that decides
how to work, a storage says so (`renames`, `remote`); where a file system would have used a rename or a time, the protocol has the
purpose itself (`swap`, `age`, `abort_stale_uploads`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterable, Sequence

# A file by which a storage finds out what it can do.
PROBE = ".reshard/probe"


@dataclass(frozen=True, slots=True)
class Stat:
    """What a listing says of one name.

    Attributes:
        name: the last component of the path.
        is_folder: whether names can lie below it.
        size: length in bytes; 0 for a folder.
        version: changes whenever the content may have changed.
        modified: modification time in seconds since 1970; None: the storage does not report it.
    """

    name: str
    is_folder: bool
    size: int
    version: str
    modified: float | None = field(default=None, compare=False)


class WriteCost(NamedTuple):
    """What writing a file takes.

    Attributes:
        memory: bytes that wait until they are sent.
        requests: requests to a server.
    """

    memory: int = 0
    requests: int = 0


class PartLimits(NamedTuple):
    """Of what an upload may consist, some of whose parts are copied by a server.

    Attributes:
        smallest: bytes of each part but the last.
        most: parts of one upload.
        longest_copy: bytes that are copied as one part; of more, `Writer.copy` makes several that are about equally long.
    """

    smallest: int
    most: int
    longest_copy: int

    def parts_of_copy(self, nbytes: int) -> int:
        """How many parts a copy of so many bytes is."""
        return -(-nbytes // self.longest_copy)


class Reader(Protocol):
    """One open file to read from. Threads may share it."""

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
        """Time of the last change of content or attributes, in nanoseconds since 1970; 0: the storage does not report it.

        Unlike the modification time, which is part of the version, no program can set it.
        """

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`.

        Raises:
            StorageError: reading failed, or the file ends before.
        """

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill `view` with the bytes from `offset`.

        Raises:
            StorageError: reading failed, or the file ends before.
        """

    def read_runs(self, view: memoryview, length: int, offsets: Sequence[int]) -> None:
        """Fill `view` with equally long runs from these ascending offsets, one behind the other.

        Raises:
            StorageError: reading failed, or the file ends before.
        """

    def close(self) -> None:
        """Give the file back."""


class Writer(Protocol):
    """One new file, written from its first byte to its last, that appears whole or not at all."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append `data`; it may be changed by the caller once this returns.

        Raises:
            OutputError, StorageError: the bytes cannot be written.
        """

    def copy(self, reader: Reader, offset: int, length: int) -> None:
        """Append bytes of a file of a store that this one `copies_from`, without their coming here.

        What was written since the last copy is a part of the upload, and so is each copy: see `Store.part_limits`.

        Raises:
            DataError: the file has changed since it was opened.
        """

    def cut(self) -> None:
        """End a part here."""

    def finish(self) -> None:
        """Make all bytes durable, and the file appear at its path."""

    def abort(self) -> None:
        """Leave nothing behind. Safe to call at any time, also after `finish`."""


class ReadStore(Protocol):
    """A folder or a bucket's prefix to read from. Paths are relative to it, with '/' between components."""

    @property
    def url(self) -> str:
        """Where it is, for messages and as part of a transform's identity."""

    @property
    def remote(self) -> bool:
        """Whether a read costs a round trip: then it is worth to ask ahead, for much, and for several things at a time."""

    def list(self, path: str) -> list[Stat]:
        """What lies directly in `path`, sorted by name; empty when there is no such path.

        Raises:
            AccessError, StorageError: it cannot be listed.
        """

    def stat(self, path: str) -> Stat | None:
        """What `path` is; None when it is not there."""

    def list_folders(self, paths: Sequence[str]) -> Sequence[Sequence[Stat]]:
        """What lies directly in each of these folders, see `list`, in as few round trips as possible."""

    def stats(self, paths: Sequence[str]) -> dict[str, Stat]:
        """Those of these files that are there, in as few round trips as possible. Of folders nothing is said."""

    def open(self, path: str) -> Reader:
        """Open a file to read from it.

        Raises:
            MissingInputError: it is not there.
            AccessError: reading is denied.
        """

    def read(self, path: str, limit: int) -> bytes:
        """A whole small file.

        Raises:
            MissingInputError: it is not there.
            DataError: it is longer than `limit` bytes.
        """


class Store(ReadStore, Protocol):
    """One to write to as well."""

    @property
    def notes(self) -> Sequence[str]:
        """Notes for the user on what the storage lacks and was skipped so far."""

    @property
    def renames(self) -> bool:
        """Whether a finished file is moved for nothing, at once. Where not, files that replace others are written in place."""

    def copies_from(self, other: Store) -> bool:
        """Whether files of another store can be copied by the server alone."""

    @property
    def part_limits(self) -> PartLimits | None:
        """Of uploads for which files are copied by the server; None where it copies nothing."""

    def around(self) -> Sequence[Hashable]:
        """What this place and those around it are, innermost first: equal for one place under two names."""

    def create(
        self, path: str, *, temporary: str, mode: int | None, size: int | None = None, memory: int = 0, copies: bool = False
    ) -> Writer:
        """A new file at `path` that replaces what is there when it is finished.

        Args:
            path: the place where it appears.
            temporary: a path in the same store for its bytes until then, where the storage needs one.
            mode: permission bits; its folders get the same with search permission. None: 0666 and 0777, less the umask.
                Without meaning in an object store.
            size: how long it will be, where that is known: it decides in how many parts it is sent.
            memory: how many bytes may wait in memory until they are sent; more only where one part needs it.
            copies: whether the server is to copy some of it, see `Writer.copy`.
        """

    def write_cost(self, size: int, memory: int) -> WriteCost:
        """What a writer of a file of this length takes, if it may have `memory`.

        Raises:
            OutputError: there can be no such file.
        """

    def write(self, path: str, content: bytes, *, mode: int | None) -> None:
        """A whole small file, replacing what is there at once."""

    def write_new(self, path: str, content: bytes, *, mode: int | None) -> bool:
        """A whole small file, only if nothing is there (atomically). Says whether it was written."""

    def swap(self, path: str, content: bytes, version: str, *, mode: int | None) -> bool:
        """A whole small file in the place of one, only if that still has this version. Says whether it was written."""

    def move(self, path: str, to: str) -> None:
        """Rename a small file within the store, replacing what is there. An object store has it in both places for a moment."""

    def delete(self, path: str) -> None:
        """Remove a file, or a folder with all in it. Nothing there is no error."""

    def delete_files(self, paths: Collection[str], *, prune: bool = False) -> None:
        """Remove files in as few round trips as possible. A file that is not there is no error.

        Args:
            paths: the files.
            prune: whether to remove their folders too, where these are empty then.
        """

    def touch(self, path: str) -> None:
        """Mark a small file as alive, unless it is gone, or another's by now."""

    def age(self, path: str) -> float | None:
        """Seconds since a file was written or marked, all by the storage's own clock; None when it is not there."""

    def abort_stale_uploads(self, paths: Iterable[str], *, silent: float) -> None:
        """Remove what killed writers of these files have left, if nothing was added to it for so many seconds.

        For storages that keep it where no listing shows it; temporaries are files like others.
        """

    def check_writable(self) -> None:
        """Find out whether files can be created here, and deleted. An object store may write `PROBE`, and delete it again.

        Raises:
            AccessError, OutputError: they cannot.
        """

    def free_bytes(self) -> int | None:
        """How much can still be written; None where that is not known."""
