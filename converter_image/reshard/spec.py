"""What a user asks for: the spec of a CheckpointTransform. Frozen, validated data.

Imported by the operator too, so it needs nothing of the converter: no numpy, no storage.
"""

from __future__ import annotations

from reprlib import repr as shortened
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import msgspec

from reshard.access import Access, Accesses
from reshard.errors import UsageError
from reshard.execution import ExecutionSpec, Strict
from reshard.places import CERTIFICATES, CREDENTIALS, VOLUMES, RelativePath, StorageSpec
from reshard.request import CopyMode, Options, OutputFormat, Overwrite, Request, Unplaced, Verification
from reshard.strictyaml import documents

if TYPE_CHECKING:
    from collections.abc import Mapping

API_VERSION = "reshard.dev/v1alpha1"
KIND = "CheckpointTransform"


FilePrefix = Annotated[str, msgspec.Meta(max_length=128, pattern=r"^[^/\x00-\x1f]*$")]


class StrategySpec(Strict, frozen=True):
    """Where a strategy is: a file, or a folder with a file for each pipeline stage.

    Attributes:
        path: from the root of the volume or bucket.
        storage: which one; absent: that of the checkpoint.
    """

    path: RelativePath
    storage: StorageSpec | None = None


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
    copy_mode: CopyMode = "Client"
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
    return spec


class Mount(NamedTuple):
    """A claim as a pod sees it.

    Attributes:
        role: what is on it: "source", "source-strategy", "target" or "target-strategy".
        claim: its name.
        read_only: whether the pod may only read.
    """

    role: str
    claim: str
    read_only: bool

    @property
    def folder(self) -> str:
        """Where the claim's root is."""
        return f"{VOLUMES}/{self.role}"


class Reference(NamedTuple):
    """A Secret or ConfigMap as a pod sees it, mounted whole, so that it is followed when it changes.

    Attributes:
        role: the storage that it is for, as in `Mount`.
        kind: what it is.
        name: its name.
    """

    role: str
    kind: Literal["Secret", "ConfigMap"]
    name: str

    @property
    def folder(self) -> str:
        """Where its keys are files."""
        return f"{CREDENTIALS if self.kind == 'Secret' else CERTIFICATES}/{self.role}"


def mounts(spec: TransformSpec) -> tuple[Mount, ...]:
    """The claims that a transform's pods need. One claim can be there in several roles."""
    return tuple(
        Mount(role, storage.persistent_volume_claim.claim_name, read_only=role != "target")
        for role, storage in _storages(spec).items()
        if storage.persistent_volume_claim is not None
    )


def references(spec: TransformSpec) -> tuple[Reference, ...]:
    """The Secrets and ConfigMaps that a transform's pods need to reach its buckets."""
    found: list[Reference] = []
    for role, storage in _storages(spec).items():
        if storage.s3 is not None and storage.s3.credentials_secret_ref is not None:
            found.append(Reference(role, "Secret", storage.s3.credentials_secret_ref.name))
        if storage.s3 is not None and storage.s3.ca_bundle_ref is not None:
            found.append(Reference(role, "ConfigMap", storage.s3.ca_bundle_ref.name))
    return tuple(found)


def _storages(spec: TransformSpec) -> dict[str, StorageSpec]:
    """By role."""
    found: dict[str, StorageSpec] = {}
    for role, side in (("source", spec.source), ("target", spec.target)):
        found[role] = side.storage
        if side.strategy is not None and side.strategy.storage is not None:
            found[f"{role}-strategy"] = side.strategy.storage
    return found


def request_of_claims(spec: TransformSpec, volumes: Mapping[str, str], secrets: Mapping[str, str] | None = None) -> Request:
    """The request of a resource on this machine.

    Args:
        spec: of the resource.
        volumes: the folder that stands for each claim.
        secrets: the folder that stands for a Secret with credentials. Without one, this machine's environment has them; it also
            says which authorities to trust.

    Raises:
        UsageError: a claim has no folder.
    """
    for mount in mounts(spec):
        if mount.claim not in volumes:
            raise UsageError(
                "VolumeMissing",
                f"no folder is given for the claim {mount.claim!r}",
                where=f"spec.{mount.role}",
                fix=f"add --volume {mount.claim}=DIR",
            )
    folders = {
        reference.role: (secrets or {}).get(reference.name) for reference in references(spec) if reference.kind == "Secret"
    }
    return _to_request(spec, {mount.role: volumes[mount.claim] for mount in mounts(spec)}, folders, {})


def request_of_pod(spec: TransformSpec) -> Request:
    """The request of a resource in a pod that has its `mounts` and `references`."""
    credentials = {reference.role: reference.folder for reference in references(spec) if reference.kind == "Secret"}
    authorities = {
        role: f"{CERTIFICATES}/{role}/{storage.s3.ca_bundle_ref.key}"
        for role, storage in _storages(spec).items()
        if storage.s3 is not None and storage.s3.ca_bundle_ref is not None
    }
    return _to_request(spec, {mount.role: mount.folder for mount in mounts(spec)}, credentials, authorities)


def _to_request(
    spec: TransformSpec,
    folders: Mapping[str, str],
    credentials: Mapping[str, str | None],
    authorities: Mapping[str, str],
) -> Request:
    source, target = spec.source, spec.target
    storages = _storages(spec)
    roots = {role: f"s3://{storage.s3.bucket}" if storage.s3 is not None else folders[role] for role, storage in storages.items()}
    access = {
        role: storage.s3.access(credentials=credentials.get(role), ca_bundle=authorities.get(role))
        for role, storage in storages.items()
        if storage.s3 is not None
    }
    return Request(
        source=_join(roots["source"], source.storage.path),
        target=_join(roots["target"], target.storage.path),
        source_strategy=_strategy(source.strategy, "source", roots),
        target_strategy=_strategy(target.strategy, "target", roots),
        options=Options(
            format=target.format,
            prefix=target.file_prefix,
            step=source.files.step,
            pattern=source.files.pattern,
            ranks=target.ranks,
            unplaced=spec.parameters.unplaced,
            allow_missing=spec.parameters.allow_missing,
            crc=target.crc,
            copy_mode=target.copy_mode,
            file_mode=int(target.file_mode, 8),
            verification=spec.verification,
            overwrite=spec.overwrite,
        ),
        access=Accesses(
            source=access.get("source", Access()),
            target=access.get("target", Access()),
            source_strategy=access.get("source-strategy"),
            target_strategy=access.get("target-strategy"),
        ),
    )


def check_relative(path: str, where: str) -> None:
    """A path below the root of a volume or bucket: nothing in it may lead elsewhere.

    Raises:
        UsageError: it may.
    """
    if (path and any(part in {"", ".", ".."} for part in path.split("/"))) or "\x00" in path:
        raise UsageError(
            "InvalidPath",
            f"{path!r} must be relative to the volume or bucket, without '.', '..', '//' or a '/' at either end",
            where=where,
        )


def _paths(spec: TransformSpec) -> list[tuple[str, str]]:
    paths = []
    for side, part in (("source", spec.source), ("target", spec.target)):
        paths.append((part.storage.path, f"spec.{side}.storage.{part.storage.field}"))
        if part.strategy is not None:
            paths.append((part.strategy.path, f"spec.{side}.strategy.path"))
            if (inner := part.strategy.storage) is not None:
                paths.append((inner.path, f"spec.{side}.strategy.storage.{inner.field}"))
    return paths


def _join(root: str, path: str) -> str:
    return f"{root.rstrip('/')}/{path}" if path else root


def _strategy(strategy: StrategySpec | None, role: str, roots: Mapping[str, str]) -> str | None:
    if strategy is None:
        return None
    if strategy.storage is None:
        return _join(roots[role], strategy.path)
    return _join(_join(roots[f"{role}-strategy"], strategy.storage.path), strategy.path)
