"""What a user asks for: the spec of a CheckpointTransform, and the request that one process carries out. Frozen, validated data.

Imported by the operator too, so it needs nothing of the converter: no numpy, no storage.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
import yaml

from reshard.errors import RequestError, UsageError

API_VERSION = "reshard.dev/v1alpha1"
KIND = "CheckpointTransform"

OutputFormat = Literal["Source", "Ckpt", "Safetensors"]
Unplaced = Literal["Drop", "Keep"]
Verification = Literal["None", "Sample", "Full"]
Overwrite = Literal["Never", "Replace"]

RelativePath = Annotated[str, msgspec.Meta(max_length=1024)]
FilePrefix = Annotated[str, msgspec.Meta(max_length=128, pattern=r"^[^/\x00-\x1f]*$")]


class _Spec(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True, omit_defaults=True):
    """Resources are written in camelCase; what is not known is refused, so that a typing error is never ignored."""


class ClaimSpec(_Spec, frozen=True):
    """A folder of a PersistentVolumeClaim."""

    claim_name: Annotated[str, msgspec.Meta(min_length=1, max_length=253)]
    path: RelativePath = ""


class StorageSpec(_Spec, frozen=True):
    """Where files are."""

    persistent_volume_claim: ClaimSpec


class StrategySpec(_Spec, frozen=True):
    """Where a strategy is: a file, or a folder with a file for each pipeline stage.

    Attributes:
        path: from the volume's root.
        storage: which volume; absent: that of the checkpoint.
    """

    path: RelativePath
    storage: StorageSpec | None = None


class FilesSpec(_Spec, frozen=True):
    """Which file of each rank is meant, where there are several. Absent: the newest step that every rank has."""

    step: Annotated[int, msgspec.Meta(ge=0)] | None = None
    pattern: Annotated[str, msgspec.Meta(min_length=1, max_length=256)] | None = None


class SourceSpec(_Spec, frozen=True):
    """The checkpoint to read."""

    storage: StorageSpec
    strategy: StrategySpec | None = None
    files: FilesSpec = FilesSpec()


class TargetSpec(_Spec, frozen=True):
    """The checkpoint to write."""

    storage: StorageSpec
    strategy: StrategySpec | None = None
    format: OutputFormat = "Source"
    file_prefix: FilePrefix = "checkpoint_"
    ranks: Annotated[str, msgspec.Meta(max_length=65536)] | None = None
    crc: bool = False
    file_mode: Annotated[str, msgspec.Meta(pattern="^0?[0-7]{3}$")] = "0640"


class ParametersSpec(_Spec, frozen=True):
    """What happens to parameters that only one of the two strategies names."""

    unplaced: Unplaced = "Drop"
    allow_missing: bool = False


class TransformSpec(_Spec, frozen=True):
    """The spec of a CheckpointTransform."""

    source: SourceSpec
    target: TargetSpec
    parameters: ParametersSpec = ParametersSpec()
    verification: Verification = "Sample"
    overwrite: Overwrite = "Never"
    dry_run: bool = False


class Options(msgspec.Struct, frozen=True):
    """How to transform, apart from where. The defaults are those of the resource.

    Attributes:
        format: of the target's files.
        prefix: their names are the prefix, the rank and the format's extension.
        step: read the files of this training step.
        pattern: read the files whose names match this shell pattern.
        ranks: only these target ranks, such as "0,2-5".
        unplaced: what happens to parameters that only the source's strategy names.
        allow_missing: leave out what only the target's strategy names.
        crc: write the CRC32 that MindSpore checks.
        file_mode: permission bits of what is written.
        verification: how much of what was written is compared with the source.
        overwrite: whether another checkpoint at the target may be replaced.
    """

    format: OutputFormat = "Source"
    prefix: FilePrefix = "checkpoint_"
    step: int | None = None
    pattern: str | None = None
    ranks: str | None = None
    unplaced: Unplaced = "Drop"
    allow_missing: bool = False
    crc: bool = False
    file_mode: int = 0o640
    verification: Verification = "Sample"
    overwrite: Overwrite = "Never"


class Request(msgspec.Struct, frozen=True):
    """One transform, with every place resolved to a folder.

    Attributes:
        source: the folder with `rank_<r>/`, or one file.
        target: the folder to write to.
        source_strategy: a file or a folder of stages; None: the source is one whole rank.
        target_strategy: the same for the target.
        options: how.
    """

    source: str
    target: str
    source_strategy: str | None = None
    target_strategy: str | None = None
    options: Options = Options()


def parse_resource(text: str, where: str) -> TransformSpec:
    """The spec of the one CheckpointTransform in a YAML (or JSON) text.

    Raises:
        UsageError: it is no such resource, or a field is wrong; the message names the field.
    """
    try:
        documents = [d for d in yaml.safe_load_all(text) if d is not None]
    except yaml.YAMLError as error:
        raise UsageError("NotYaml", str(error).replace("\n", " "), where=where) from error
    found = [d for d in documents if isinstance(d, dict) and d.get("kind") == KIND]
    if len(found) != 1:
        raise UsageError("ResourceMissing", f"one {KIND} is expected, {len(found)} are there", where=where)
    if found[0].get("apiVersion") != API_VERSION:
        raise UsageError("WrongApiVersion", f"apiVersion {found[0].get('apiVersion')!r} is not {API_VERSION}", where=where)
    try:
        spec = msgspec.convert(found[0].get("spec"), TransformSpec)
    except msgspec.ValidationError as error:
        raise UsageError("InvalidField", str(error).replace("`$", "`spec"), where=where) from error
    for path, name in _paths(spec):
        check_relative(path, name)
    return spec


def to_request(spec: TransformSpec, volumes: dict[str, str]) -> Request:
    """The request of a resource, given the folder that stands for each claim.

    Raises:
        UsageError: a claim has no folder.
        RequestError: the spec contradicts itself.
    """
    target = spec.target
    return Request(
        source=_folder(spec.source.storage, volumes, "spec.source.storage"),
        target=_folder(target.storage, volumes, "spec.target.storage"),
        source_strategy=_strategy(spec.source.strategy, spec.source.storage, volumes, "spec.source.strategy"),
        target_strategy=_strategy(target.strategy, target.storage, volumes, "spec.target.strategy"),
        options=Options(
            format=target.format,
            prefix=target.file_prefix,
            step=spec.source.files.step,
            pattern=spec.source.files.pattern,
            ranks=target.ranks,
            unplaced=spec.parameters.unplaced,
            allow_missing=spec.parameters.allow_missing,
            crc=target.crc,
            file_mode=int(target.file_mode, 8),
            verification=spec.verification,
            overwrite=spec.overwrite,
        ),
    )


def parse_ranks(text: str, total: int | None = None) -> tuple[int, ...]:
    """Ranks such as "0,2-5", ascending and without repetition.

    Raises:
        UsageError: the text is no such list.
        RequestError: a rank is not below `total`.
    """
    ranks: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,9})(?:-([0-9]{1,9}))?\s*", part)
        if match is None:
            raise UsageError("InvalidRanks", f"{text!r} is no list of ranks", where="ranks", fix="write it like 0,2-5")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UsageError("InvalidRanks", f"{part.strip()!r} runs backwards", where="ranks", fix="write it like 0,2-5")
        if total is not None and last >= total:
            raise RequestError("NoSuchRank", f"rank {last} does not exist, the target has {total} ranks", where="ranks")
        if last - first >= 1 << 24:
            raise UsageError("InvalidRanks", f"{part.strip()!r} is too long", where="ranks")
        ranks.update(range(first, last + 1))
    return tuple(sorted(ranks))


def format_ranks(ranks: tuple[int, ...]) -> str:
    """The opposite of `parse_ranks`.

    >>> format_ranks((0, 2, 3, 4, 7))
    '0,2-4,7'
    """
    parts: list[list[int]] = []
    for rank in sorted(ranks):
        if parts and parts[-1][1] == rank - 1:
            parts[-1][1] = rank
        else:
            parts.append([rank, rank])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def check_relative(path: str, where: str) -> None:
    """A path below a volume's root: nothing in it may lead elsewhere.

    Raises:
        UsageError: it may.
    """
    if (path and any(part in {"", ".", ".."} for part in path.split("/"))) or "\x00" in path:
        raise UsageError(
            "InvalidPath",
            f"{path!r} must be relative to the volume, without '.', '..', '//' or a '/' at either end",
            where=where,
        )


def _paths(spec: TransformSpec) -> list[tuple[str, str]]:
    paths = []
    for side, part in (("source", spec.source), ("target", spec.target)):
        paths.append((part.storage.persistent_volume_claim.path, f"spec.{side}.storage.persistentVolumeClaim.path"))
        if part.strategy is not None:
            paths.append((part.strategy.path, f"spec.{side}.strategy.path"))
    return paths


def _folder(storage: StorageSpec, volumes: dict[str, str], where: str, path: str | None = None) -> str:
    claim = storage.persistent_volume_claim
    root = volumes.get(claim.claim_name)
    if root is None:
        raise UsageError(
            "VolumeMissing",
            f"no folder is given for the claim {claim.claim_name!r}",
            where=where,
            fix=f"add --volume {claim.claim_name}=DIR",
        )
    below = claim.path if path is None else path
    return f"{root.rstrip('/') or '/'}/{below}" if below else root


def _strategy(strategy: StrategySpec | None, storage: StorageSpec, volumes: dict[str, str], where: str) -> str | None:
    if strategy is None:
        return None
    return _folder(strategy.storage or storage, volumes, where, strategy.path)


def request_key(request: Request) -> dict[str, Any]:
    """What of a request decides what is written, wherever it is written and however it is checked."""
    options = request.options
    return {
        "format": options.format,
        "prefix": options.prefix,
        "unplaced": options.unplaced,
        "allowMissing": options.allow_missing,
        "crc": options.crc,
    }
