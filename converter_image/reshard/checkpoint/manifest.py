"""Documents in a target: the record of a finished rank, and the manifest of a complete checkpoint.

Their schema is versioned. docs/manifest.md describes it for other programs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec

from reshard.checkpoint.inventory import CarriedFile, Keys
from reshard.errors import DataError
from reshard.spec.layout import LayoutDocument
from reshard.spec.rules import RenameRule
from reshard.structs import examined

if TYPE_CHECKING:
    from collections.abc import Iterator

MANIFEST_NAME = "reshard-manifest.json"
INDEX_NAME = "reshard-index.json"
STRATEGY_NAME = "reshard-strategy.ckpt"  # no checkpoint: MindSpore's functions read only strategy files with this suffix
SCHEMA = "reshard.dev/manifest/v1"
# Exists only while a transform is unfinished, see reshard.target.folder.
STATE = ".reshard"

Verified = Literal["None", "Sample", "Full"]
# Documents may come from untrusted sources: a path leads into a rank's folder or to a file next to the manifest, nowhere else.
# Such a file is not hidden and is no document: its name has a suffix, which the format determines, but not .json.
FilePath = Annotated[
    str,
    msgspec.Meta(pattern=r"^(rank_[0-9]{1,9}/(?!\.{1,2}$)[^/\x00]+|(?!\.)[^/\x00]+\.(?!json$)[A-Za-z0-9_]{1,32})$"),
]


class _Document(msgspec.Struct, frozen=True, rename="camel"):
    """Base class of documents with camelCase keys. Unknown fields of later versions are ignored."""


class Loss(NamedTuple):
    """The changes that a cast has made.

    Attributes:
        rounded: number of elements whose value has changed, including overflows.
        overflowed: number of finite elements that have become infinite, because they are too large for the new type.
    """

    rounded: int = 0
    overflowed: int = 0

    def plus(self, other: Loss) -> Loss:
        """Return the sum of both changes."""
        return Loss(self.rounded + other.rounded, self.overflowed + other.overflowed)


class LinkRecord(_Document, frozen=True):
    """The equal file that a file was created from, instead of being written.

    Attributes:
        kind: "Clone", or "HardLink". Hard links are one file with several names.
        rank: target rank of the other file.
    """

    kind: Literal["Clone", "HardLink"]
    rank: int


class FileRecord(_Document, frozen=True):
    """One finished file.

    Attributes:
        rank: number of the target rank.
        path: path relative to the target.
        size: length in bytes.
        digest: digest of the content, as "xxh3-128:<hex>" (`xxhsum -H2` computes the same). For a file that an object store has
            assembled: "etag:<its ETag>".
        bytes_fetched: number of bytes of the source that were fetched for its tensors, see `reshard.storage.traffic.Traffic`. If
            several ranks shared what was fetched, each has a share, and the sum is exact.
        requests: number of requests that fetched them, likewise.
        bytes_copied: number of bytes that an object store copied from the source.
        verified: amount of its data that was compared with the source.
        stage: pipeline stage of the source that the file was created from. null means all stages.
        sample: digest of five blocks of the file, see `reshard.storage.digest.sample_of`.
        version: ETag of the written object. In a file system: size and modification time.
        seconds: duration of writing and verifying the file. A measurement, like `Manifest.durations`.
        rounded: number of elements whose value a cast has changed, including overflows. The manifest contains the number of each
            parameter only once, for all files, since its size would otherwise grow as files times parameters.
        overflowed: number of finite elements that a cast has made infinite.
        link: file of another rank that the file was created from. null means that it was written.
        tensors: digest of the names, types and slices of the tensors in the file, if its format has documents that follow from
            them. See `reshard.checkpoint.output.digest_of_tensors`.
    """

    rank: int
    path: FilePath
    size: int
    digest: str
    bytes_fetched: int
    requests: int
    bytes_copied: int
    verified: Verified
    stage: int | None = None
    sample: str = ""
    version: str = ""
    seconds: float = 0.0
    rounded: int = 0
    overflowed: int = 0
    link: LinkRecord | None = None
    tensors: str = ""

    @property
    def bytes_written(self) -> int:
        """Number of bytes that were written to create the file."""
        return 0 if self.link is not None else self.size


class IndexRecord(_Document, frozen=True):
    """The index that replaces files, see `reshard.source.index`: its size, and its digest in the form of a file's digest."""

    size: int
    digest: str

    @property
    def path(self) -> str:
        """Path relative to the target."""
        return INDEX_NAME


class LayoutRecord(_Document, frozen=True, omit_defaults=True):
    """The layout of a parameter on one side, see `reshard.layout.Layout`."""

    device_matrix: tuple[int, ...]
    tensor_map: tuple[tuple[int, ...], ...]
    shard_step: int = 0
    shard_size: int = 0
    uneven: bool = False
    stages: Annotated[tuple[int, ...], msgspec.Meta(min_length=1)] = (0,)


class KindRecord(_Document, frozen=True):
    """Properties that parameters of the same type, shape and layouts share.

    Attributes:
        dtype: name of the type in MindSpore.
        shape: lengths of the whole tensor.
        role: "cut", "replicated", "kept" or "own".
        source: layout in the source. null means that each holder has the whole parameter.
        target: layout in the target.
        source_dtype: type in the source, if it differs.
        source_shape: shape of the whole tensor in the source, if it differs.
    """

    dtype: str
    shape: tuple[int, ...]
    role: str
    source: LayoutRecord | None
    target: LayoutRecord
    source_dtype: str | None = None
    source_shape: tuple[int, ...] | None = None


class ParameterRecord(_Document, frozen=True, omit_defaults=True):
    """One parameter.

    Attributes:
        name: name in the files.
        kind: position of its kind in `ParameterTable.kinds`.
        source_name: name in the source, if it differs.
        keys: keys that lead to the value in nested dicts and lists, if the source states them.
        rounded: number of elements in all files whose value a cast has changed, including overflows. null if the parameter is not
            cast. If several records have a name, the first that is cast has the number of all.
        overflowed: number of finite elements in all files that a cast has made infinite, likewise.
        fingerprint: fingerprint of the whole tensor as it was written, as 16 hexadecimal digits, see
            `reshard.layout.fingerprint`. null if it is not known. In the draft of a manifest: that of the source.
    """

    name: str
    kind: int
    source_name: str | None = None
    keys: Keys | None = None
    rounded: int | None = None
    overflowed: int | None = None
    fingerprint: str | None = None

    @property
    def loss(self) -> Loss | None:
        """The changes that casts have made in all files. None: the parameter is not cast, or the changes are not known."""
        return None if self.rounded is None else Loss(self.rounded, self.overflowed or 0)

    def with_loss(self, loss: Loss | None) -> ParameterRecord:
        """Return the parameter with these changes of casts."""
        rounded, overflowed = (None, None) if loss is None else (loss.rounded, loss.overflowed)
        return msgspec.structs.replace(self, rounded=rounded, overflowed=overflowed)


class ParameterTable(_Document, frozen=True):
    """Parameters. Large models have many parameters, but few kinds.

    Attributes:
        kinds: kinds of the parameters.
        records: one record per parameter and layout.
    """

    kinds: tuple[KindRecord, ...] = ()
    records: tuple[ParameterRecord, ...] = ()

    def __post_init__(self) -> None:
        if not {record.kind for record in self.records} <= set(range(len(self.kinds))):
            raise ValueError("a parameter has a kind that does not exist")

    def __iter__(self) -> Iterator[tuple[ParameterRecord, KindRecord]]:
        """Yield each parameter with its kind."""
        return ((record, self.kinds[record.kind]) for record in self.records)


class SourceRecord(_Document, frozen=True):
    """The source of a transform.

    Attributes:
        url: URL of the source.
        format: format of its files.
        ranks: number of ranks.
        nbytes: total bytes of its files.
        versions: digest of the versions of its files, see `Inventory.versions`.
        listing: digest of the request and of the source as a listing shows it, see `source.files.listing_digest`. Empty if a
            listing does not identify content.
        step: requested training step.
        files: requested glob pattern of files.
        some: whether the files were known to be a part of a checkpoint, so that they may contain slices. A conversion of these
            files is not a complete checkpoint either.
    """

    url: str
    format: str
    ranks: int
    nbytes: int
    versions: str = ""
    listing: str = ""
    step: int | None = None
    files: str | None = None
    some: bool = False


class StageRecord(_Document, frozen=True):
    """The files of one pipeline stage, in a checkpoint that is written stage by stage.

    Attributes:
        stage: pipeline stage of the source that the files were created from.
        digest: digest of source, strategies and options, see `Manifest.digest`.
        source: source of this stage.
        ranks: target ranks that hold parameters of this stage, such as "0-3".
        stage_count: number of stages, if it was known.
        in_other_stages: names in the target strategy that this stage does not hold. Empty in a complete checkpoint.
        unmatched: rules of `options.rename` that apply to no parameter of this stage or, in a complete checkpoint, of any stage.
        unmatched_patterns: patterns of `options.include` and `options.exclude` that match nothing, likewise.
    """

    stage: int
    digest: str
    source: SourceRecord
    ranks: str
    stage_count: int | None = None
    in_other_stages: tuple[str, ...] = ()
    unmatched: tuple[RenameRule, ...] = ()
    unmatched_patterns: tuple[str, ...] = ()


class Manifest(_Document, frozen=True):
    """The manifest of a complete checkpoint.

    Attributes:
        schema: schema version of this document.
        version: version of the program that wrote it.
        digest: digest of source, strategies and options. Equal digests mean equal content.
        source: source of the transform.
        format: format of the files.
        ranks: ranks in this checkpoint, such as "0-5".
        target_ranks: number of ranks in the target's layout.
        options: options that determine the files.
        bytes_needed: number of bytes of source tensors that all target ranks require. What several of them require counts for
            each.
        bytes_distinct: number of bytes of source tensors that any target rank requires, each counted once.
        files: one record per rank. For a checkpoint written stage by stage: one per rank and stage.
        parameters: parameters in the files.
        source_only: names that only the source strategy has. They were left out.
        target_only: names that only the target strategy has. They were left out.
        not_in_files: names that the source strategy has, but no file.
        zero_size: names of tensors of shape [0]. They were left out, because MindSpore loads them from a `.ckpt` file as scalars
            without a value.
        objects: names of values that are not tensors. They were left out, because the format cannot hold them.
        excluded: names of source parameters that `options.include` and `options.exclude` left out.
        excluded_by_rename: names of source parameters that rules of `options.rename` left out.
        inconsistent_replicas: names of parameters whose copies differ between source ranks or stages, which the request accepts.
        stages: one record per pipeline stage, if the checkpoint was written stage by stage.
        index: index that replaces the files, with output Index.
        may_be_slices: names of parameters from MindSpore's `hyper_param.safetensors` that may be slices of rank 0, see
            `reshard.checkpoint.unified.possible_slices`.
        carried: small files of the source that were copied unchanged.
        layout: layout file of the target, if there was one. A later transform can scale it.
        key_check: value that identifies the key of encrypted files, see `BlockCipher.key_check`.
        notes: messages reported while it was written.
        durations: seconds of each phase, see `reshard.telemetry.durations`. Everything else follows from source and
            options, except the seconds and versions of files.
    """

    schema: str
    version: str
    digest: str
    source: SourceRecord
    format: str
    ranks: str
    target_ranks: int
    options: dict[str, Any]
    bytes_needed: int
    bytes_distinct: int
    files: tuple[FileRecord, ...]
    parameters: ParameterTable
    source_only: tuple[str, ...] = ()
    target_only: tuple[str, ...] = ()
    not_in_files: tuple[str, ...] = ()
    zero_size: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    excluded_by_rename: tuple[str, ...] = ()
    inconsistent_replicas: tuple[str, ...] = ()
    may_be_slices: tuple[str, ...] = ()
    stages: tuple[StageRecord, ...] = ()
    index: IndexRecord | None = None
    carried: tuple[CarriedFile, ...] = ()
    layout: LayoutDocument | None = None
    key_check: bytes | None = None
    notes: tuple[str, ...] = ()
    durations: dict[str, float] = {}

    @property
    def tasks(self) -> set[str]:
        """Digests of the tasks that wrote the checkpoint: its own, and those of its stages."""
        return {self.digest, *(record.digest for record in self.stages)}

    @property
    def nbytes(self) -> int:
        """Total bytes of all listed files."""
        return sum(record.size for record in self.listed)

    @property
    def listed(self) -> tuple[FileRecord | IndexRecord | CarriedFile, ...]:
        """Everything in the checkpoint except this document."""
        return (*self.files, *self.carried, *([] if self.index is None else [self.index]))


class _Versioned(msgspec.Struct):
    schema: str


T = TypeVar("T")
_RECORDS_TOGETHER = 4096
# Around indented records at their level of the document.
_BEFORE_NESTED, _AFTER_NESTED = b'{\n  "": {\n    "": [', b"\n    ]\n  }\n}"


def encode(document: msgspec.Struct) -> bytes:
    """Return a document as JSON."""
    return msgspec.json.encode(document)


def indented(manifest: Manifest) -> Iterator[bytes]:
    """Yield a manifest as indented JSON, in several parts: the text of many parameters takes more memory than they do."""
    table = manifest.parameters
    rest = msgspec.structs.replace(manifest, parameters=ParameterTable(table.kinds))
    before, records, after = msgspec.json.format(encode(rest), indent=2).partition(b'"records": []')
    yield before + records[:-1]
    for at in range(0, len(table.records), _RECORDS_TOGETHER):
        some = msgspec.json.encode({"": {"": table.records[at : at + _RECORDS_TOGETHER]}})
        text = msgspec.json.format(some, indent=2).removeprefix(_BEFORE_NESTED).removesuffix(_AFTER_NESTED)
        yield b"," + text if at else text
    yield (b"\n    ]" if table.records else b"]") + after + b"\n"


def decode(content: bytes, kind: type[T], where: str, *, fix: str = "delete the file and run the transform again") -> T:
    """Read a document from JSON. Errors contain the remedy `fix`.

    Raises:
        DataError: the document is damaged, or has another schema.
    """
    try:
        if kind is Manifest and (schema := msgspec.json.decode(content, type=examined(_Versioned)).schema) != SCHEMA:
            raise DataError(
                "SchemaUnknown",
                f"the schema {schema[:100]!r} is not supported; {SCHEMA} is required",
                where=where,
                fix="use the version of reshard that wrote it",
            )
        return msgspec.json.decode(content, type=examined(kind))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise DataError("DocumentInvalid", str(error), where=where, fix=fix) from error
