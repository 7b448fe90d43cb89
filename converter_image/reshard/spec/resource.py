"""The spec of a CheckpointTransform, as frozen and validated data.

The operator also imports this module, so it does not import other packages of the converter, such as numpy and storages.
"""

from __future__ import annotations

from reprlib import repr as shortened
from typing import TYPE_CHECKING, Annotated

import msgspec

from reshard.errors import RequestError, UsageError
from reshard.spec.execution import ExecutionSpec, Strict
from reshard.spec.keys import Mode
from reshard.spec.layout import LayoutDocument, Scale, with_text_keys
from reshard.spec.outputs import OUTPUTS, OutputKind
from reshard.spec.places import ConfigMapKeyRef, RelativePath, SecretKeyRef, StorageSpec
from reshard.spec.request import (
    CopyMode,
    LinkReplicas,
    OutputFormat,
    Overwrite,
    Replicas,
    SourceFormat,
    SourceOnly,
    Stages,
    TargetRanks,
    Verification,
)
from reshard.spec.rules import CastRule, PadRule, Patterns, RenameRule
from reshard.spec.urls import is_url
from reshard.structs import examined

if TYPE_CHECKING:
    from reshard.spec.outputs import Output

API_VERSION = "reshard.dev/v1alpha1"
KIND = "CheckpointTransform"
FilePrefix = Annotated[str, msgspec.Meta(max_length=128, pattern=r"^[^/\x00-\x1f]*$")]


class StrategySpec(Strict, frozen=True):
    """The location of a strategy: a file, a folder with one file per pipeline stage, or an entry of a ConfigMap.

    Attributes:
        path: path relative to the root of the volume or bucket.
        storage: storage of the path. Absent means that of the checkpoint.
        config_map_key_ref: entry of a ConfigMap instead of a path, for a strategy that is small enough.
    """

    path: RelativePath | None = None
    storage: StorageSpec | None = None
    config_map_key_ref: ConfigMapKeyRef | None = None

    def __post_init__(self) -> None:
        """Check that the strategy has exactly one location. msgspec adds the name of the field that contains this value."""
        if bool(self.path) == (self.config_map_key_ref is not None):
            raise ValueError("Expected either `path` or `configMapKeyRef`")
        if self.storage is not None and not self.path:
            raise ValueError("`storage` requires `path`")


class FilesSpec(Strict, frozen=True):
    """The selection of each rank's file, if there are several. Absent means the newest step that every rank has."""

    step: Annotated[int, msgspec.Meta(ge=0)] | None = None
    pattern: Annotated[str, msgspec.Meta(min_length=1, max_length=256)] | None = None


class EncryptionSpec(Strict, frozen=True):
    """The encryption of one side's files.

    Attributes:
        secret_key_ref: raw key, without additional hexadecimal or base64 encoding in the Secret.
        mode: mode of MindSpore's encryption.
    """

    secret_key_ref: SecretKeyRef
    mode: Mode = "AES-GCM"


class SourceSpec(Strict, frozen=True):
    """The checkpoint to read."""

    storage: StorageSpec
    format: SourceFormat | None = None
    strategy: StrategySpec | None = None
    layout: LayoutDocument | None = None
    files: FilesSpec = FilesSpec()
    allow_single_rank: bool = False
    allow_equal_slices: bool = False
    stages: Stages | None = None
    replicas: Replicas = "Identical"
    decryption: EncryptionSpec | None = None

    def __post_init__(self) -> None:
        """Refuse two descriptions of the layouts."""
        _check_layouts(self)


class TargetSpec(Strict, frozen=True):
    """The checkpoint to write. Fields that contradict the output or the format are refused, also by the rules of the CRD."""

    storage: StorageSpec
    strategy: StrategySpec | None = None
    layout: LayoutDocument | None = None
    format: OutputFormat = "Source"
    output: OutputKind = "PerRank"
    max_file_size_bytes: Annotated[int, msgspec.Meta(ge=1 << 10)] | None = None
    copy_settings: bool = False
    file_prefix: FilePrefix = "checkpoint_"
    scale: Scale | None = None
    ranks: TargetRanks | None = None
    only_ranks: Annotated[str, msgspec.Meta(max_length=65536)] | None = None
    write_strategy: bool = False
    remove_redundancy: bool = False
    crc: bool = False
    copy_mode: CopyMode = "Client"
    link_replicas: LinkReplicas = "Never"
    file_mode: Annotated[str, msgspec.Meta(pattern=r"^0?[4-7][0-7]{2}\Z")] | None = None
    encryption: EncryptionSpec | None = None

    def __post_init__(self) -> None:
        """Refuse two descriptions of the layouts."""
        _check_layouts(self)

    @property
    def kind(self) -> Output:
        """The output by its name."""
        return OUTPUTS[self.output]


def _check_layouts(side: SourceSpec | TargetSpec) -> None:
    if side.strategy is not None and side.layout is not None:
        raise ValueError("Expected either `strategy` or `layout`")


class ParametersSpec(Strict, frozen=True):
    """The parameters to write, their new names and types, and the handling of those that only one of the strategies names."""

    include: Patterns = ()
    exclude: Patterns = ()
    rename: Annotated[tuple[RenameRule, ...], msgspec.Meta(max_length=1024)] = ()
    cast: Annotated[tuple[CastRule, ...], msgspec.Meta(max_length=1024)] = ()
    pad: Annotated[tuple[PadRule, ...], msgspec.Meta(max_length=1024)] = ()
    source_only: SourceOnly = "Drop"
    allow_missing: bool = False
    allow_inconsistent: Patterns = ()

    def __post_init__(self) -> None:
        """Refuse the values that the schema of the resource refuses."""
        if any(rule.to is None for rule in self.rename):
            raise ValueError("Expected `str`, got `null` - at `rename[...].to`")


class TransformSpec(Strict, frozen=True):
    """The spec of a CheckpointTransform."""

    source: SourceSpec
    target: TargetSpec
    parameters: ParametersSpec = ParametersSpec()
    execution: ExecutionSpec = ExecutionSpec()
    verification: Verification = "Sample"
    overwrite: Overwrite = "Never"
    dry_run: bool = False
    suspend: bool = False


def parse_resource(text: str, where: str) -> TransformSpec:
    """Parse the spec of the only CheckpointTransform in a YAML (or JSON) text.

    Raises:
        UsageError: the text is not such a resource, or a field is invalid. The message names the field.
    """
    from reshard.strictyaml import documents  # noqa: PLC0415 - pods and the operator read no YAML, and start faster without it

    found = [d for d in documents(text, where) if isinstance(d, dict) and d.get("kind") == KIND]
    if len(found) != 1:
        raise UsageError(
            "ResourceMissing", f"expected one {KIND}, found {len(found)}", where=where, fix=f"use a file that contains one {KIND}"
        )
    if found[0].get("apiVersion") != API_VERSION:
        raise UsageError(
            "WrongApiVersion",
            f"apiVersion {shortened(found[0].get('apiVersion'))} is not {API_VERSION}",
            where=where,
            fix=f"set apiVersion: {API_VERSION}",
        )
    return parse_spec(found[0].get("spec"), where)


def decode_spec(content: bytes, where: str) -> TransformSpec:
    """Parse the spec of a CheckpointTransform in JSON, as the pods of the operator get it.

    Raises:
        UsageError: the content is not JSON, or a field is invalid. The message names it.
    """
    try:
        document = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(
            "InvalidSpec",
            f"the spec is not JSON: {error}",
            where=where,
            fix="let the operator run this command: it configures the pod",
        ) from error
    return parse_spec(document, where)


def parse_spec(document: object, where: str) -> TransformSpec:
    """Parse the spec of a CheckpointTransform.

    Raises:
        UsageError: a field is invalid. The message names it.
    """
    try:
        spec = msgspec.convert(with_text_keys(document), examined(TransformSpec))
    except msgspec.ValidationError as error:
        raise UsageError(
            "InvalidField",
            str(error).replace("`$", "`spec"),
            where=where,
            fix="correct the field; `kubectl explain checkpointtransform.spec` describes it",
        ) from error
    for path, name in _paths(spec):
        check_relative(path, name)
    return spec


def parse_rename_rules(text: str, where: str) -> tuple[RenameRule, ...]:
    """Parse a YAML (or JSON) text with a list of rename rules, as in `spec.parameters.rename`.

    Raises:
        UsageError: the text is not such a list, or a rule is invalid.
    """
    from reshard.strictyaml import documents  # noqa: PLC0415 - as in parse_resource

    found = documents(text, where)
    try:
        return msgspec.convert({"rename": found[0] if len(found) == 1 else None}, ParametersSpec).rename
    except msgspec.ValidationError as error:
        raise UsageError(
            "InvalidRename",
            "the file is not a list of rename rules: " + str(error).replace("`$.", "`"),
            where=where,
            fix="use a list with items such as {from: old.w, to: new.w} or {pattern: old.*, to: new.*}",
        ) from error


def check_relative(path: str, where: str) -> None:
    """Check that a path is below the root of a volume or bucket.

    Raises:
        RequestError: the path is a URL.
        UsageError: the path may lead outside of the root.
    """
    if is_url(path):
        raise RequestError(
            "UnsupportedScheme",
            f"{path!r} is a URL; the path must be relative to the volume or bucket",
            where=where,
            fix="use a path like checkpoints/run-1; for an object store, set storage.s3",
        )
    if (path and any(part in {"", ".", ".."} for part in path.split("/"))) or "\x00" in path:
        raise UsageError(
            "InvalidPath",
            f"{path!r} must be relative to the volume or bucket, must not contain '.' or '..' segments or '//',"
            " and must not begin or end with '/'",
            where=where,
            fix="use a path like checkpoints/run-1",
        )


def _paths(spec: TransformSpec) -> list[tuple[str, str]]:
    paths = []
    for side, part in (("source", spec.source), ("target", spec.target)):
        paths.append((part.storage.path, f"spec.{side}.storage.{part.storage.field}"))
        if part.strategy is not None:
            paths.append((part.strategy.path or "", f"spec.{side}.strategy.path"))
            if (inner := part.strategy.storage) is not None:
                paths.append((inner.path, f"spec.{side}.strategy.storage.{inner.field}"))
    return paths
