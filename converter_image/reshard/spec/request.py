"""The request of one transform, with all locations resolved. All data is frozen and validated."""

from __future__ import annotations

import os
import re
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import msgspec

from reshard.errors import UsageError
from reshard.spec.keys import Encryption
from reshard.spec.layout import LayoutDocument, Scale, parse_layout
from reshard.spec.outputs import OUTPUTS, OutputKind
from reshard.spec.rules import CastRule, PadRule, Patterns, RenameRule, check_pads, check_renames
from reshard.spec.storage_options import RequestStorageOptions
from reshard.spec.urls import normalized
from reshard.structs import examined

if TYPE_CHECKING:
    from reshard.spec.outputs import Output

# "Source" and Reshard's own formats. The names of other packages' formats are in lower case.
FORMATS = ("Source", "Ckpt", "Safetensors", "HuggingFace", "TorchDcp", "TorchSafetensors", "Megatron")
OutputFormat = Annotated[str, msgspec.Meta(pattern=f"^({'|'.join(FORMATS)}|[a-z0-9][a-z0-9-]{{0,62}})$")]
SourceFormat = Annotated[str, msgspec.Meta(pattern="^[a-z0-9][a-z0-9-]{0,62}$")]
TargetRanks = Annotated[int, msgspec.Meta(ge=1, le=65536)]
SourceOnly = Literal["Drop", "Keep"]
Replicas = Literal["Identical", "LowestRank"]
Verification = Literal["None", "Sample", "Full"]
Overwrite = Literal["Never", "Replace"]
CopyMode = Literal["Client", "Server"]
LinkReplicas = Literal["Never", "Clone", "HardLink"]
Stages = Annotated[int, msgspec.Meta(ge=1, le=65536)]

LEAST_MODE = 0o400  # the owner can read
# A higher level includes the checks of the lower ones.
STRICTNESS: dict[Verification, int] = {"None": 0, "Sample": 1, "Full": 2}
_LONGEST_PREFIX_BYTES = 128


def check_prefix(prefix: str) -> None:
    """Check a prefix of file names.

    Raises:
        UsageError: files cannot have such names, or would not be recognized as checkpoint files.
    """
    problem = None
    if "/" in prefix or not prefix.isprintable():
        problem = "a file name cannot start like this"
    elif len(prefix.encode()) > _LONGEST_PREFIX_BYTES:
        problem = f"the prefix is longer than {_LONGEST_PREFIX_BYTES} bytes"
    elif prefix.startswith("."):
        problem = "hidden files are not recognized as checkpoint files"
    elif re.search(r"-[0-9]+_$", prefix):
        problem = "the ranks that follow it would be read as training steps"
    if problem is not None:
        fix = "use another prefix, such as checkpoint_"
        raise UsageError("InvalidPrefix", f"{prefix!r}: {problem}", where="file_prefix", fix=fix)


class Options(msgspec.Struct, frozen=True):
    """The options of a transform. The defaults are those of the resource.

    Raises:
        UsageError: a value is invalid, or two values contradict each other. A transform also checks them against its format.

    Attributes:
        format: format of the target. "Source" means the format of the source if it is one of MindSpore's, and safetensors
            otherwise. "HuggingFace" implies the output "Unified". A format of another package has the name of its entry
            point.
        source_format: format of the source. None means that it is detected from the file names.
        target_ranks: number of target ranks. Each gets a chunk of dimension 0 of the tensors, as in FSDP. None means that the
            target strategy determines the ranks.
        output: files to write. "PerRank" means one file for each rank, sharded by the target strategy. "Stage" is like "PerRank",
            with the parameters of one pipeline stage of the source. "Unified" means whole parameters in files of limited size.
            "Same" means the source's files, converted one by one. "Index" means only an index of the source.
        max_file_size_bytes: maximum size of a unified file. Each larger parameter is written to a separate file. None means 3
            GiB.
        copy_settings: whether to copy the configuration of the model and of its tokenizer, with the format "HuggingFace".
        file_prefix: prefix of file names. The rank and the extension of the format follow.
        numbered: whether file names contain the rank. The names of their folders always contain it.
        step: training step to read. None means the newest step that every rank has.
        files: glob pattern of the files to read. A pattern with a `/` matches paths in the source, otherwise names.
        allow_single_rank: whether to read the folder or file of one rank as a complete checkpoint, even if other ranks are next
            to it.
        allow_equal_slices: whether to accept ranks with equal content, even if the source strategy assigns them different slices.
        stages: number of pipeline stages of the source, for the output "Stage". None means that the source's ranks determine it.
        only_ranks: target ranks to write, such as "0,2-5". None means all.
        source_only: handling of parameters that only the source strategy names. "Drop" omits them. "Keep" copies them whole.
        allow_missing: whether to omit parameters that only the target strategy names, instead of raising an error.
        write_strategy: whether to write the layout of the target as a strategy file of MindSpore, next to the folders of ranks.
        remove_redundancy: whether to write each replicated slice once, on one of the ranks that hold it.
        include: patterns of parameters to write, by their names in the source. `*` matches any characters. Empty means all.
        exclude: patterns of parameters to omit, among those. A target strategy may name them.
        rename: rules that rename parameters.
        cast: rules that cast parameters to another floating-point type. The first rule that matches a name in the source applies.
        pad: rules that pad dimensions of parameters with zeros, or trim zeros.
        allow_inconsistent: patterns of parameters that no strategy names and whose copies may differ between source ranks, or
            that may be slices in MindSpore's `hyper_param.safetensors`. `*` matches any characters. Target rank r gets the copy
            of source rank r modulo the number of source ranks.
        replicas: handling of slices that several source ranks hold. "Identical" raises an error if they differ, and reads any of
            them. "LowestRank" reads each slice from the lowest rank that holds it.
        crc: whether to write a CRC32 to each file, for MindSpore's `crc_check`.
        file_mode: permission bits of files, with which the owner can read them. Folders also get search permission for each class
            that has read permission. None means 0666 for files and 0777 for folders, minus the umask.
        verification: amount of written data that is compared with the source.
        overwrite: whether an existing checkpoint in the target is replaced.
        copy_mode: method of copying data between object stores. "Client" copies through this process. "Server" lets the store
            copy where possible.
        link_replicas: method of creating files whose content is equal to that of another rank's file. "Never" writes them in
            full. "Clone" clones the file, and "HardLink" links it, where the target's file system supports this. A program that
            changes a hard-linked file in place changes it for all ranks.
    """

    format: OutputFormat = "Source"
    source_format: SourceFormat | None = None
    target_ranks: TargetRanks | None = None
    output: OutputKind = "PerRank"
    max_file_size_bytes: Annotated[int, msgspec.Meta(ge=1 << 10)] | None = None
    copy_settings: bool = False
    file_prefix: str = "checkpoint_"
    numbered: bool = True
    step: int | None = None
    files: str | None = None
    allow_single_rank: bool = False
    allow_equal_slices: bool = False
    stages: Stages | None = None
    only_ranks: str | None = None
    source_only: SourceOnly = "Drop"
    allow_missing: bool = False
    write_strategy: bool = False
    remove_redundancy: bool = False
    include: Patterns = ()
    exclude: Patterns = ()
    rename: tuple[RenameRule, ...] = ()
    cast: tuple[CastRule, ...] = ()
    pad: tuple[PadRule, ...] = ()
    allow_inconsistent: Patterns = ()
    replicas: Replicas = "Identical"
    crc: bool = False
    file_mode: Annotated[int, msgspec.Meta(ge=LEAST_MODE, le=0o777)] | None = None
    verification: Verification = "Sample"
    overwrite: Overwrite = "Never"
    copy_mode: CopyMode = "Client"
    link_replicas: LinkReplicas = "Never"

    def __post_init__(self) -> None:
        """Validate the values, also for callers without a type checker."""
        for name, field in _declared().items():
            value = getattr(self, name)
            try:
                msgspec.convert(value, field.type)
            except msgspec.ValidationError as error:
                raise UsageError("InvalidOption", f"{value!r}: {error}", where=name, fix=_fix(field.type)) from error
        check_prefix(self.file_prefix)
        if not (self.file_prefix or self.numbered):
            raise UsageError(
                "InvalidPrefix",
                "the prefix is required, because these file names contain no number",
                where="file_prefix",
                fix="use a prefix such as checkpoint_",
            )
        check_renames(self.rename)
        check_pads(self.pad)
        _refuse(self, self.kind)
        if self.source_format is not None and (self.step is not None or self.files is not None):
            where = "files" if self.step is None else "step"
            what, fix = "the metadata of the source's format determines its files", f"omit {where}, or omit the source format"
            raise UsageError("InvalidOption", what, where=where, fix=fix)

    @property
    def kind(self) -> Output:
        """The output by its name."""
        return OUTPUTS[self.output]

    @property
    def most_bytes(self) -> int:
        """The maximum size of a unified file in bytes."""
        return self.max_file_size_bytes or 3 << 30


@cache
def _declared() -> dict[str, msgspec.structs.FieldInfo]:
    """Return the declaration of each option."""
    return {field.name: field for field in msgspec.structs.fields(Options)}


def _default(option: str) -> object:
    return _declared()[option].default


def _fix(kind: object) -> str:
    """Return the remedy for a value of a wrong type. It lists the values of an enumeration."""
    return f"use one of {', '.join(get_args(kind))}" if get_origin(kind) is Literal else "correct the value, or omit it"


# Options that decide what is read from a source, and are therefore fixed in its index.
SETTLED_BY_INDEX = (
    "target_ranks",
    "allow_single_rank",
    "allow_equal_slices",
    "source_only",
    "allow_missing",
    "include",
    "exclude",
    "rename",
    "cast",
    "pad",
    "allow_inconsistent",
    "replicas",
)
_OF_THE_SOURCE = ("source_format", "step", "files", *SETTLED_BY_INDEX)


def _refuse(asked: Options | Request, output: Output) -> None:
    """Check that no field contradicts the output.

    Raises:
        UsageError: a field that does not apply to the output has another value than its default.
    """
    for each in msgspec.structs.fields(asked):
        refusal = output.refused.get(each.name)
        if refusal is not None and getattr(asked, each.name) != each.default:
            where = each.name if isinstance(asked, Options) else each.name.replace("_", " ")
            raise UsageError("InvalidOption", refusal.what, where=where, fix=refusal.fix)


class Request(msgspec.Struct, frozen=True):
    """One transform. Locations are paths or s3://bucket/prefix.

    Attributes:
        source: folder with `rank_<r>/`, or a single file.
        target: folder to write.
        source_strategy: strategy file, folder with one file per pipeline stage, or layout file; or the content of a layout file,
            also as a dict. None means the layouts in the manifest of the source. Without a manifest, it means one rank with whole
            parameters.
        target_strategy: layouts of the target, in the same forms. None means one rank with whole parameters.
        options: options of the transform.
        index: target of a transform with output "Index". Used instead of the strategies and file headers.
        storage_options: options of object stores.
        decryption: key of the source. None means that it is not encrypted.
        encryption: key of the target. None means that it is not encrypted.
        scale: changes of the sizes of the axes of the source's layout, such as "dp=2", "tp/2" or "dp*2,tp/2". The target has that
            layout with these sizes. Used instead of a target strategy.
    """

    source: str
    target: str
    source_strategy: str | LayoutDocument | None = None
    target_strategy: str | LayoutDocument | None = None
    options: Options = Options()
    storage_options: RequestStorageOptions = RequestStorageOptions()
    index: str | None = None
    decryption: Encryption | None = None
    encryption: Encryption | None = None
    scale: Scale | None = None

    def __post_init__(self) -> None:
        """Validate and normalize the values. Messages never contain a value that may be a key."""
        for name in ("decryption", "encryption"):
            if not isinstance(getattr(self, name), Encryption | None):
                raise UsageError(
                    "InvalidOption",
                    "the value must be a reshard.Encryption",
                    where=name,
                    fix="pass reshard.Encryption(reshard.Key(file=...))",
                )
        for name in ("source", "target", "source_strategy", "target_strategy", "index"):
            value: object = getattr(self, name)
            if isinstance(value, os.PathLike):
                value = os.fspath(value)
            if isinstance(value, str):
                msgspec.structs.force_setattr(self, name, normalized(value))
            elif isinstance(value, dict) and name.endswith("strategy"):
                msgspec.structs.force_setattr(self, name, parse_layout(value, name))
            elif not (
                (isinstance(value, LayoutDocument) and name.endswith("strategy"))
                or (value is None and name.endswith(("strategy", "index")))
            ):
                raise UsageError("InvalidOption", f"{value!r} is not a path", where=name, fix="pass a str or an os.PathLike")
        _check_scale(self)
        _refuse(self, self.options.kind)
        if self.target_strategy and self.options.target_ranks is not None:
            raise UsageError(
                "InvalidOption",
                "the target strategy already determines the number of target ranks",
                where="target_ranks",
                fix="omit the number of target ranks, or omit the strategy to divide tensors along dimension 0",
            )
        if self.index is not None:
            _refuse_what_an_index_says(self)


def _check_scale(request: Request) -> None:
    """Check the form of the scale, and that nothing else determines the ranks of the target.

    Raises:
        UsageError: the form is invalid, or something else determines the ranks.
    """
    if request.scale is None:
        return
    try:
        msgspec.convert(request.scale, examined(Scale))
    except msgspec.ValidationError as error:
        raise UsageError(
            "InvalidScale", f"{request.scale!r}: {error}", where="scale", fix="use changes such as dp=2 or tp/2"
        ) from None
    if request.target_strategy is not None or request.options.target_ranks is not None:
        what = "the target strategy or the number of target ranks already determines the layout"
        raise UsageError("InvalidOption", what, where="scale", fix="omit the scale, or the other")


def _refuse_what_an_index_says(request: Request) -> None:
    """Refuse strategies and options that were fixed when the source was indexed.

    Raises:
        UsageError: one is given.
    """
    said = [name for name in ("source_strategy", "target_strategy", "scale") if getattr(request, name) is not None]
    said += [name for name in _OF_THE_SOURCE if getattr(request.options, name) != _default(name)]
    if said:
        raise UsageError(
            "InvalidOption", "the index already defines it", where=said[0], fix="omit it, or create the index again with it"
        )


def request_key(request: Request) -> dict[str, Any]:
    """Return the fields of a request that determine the content of the target, without locations, checks and keys."""
    options = request.options
    encrypted = {"encryption": request.encryption.mode} if request.encryption is not None else {}
    return encrypted | {
        "format": options.format,
        "sourceFormat": options.source_format,
        "targetRanks": options.target_ranks,
        "copySettings": options.copy_settings,
        "output": options.output,
        "maxFileSizeBytes": options.most_bytes if options.kind.whole else None,
        "filePrefix": options.file_prefix,
        "numbered": options.numbered,
        "allowSingleRank": options.allow_single_rank,
        "allowEqualSlices": options.allow_equal_slices,
        "sourceOnly": options.source_only,
        "allowMissing": options.allow_missing,
        "writeStrategy": options.write_strategy,
        "removeRedundancy": options.remove_redundancy,
        "include": list(options.include),
        "exclude": list(options.exclude),
        "rename": [msgspec.to_builtins(rule) for rule in options.rename],
        "cast": [msgspec.to_builtins(rule) for rule in options.cast],
        "pad": [msgspec.to_builtins(rule) for rule in options.pad],
        "allowInconsistent": list(options.allow_inconsistent),
        "replicas": options.replicas,
        "crc": options.crc,
    }
