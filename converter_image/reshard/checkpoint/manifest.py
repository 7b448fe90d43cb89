"""Documents in a target: the record of a finished rank, and the manifest of a complete checkpoint.

Their schema is versioned, and described for other programs in docs/manifest.md.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec

from reshard.errors import DataError
from reshard.spec.request import RenameRule

MANIFEST_NAME = "reshard-manifest.json"
INDEX_NAME = "reshard-index.json"
SCHEMA = "reshard.dev/manifest/v1"
# What is only there while a transform is unfinished: see reshard.target.folder.
STATE = ".reshard"

Verified = Literal["None", "Sample", "Full"]
# Documents may come from anywhere: a path leads into a rank's folder, or to a checkpoint file beside the manifest, and nowhere
# else.
FilePath = Annotated[
    str,
    msgspec.Meta(pattern=r"^(rank_[0-9]{1,9}/(?!\.{1,2}$)[^/\x00]+|[^/\x00]+\.(ckpt|safetensors))$"),
]


class _Document(msgspec.Struct, frozen=True, rename="camel"):
    """Base class of documents with camelCase keys. Unknown fields of later versions are ignored."""


class FileRecord(_Document, frozen=True):
    """One finished file.

    Attributes:
        rank: the target rank.
        path: its place, relative to the target.
        size: its length in bytes.
        digest: the digest of the content, as "xxh3-128:<hex>" (`xxhsum -H2` computes the same); or of a file that an object store
            has put together, "etag:<its ETag there>".
        bytes_read: bytes of source tensors that were read for this file.
        verified: how much of it was compared with the source.
        stage: the pipeline stage of the source that it was made from; null: of all.
        sample: a digest of five blocks of the file, see `reshard.storage.digest.sample_of`.
        version: the ETag of the object that was written; empty in a file system.
        seconds: how long it took to write and verify the file. A measurement, like `Manifest.durations`.
    """

    rank: int
    path: FilePath
    size: int
    digest: str
    bytes_read: int
    verified: Verified
    stage: int | None = None
    sample: str = ""
    version: str = ""
    seconds: float = 0.0


class IndexRecord(_Document, frozen=True):
    """The index that stands in the place of files, see `reshard.source.index`: its bytes, and its digest as a file's."""

    size: int
    digest: str

    @property
    def path(self) -> str:
        """Relative to the target."""
        return INDEX_NAME


class LayoutRecord(_Document, frozen=True, omit_defaults=True):
    """The layout of a parameter on one side, see `reshard.layout.Layout`."""

    device_matrix: tuple[int, ...]
    tensor_map: tuple[tuple[int, ...], ...]
    shard_step: int = 0
    shard_size: int = 0
    stages: Annotated[tuple[int, ...], msgspec.Meta(min_length=1)] = (0,)


class ParameterRecord(_Document, frozen=True):
    """One parameter.

    Attributes:
        name: what the files call it.
        dtype: its type, by MindSpore's name.
        shape: lengths of the whole tensor.
        role: "cut", "replicated", "kept" or "own".
        source: the source's layout; null when each holder has it whole.
        target: the target's layout.
        source_name: what the source calls it, where that is something else.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    role: str
    source: LayoutRecord | None
    target: LayoutRecord
    source_name: str | None = None


class SourceRecord(_Document, frozen=True):
    """The source of a transform.

    Attributes:
        url: its address.
        format: the format of its files.
        ranks: how many ranks it has.
        nbytes: bytes of its files.
        versions: a digest of its files' versions, see `Inventory.versions`.
        listing: a digest of the request, and of the source as a listing shows it: see `source.files.listing_digest`. Empty where
            a listing does not identify content.
        step: the training step that was asked for.
        files: the pattern that was asked for.
    """

    url: str
    format: str
    ranks: int
    nbytes: int
    versions: str = ""
    listing: str = ""
    step: int | None = None
    files: str | None = None


class StageRecord(_Document, frozen=True):
    """The files of one pipeline stage, in a checkpoint that was written stage by stage.

    Attributes:
        stage: the pipeline stage of the source that it was made from.
        digest: identifies its source, strategies and options, as that of a manifest does.
        source: what was read for it.
        ranks: the target ranks that have something of it, such as "0-3".
        stage_count: the number of stages, if its run could know it.
        in_other_stages: names of the target's strategy that this stage does not hold; of a complete checkpoint none.
        unmatched: rules of `options.rename` that match nothing of this stage; of a complete checkpoint, nothing of any.
    """

    stage: int
    digest: str
    source: SourceRecord
    ranks: str
    stage_count: int | None = None
    in_other_stages: tuple[str, ...] = ()
    unmatched: tuple[RenameRule, ...] = ()


class Manifest(_Document, frozen=True):
    """The manifest of a complete checkpoint.

    Attributes:
        schema: the form of this document.
        version: the version of the program that wrote it.
        digest: identifies source, strategies and options: equal digests, equal files.
        source: what was read.
        format: the format of the files.
        ranks: those that are here, such as "0-5".
        target_ranks: how many ranks the target's layout has.
        options: those that decide what is written.
        files: a record for each rank; if the checkpoint was written stage by stage, for each rank and stage.
        parameters: what is in them.
        source_only: names that only the source's strategy has, left out.
        target_only: names that only the target's strategy has, left out.
        not_in_files: names that the source's strategy has and no file holds.
        zero_size: names of tensors of shape [0], left out since MindSpore loads them from a `.ckpt` as scalars without a value.
        excluded: names of the source's that were to be left out.
        inconsistent_replicas: names whose copies differ between source ranks, or between stages, which the user accepts.
        stages: a record for each pipeline stage, if the checkpoint was written stage by stage.
        index: the index that stands in the place of files, with output Index.
        may_be_slices: names of parameters that come from MindSpore's `hyper_param.safetensors` and may be rank 0's slices, see
            `reshard.checkpoint.unified.possible_slices`.
        key_check: tells whether a key is that of the files, if they are encrypted: see `BlockCipher.key_check`.
        notes: what was reported when it was written.
        durations: seconds that each phase took, see `reshard.telemetry.durations`. All else follows from source and options.
    """

    schema: str
    version: str
    digest: str
    source: SourceRecord
    format: str
    ranks: str
    target_ranks: int
    options: dict[str, Any]
    files: tuple[FileRecord, ...]
    parameters: tuple[ParameterRecord, ...]
    source_only: tuple[str, ...] = ()
    target_only: tuple[str, ...] = ()
    not_in_files: tuple[str, ...] = ()
    zero_size: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    inconsistent_replicas: tuple[str, ...] = ()
    may_be_slices: tuple[str, ...] = ()
    stages: tuple[StageRecord, ...] = ()
    index: IndexRecord | None = None
    key_check: bytes | None = None
    notes: tuple[str, ...] = ()
    durations: dict[str, float] = {}

    @property
    def jobs(self) -> set[str]:
        """The digests of the jobs that have made it: its own, and those of its stages."""
        return {self.digest, *(record.digest for record in self.stages)}

    @property
    def nbytes(self) -> int:
        """Of all that it lists."""
        return sum(record.size for record in self.listed)

    @property
    def listed(self) -> tuple[FileRecord | IndexRecord, ...]:
        """What the checkpoint consists of, beside this document."""
        return self.files if self.index is None else (*self.files, self.index)


class _Versioned(msgspec.Struct):
    schema: str


T = TypeVar("T")


def encode(document: msgspec.Struct, *, pretty: bool = False) -> bytes:
    """Return a document as JSON."""
    content = msgspec.json.encode(document)
    return msgspec.json.format(content, indent=2) + b"\n" if pretty else content


def decode(content: bytes, kind: type[T], where: str) -> T:
    """Read a document from JSON.

    Raises:
        DataError: the document is damaged or has another schema.
    """
    try:
        if kind is Manifest and (schema := msgspec.json.decode(content, type=_Versioned).schema) != SCHEMA:
            raise DataError(
                "SchemaUnknown",
                f"the schema {schema[:100]!r} is not supported; {SCHEMA} is required",
                where=where,
                fix="use the version of reshard that wrote it",
            )
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise DataError("DocumentInvalid", str(error), where=where, fix="delete the file and run the transform again") from error
