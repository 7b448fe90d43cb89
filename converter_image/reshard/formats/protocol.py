"""The protocols of formats: a reader of metadata, and a writer of files and of the documents that complete them.

A format does no I/O of its own.

Another package can add a format, see `registry`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from reshard.checkpoint.inventory import RangeReader, Structure, TensorEntry
    from reshard.checkpoint.output import OutputFile, OutputTensor, Piece
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

    def open(self, name: str, reads: Iterable[tuple[int, int]] = ()) -> AbstractContextManager[RangeReader]:
        """Open a file for ranged reads.

        Args:
            name: name of the file.
            reads: probable reads as (offset, length), in order. Over a network, many of them are fetched at a time, and what they
                fetch is not consumed before it is needed.
        """


class SourceFormat(Protocol):
    """A format that can be read."""

    @property
    def name(self) -> str:
        """The format, as in `--source-format`."""

    @property
    def one_file(self) -> bool:
        """Whether one file of a folder can be read without the others. False if tensors are divided between files."""

    def detect(self, names: Sequence[str]) -> bool:
        """Return whether a folder with these files holds a checkpoint of this format, by the names alone."""

    def read(self, folder: Folder, workers: int = 1, wanted: Callable[[str], bool] | None = None) -> Checkpoint:
        """Return the tensors of a checkpoint, whose shards are ranges of row-major content in its files.

        Args:
            folder: files of the checkpoint.
            workers: number of files that may be read at a time.
            wanted: whether a tensor or object of this name is needed. The others are left out: what is not supported in them is
                no error, and their files are not read where the format allows it. None: all are needed.

        Raises:
            DataError: the checkpoint is damaged, contradicts itself, or contains something that is not supported.
            MissingInputError: a file of the checkpoint does not exist.
            RequestError: the format is known but not supported, or the folder has several checkpoints.
        """


class OutputFormat(Protocol):
    """A format that can be written. All results follow from the arguments alone, so that equal tasks write equal files."""

    @property
    def name(self) -> str:
        """The format, as in `--format`."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs of `Options.output` that the format can be written for. The first is that of requests without an output."""

    @property
    def crc(self) -> Literal["Header", "Trailer"] | None:
        """Where a file can have one CRC32 of all its tensors, on request. None: nowhere."""

    @property
    def once(self) -> bool:
        """Whether only one rank writes each slice. The documents then contain its location, for all ranks."""

    @property
    def names_files(self) -> bool:
        """Whether the format determines the names of all files, including those of whole tensors."""

    @property
    def objects_of(self) -> frozenset[str]:
        """Names of the source formats whose values other than tensors a file can hold, because it stores them in the same way."""

    @property
    def has_settings(self) -> bool:
        """Whether `carried` can return the configuration of a model, on request."""

    @property
    def can_encrypt(self) -> bool:
        """Whether programs can read encrypted files."""

    @property
    def can_be_empty(self) -> bool:
        """Whether programs can load a file without tensors."""

    @property
    def one_header(self) -> bool:
        """Whether a file consists of one header and the contents of its tensors.

        The header of a file without a CRC follows from the metadata, and from the names, types and shapes of the slices.
        """

    @property
    def not_loaded(self) -> frozenset[str]:
        """Names of the types that files can contain, but that MindSpore cannot load from them."""

    @property
    def companions(self) -> tuple[str, ...]:
        """Names of files that a checkpoint requires and only a source of the same format can provide."""

    @property
    def document_names(self) -> tuple[str, ...]:
        """Names of the documents that complete a checkpoint, see `documents`. Not every checkpoint has all of them."""

    def conflicting(self, ranks: int) -> tuple[str, ...]:
        """Return the names of files that other programs would read instead of a checkpoint with this number of files."""

    def path(self, rank: int, ranks: int, stem: str) -> str:
        """Return the path of a rank's file, relative to the target: in the folder `rank_<r>`, or without a folder.

        A name without a folder has a suffix other than `.json`, and does not start with a dot.

        Args:
            rank: number of the target rank.
            ranks: number of target ranks.
            stem: path without its suffix that follows from the request, for formats that do not determine the names of files.
        """

    def can_hold(self, tensor: OutputTensor) -> bool:
        """Return whether a file can hold a tensor. False: the tensor is omitted.

        Raises:
            DataError: the format does not support the type.
        """

    def content_order(self, tensors: Sequence[OutputTensor]) -> Sequence[int]:
        """Return the positions of tensors in the order in which a file holds their contents."""

    def pieces(self, tensors: Sequence[OutputTensor], metadata: Mapping[str, str], crc: int | None = None) -> Iterator[Piece]:
        """Yield a file from its first byte to its last, without the trailer.

        Args:
            tensors: tensors of the file, in content order. Spans refer to their positions.
            metadata: metadata of a safetensors file of the source, or what MindSpore expects.
            crc: CRC32 for the header.

        Raises:
            DataError: the format reserves the name of a tensor.
            OutputError: the file would contain more tensors than the format allows.
        """

    def file_size(self, tensors: Sequence[OutputTensor], metadata: Mapping[str, str], *, crc: bool = False) -> int:
        """Return the length of a file in bytes, including its CRC if it has one. Arguments and errors: see `pieces`."""

    def trailer(self, crc: int) -> bytes:
        """Return what follows the pieces if a file has its CRC32 in a trailer, or nothing."""

    def entries(
        self, reader: RangeReader, tensors: Iterable[OutputTensor], seen: dict[bytes, Structure] | None = None
    ) -> tuple[TensorEntry, ...]:
        """Return the tensors that a finished file describes, for its verification.

        Args:
            reader: reader of the file.
            tensors: tensors of which the file was made, in content order. They are created when they are requested.
            seen: cache of structures by encoded header, to which a format may add. Files of other ranks are often alike.

        Raises:
            DataError: the file is damaged.
        """

    def documents(self, files: Iterable[OutputFile]) -> Mapping[str, bytes]:
        """Return the documents that complete a checkpoint, such as an index, by their names.

        They are written after all files, in this order, and follow from names, types and boxes, so that a commit does not open
        the files.

        Args:
            files: files of the checkpoint, in ascending order of rank.
        """

    def carried(self, names: Sequence[str], where: str, *, settings: bool) -> Sequence[str]:
        """Return the files of the source's folder that are copied unchanged, in this order, before the documents are written.

        Args:
            names: files of the source's folder.
            where: the folder, for messages.
            settings: whether to include files that do not belong to the checkpoint, such as those of a model's configuration.

        Raises:
            RequestError: the source does not have a file that a checkpoint of this format requires.
        """
