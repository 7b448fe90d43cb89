"""What a user asks for: the spec of a CheckpointTransform. Frozen, validated data.

Imported by the operator too, so it needs nothing of the converter: no numpy, no storage.
"""

from __future__ import annotations

from reprlib import repr as shortened
from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec

from reshard.errors import UsageError
from reshard.execution import ExecutionSpec, Strict
from reshard.request import Options, OutputFormat, Overwrite, Request, Unplaced, Verification
from reshard.strictyaml import documents

if TYPE_CHECKING:
    from collections.abc import Mapping

API_VERSION = "reshard.dev/v1alpha1"
KIND = "CheckpointTransform"
# Where pods have their volumes.
VOLUMES = "/volumes"


RelativePath = Annotated[str, msgspec.Meta(max_length=1024)]
FilePrefix = Annotated[str, msgspec.Meta(max_length=128, pattern=r"^[^/\x00-\x1f]*$")]


class ClaimSpec(Strict, frozen=True):
    """A folder of a PersistentVolumeClaim."""

    claim_name: Annotated[str, msgspec.Meta(min_length=1, max_length=253)]
    path: RelativePath = ""


class StorageSpec(Strict, frozen=True):
    """Where files are."""

    persistent_volume_claim: ClaimSpec


class ConfigMapKeyRef(Strict, frozen=True):
    """One entry of a ConfigMap."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=253)]
    key: Annotated[str, msgspec.Meta(max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]


class StrategySpec(Strict, frozen=True):
    """Where a strategy is: a file, or a folder with a file for each pipeline stage; or an entry of a ConfigMap.

    Attributes:
        path: from the volume's root.
        storage: which volume; absent: that of the checkpoint.
        config_map_key_ref: instead of a path, for what is small enough to be kept beside the resource.
    """

    path: RelativePath | None = None
    storage: StorageSpec | None = None
    config_map_key_ref: ConfigMapKeyRef | None = None


class FilesSpec(Strict, frozen=True):
    """Which file of each rank is meant, where there are several. Absent: the newest step that every rank has."""

    step: Annotated[int, msgspec.Meta(ge=0)] | None = None
    pattern: Annotated[str, msgspec.Meta(min_length=1, max_length=256)] | None = None


class SourceSpec(Strict, frozen=True):
    """The checkpoint to read."""

    storage: StorageSpec
    strategy: StrategySpec | None = None
    files: FilesSpec = FilesSpec()


class TargetSpec(Strict, frozen=True):
    """The checkpoint to write."""

    storage: StorageSpec
    strategy: StrategySpec | None = None
    format: OutputFormat = "Source"
    file_prefix: FilePrefix = "checkpoint_"
    ranks: Annotated[str, msgspec.Meta(max_length=65536)] | None = None
    crc: bool = False
    file_mode: Annotated[str, msgspec.Meta(pattern="^0?[0-7]{3}$")] = "0640"


class ParametersSpec(Strict, frozen=True):
    """What happens to parameters that only one of the two strategies names."""

    unplaced: Unplaced = "Drop"
    allow_missing: bool = False


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
    """The spec of the one CheckpointTransform in a YAML (or JSON) text.

    Raises:
        UsageError: it is no such resource, or a field is wrong; the message names the field.
    """
    found = [d for d in documents(text, where) if isinstance(d, dict) and d.get("kind") == KIND]
    if len(found) != 1:
        raise UsageError("ResourceMissing", f"one {KIND} is expected, {len(found)} are there", where=where)
    if found[0].get("apiVersion") != API_VERSION:
        raise UsageError(
            "WrongApiVersion", f"apiVersion {shortened(found[0].get('apiVersion'))} is not {API_VERSION}", where=where
        )
    return parse_spec(found[0].get("spec"), where)


def parse_spec(document: object, where: str) -> TransformSpec:
    """The spec of a CheckpointTransform.

    Raises:
        UsageError: a field is wrong; the message names it.
    """
    try:
        spec = msgspec.convert(document, TransformSpec)
    except msgspec.ValidationError as error:
        raise UsageError("InvalidField", str(error).replace("`$", "`spec"), where=where) from error
    for path, name in _paths(spec):
        check_relative(path, name)
    for side, strategy in (("source", spec.source.strategy), ("target", spec.target.strategy)):
        if strategy is not None:
            _check_strategy(strategy, f"spec.{side}.strategy")
    return spec


def _check_strategy(strategy: StrategySpec, where: str) -> None:
    if not strategy.path and strategy.config_map_key_ref is None:
        raise UsageError("StrategyPlaceMissing", "neither path nor configMapKeyRef is given", where=where, fix="give one of them")
    if strategy.config_map_key_ref is not None and (strategy.path is not None or strategy.storage is not None):
        raise UsageError("AmbiguousStrategy", "configMapKeyRef stands alone", where=where, fix="leave out path and storage")


class Volume(NamedTuple):
    """What of a namespace a pod mounts: a claim, or one entry of a ConfigMap.

    Attributes:
        name: of the claim or the ConfigMap.
        key: of the entry; empty: it is a claim.
    """

    name: str
    key: str = ""

    @property
    def option(self) -> str:
        """The option of `reshard run` that names a folder for it."""
        return "--config-map" if self.key else "--volume"


class Mount(NamedTuple):
    """A volume as a pod sees it.

    Attributes:
        role: what is on it: "source", "source-strategy", "target" or "target-strategy".
        volume: which it is.
        read_only: whether the pod may only read.
    """

    role: str
    volume: Volume
    read_only: bool

    @property
    def folder(self) -> str:
        """Where the volume's root is."""
        return f"{VOLUMES}/{self.role}"


def mounts(spec: TransformSpec) -> tuple[Mount, ...]:
    """The volumes that a transform's pods need. One claim can be there in several roles."""
    found = []
    for role, side in (("source", spec.source), ("target", spec.target)):
        found.append(Mount(role, Volume(side.storage.persistent_volume_claim.claim_name), role == "source"))
        if side.strategy is not None and (volume := _volume_of(side.strategy)) is not None:
            found.append(Mount(f"{role}-strategy", volume, read_only=True))
    return tuple(found)


def _volume_of(strategy: StrategySpec) -> Volume | None:
    """The volume of its own that a strategy has, if it has one."""
    if strategy.config_map_key_ref is not None:
        return Volume(strategy.config_map_key_ref.name, strategy.config_map_key_ref.key)
    return Volume(strategy.storage.persistent_volume_claim.claim_name) if strategy.storage is not None else None


def request_of_volumes(spec: TransformSpec, claims: Mapping[str, str], config_maps: Mapping[str, str]) -> Request:
    """The request of a resource, given the folder that stands for each claim and for each ConfigMap.

    Raises:
        UsageError: one has no folder.
    """
    folders = {}
    for mount in mounts(spec):
        volume = mount.volume
        known = config_maps if volume.key else claims
        if volume.name not in known:
            raise UsageError(
                "VolumeMissing",
                f"no folder is given for the {'ConfigMap' if volume.key else 'claim'} {volume.name!r}",
                where=f"spec.{mount.role}",
                fix=f"add {volume.option} {volume.name}=DIR",
            )
        folders[mount.role] = known[volume.name]
    return _to_request(spec, folders)


def request_of_pod(spec: TransformSpec) -> Request:
    """The request of a resource in a pod that has its `mounts`."""
    return _to_request(spec, {mount.role: mount.folder for mount in mounts(spec)})


def _to_request(spec: TransformSpec, folders: Mapping[str, str]) -> Request:
    source, target = spec.source, spec.target
    return Request(
        source=_join(folders["source"], source.storage.persistent_volume_claim.path),
        target=_join(folders["target"], target.storage.persistent_volume_claim.path),
        source_strategy=_strategy(source.strategy, "source", folders),
        target_strategy=_strategy(target.strategy, "target", folders),
        options=Options(
            format=target.format,
            prefix=target.file_prefix,
            step=source.files.step,
            pattern=source.files.pattern,
            ranks=target.ranks,
            unplaced=spec.parameters.unplaced,
            allow_missing=spec.parameters.allow_missing,
            crc=target.crc,
            file_mode=int(target.file_mode, 8),
            verification=spec.verification,
            overwrite=spec.overwrite,
        ),
    )


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
            paths.append((part.strategy.path or "", f"spec.{side}.strategy.path"))
            if part.strategy.config_map_key_ref is not None:
                paths.append((part.strategy.config_map_key_ref.key, f"spec.{side}.strategy.configMapKeyRef.key"))
            if part.strategy.storage is not None:
                inner = part.strategy.storage.persistent_volume_claim.path
                paths.append((inner, f"spec.{side}.strategy.storage.persistentVolumeClaim.path"))
    return paths


def _join(root: str, path: str) -> str:
    return f"{root.rstrip('/')}/{path}" if path else root


def _strategy(strategy: StrategySpec | None, role: str, folders: Mapping[str, str]) -> str | None:
    if strategy is None:
        return None
    root = folders.get(f"{role}-strategy", folders[role])
    if strategy.config_map_key_ref is not None:
        return _join(root, strategy.config_map_key_ref.key)
    claim = strategy.storage.persistent_volume_claim if strategy.storage is not None else None
    return _join(_join(root, claim.path) if claim is not None else root, strategy.path or "")
