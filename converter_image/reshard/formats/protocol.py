"""What a format provides: a reader of its metadata, or a writer of files and of the documents that complete them.

A format does no I/O of its own.

Another package can add a format, see `registry`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from reshard.checkpoint.inventory import RangeReader
    from reshard.model import Checkpoint


class Folder(Protocol):
    """The files of one folder, for a reader."""

    @property
    def url(self) -> str:
        """The folder, for messages."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the files in the folder, without its subfolders."""

    def read(self, name: str, most: int) -> bytes:
        """Return the content of a file.

        Raises:
            DataError: it is longer than `most` bytes.
            MissingInputError: it does not exist.
        """

    def sizes(self, names: Iterable[str]) -> Mapping[str, int]:
        """Return the lengths in bytes of those of these files that exist."""

    def open(self, name: str) -> AbstractContextManager[RangeReader]:
        """Open a file for ranged reads."""


class SourceFormat(Protocol):
    """A format that can be read."""

    @property
    def name(self) -> str:
        """The format, as in `--source-format`."""

    def detect(self, names: Sequence[str]) -> bool:
        """Return whether a folder with these files holds a checkpoint of this format, by the names alone."""

    def read(self, folder: Folder, workers: int = 1) -> Checkpoint:
        """Return the tensors of a checkpoint, whose shards are ranges of row-major content in its files.

        Args:
            folder: files of the checkpoint.
            workers: number of files that may be read at a time.

        Raises:
            DataError: the checkpoint is damaged, contradicts itself, or contains something that is not supported.
            MissingInputError: a file of the checkpoint does not exist.
        """
