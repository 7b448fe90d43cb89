"""Mounts of a transform's pods, and the request of a resource with these mounts or with local folders.

The operator also imports this module, see `reshard.spec.resource`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from reshard.errors import UsageError
from reshard.spec.keys import Encryption, Key
from reshard.spec.places import CERTIFICATES, CREDENTIALS, KEYS, VOLUMES, ConfigMapKeyRef, StorageSpec
from reshard.spec.request import (
    Options,
    Request,
)
from reshard.spec.storage_options import RequestStorageOptions, StorageOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reshard.spec.resource import EncryptionSpec, StrategySpec, TransformSpec

# Fields whose names differ from those of the roles.
_FIELDS = {
    "source-strategy": "spec.source.strategy",
    "target-strategy": "spec.target.strategy",
    "decryption": "spec.source.decryption",
    "encryption": "spec.target.encryption",
}


class Volume(NamedTuple):
    """A volume of a pod: an object in its namespace.

    Attributes:
        kind: kind of the object.
        name: name of the object.
        key: name of the only entry that is mounted. Empty means all entries.
    """

    kind: Literal["PersistentVolumeClaim", "Secret", "ConfigMap"]
    name: str
    key: str = ""


class Mount(NamedTuple):
    """A volume mount of a pod.

    Attributes:
        role: purpose of the mount: "source", "source-strategy", "target", "target-strategy", "decryption" or "encryption".
        volume: mounted volume. It may have several roles.
        folder: mount path.
        read_only: whether the mount is read-only.
    """

    role: str
    volume: Volume
    folder: str
    read_only: bool = True


def mounts(spec: TransformSpec) -> tuple[Mount, ...]:
    """Return the mounts of a transform's pods: claims, entries of ConfigMaps, the Secrets of buckets, and keys."""
    found: list[Mount] = []
    for role, storage in _storages(spec).items():
        if (claim := storage.persistent_volume_claim) is not None:
            volume = Volume("PersistentVolumeClaim", claim.claim_name)
            found.append(Mount(role, volume, f"{VOLUMES}/{role}", read_only=role != "target"))
        if storage.s3 is not None and (secret := storage.s3.credentials_secret_ref) is not None:
            found.append(Mount(role, Volume("Secret", secret.name), f"{CREDENTIALS}/{role}"))
        if storage.s3 is not None and (bundle := storage.s3.ca_bundle_ref) is not None:
            found.append(Mount(role, Volume("ConfigMap", bundle.name, bundle.key), f"{CERTIFICATES}/{role}"))
    for role, entry in _entries(spec).items():
        found.append(Mount(role, Volume("ConfigMap", entry.name, entry.key), f"{VOLUMES}/{role}"))
    for role, encryption in _encryptions(spec).items():
        reference = encryption.secret_key_ref
        found.append(Mount(role, Volume("Secret", reference.name, reference.key), f"{KEYS}/{role}"))
    return tuple(found)


def _storages(spec: TransformSpec) -> dict[str, StorageSpec]:
    """Return the storages by role."""
    found: dict[str, StorageSpec] = {}
    for role, side in (("source", spec.source), ("target", spec.target)):
        found[role] = side.storage
        if side.strategy is not None and side.strategy.storage is not None:
            found[f"{role}-strategy"] = side.strategy.storage
    return found


def _entries(spec: TransformSpec) -> dict[str, ConfigMapKeyRef]:
    """Return the strategies that are entries of ConfigMaps, by role."""
    strategies = {"source-strategy": spec.source.strategy, "target-strategy": spec.target.strategy}
    return {r: s.config_map_key_ref for r, s in strategies.items() if s is not None and s.config_map_key_ref is not None}


def _encryptions(spec: TransformSpec) -> dict[str, EncryptionSpec]:
    """Return the encryptions by role."""
    found = {"decryption": spec.source.decryption, "encryption": spec.target.encryption}
    return {role: encryption for role, encryption in found.items() if encryption is not None}


def request_here(
    spec: TransformSpec, *, claims: Mapping[str, str], config_maps: Mapping[str, str], secrets: Mapping[str, str]
) -> Request:
    """Return the request of a resource on this machine.

    Args:
        spec: spec of the resource.
        claims: folder of each claim.
        config_maps: folder of each ConfigMap with a strategy.
        secrets: folder of each Secret. If a Secret with credentials has none, the environment of this machine provides them. It
            always provides the trusted certificate authorities.

    Raises:
        UsageError: a claim, a ConfigMap or a Secret with a key has no folder.
    """
    known = {
        "PersistentVolumeClaim": (claims, "--volume"),
        "ConfigMap": (config_maps, "--config-map"),
        "Secret": (secrets, "--secret"),
    }
    folders: dict[str, str] = {}
    credentials: dict[str, str | None] = {}
    for mount in mounts(spec):
        kind, name, _ = mount.volume
        if mount.folder.startswith(CREDENTIALS):
            credentials[mount.role] = secrets.get(name)
        elif mount.folder.startswith((VOLUMES, KEYS)):
            found, option = known[kind]
            if name not in found:
                raise UsageError(
                    "VolumeMissing",
                    f"no local folder is assigned to the {kind} {name!r}",
                    where=_FIELDS.get(mount.role, f"spec.{mount.role}"),
                    fix=f"add {option} {name}=DIR",
                )
            folders[mount.role] = found[name]
    return _to_request(spec, folders, credentials, {})


def request_of_pod(spec: TransformSpec) -> Request:
    """Return the request of a resource in a pod that has its `mounts`."""
    folders = {mount.role: mount.folder for mount in mounts(spec) if mount.folder.startswith((VOLUMES, KEYS))}
    credentials = {mount.role: mount.folder for mount in mounts(spec) if mount.folder.startswith(CREDENTIALS)}
    authorities = {m.role: f"{m.folder}/{m.volume.key}" for m in mounts(spec) if m.folder.startswith(CERTIFICATES)}
    return _to_request(spec, folders, credentials, authorities, confined=True)


def _to_request(
    spec: TransformSpec,
    folders: Mapping[str, str],
    credentials: Mapping[str, str | None],
    authorities: Mapping[str, str],
    *,
    confined: bool = False,
) -> Request:
    """Return the request of a resource.

    Args:
        spec: spec of the resource.
        folders: folder of each claim, ConfigMap and key, by role.
        credentials: folder of the credentials of each bucket, by role.
        authorities: file with the certificate authorities of each bucket, by role.
        confined: whether links must stay in these folders. A pod also has keys, credentials, and mounts of the node: who can
            write to a claim must not be able to copy them to the target by a link.
    """
    source, target = spec.source, spec.target
    storages = _storages(spec)
    roots = dict(folders) | {role: f"s3://{storage.s3.bucket}" for role, storage in storages.items() if storage.s3 is not None}
    storage_options = {
        role: storage.s3.storage_options(credentials=credentials.get(role), ca_bundle=authorities.get(role))
        for role, storage in storages.items()
        if storage.s3 is not None
    }
    for role, folder in folders.items():
        if role not in storage_options and role in ("source", "target"):
            storage_options[role] = StorageOptions(io=spec.execution.io, inside=folder if confined else None)
        elif confined and folder.startswith(VOLUMES):  # of a strategy; by default, it has the options of its side
            storage_options[role] = StorageOptions(inside=folder)
    encryptions = {
        role: Encryption(Key(file=_join(folders[role], encryption.secret_key_ref.key)), encryption.mode)
        for role, encryption in _encryptions(spec).items()
    }
    return Request(
        source=_join(roots["source"], source.storage.path),
        target=_join(roots["target"], target.storage.path),
        source_strategy=source.layout or _strategy(source.strategy, "source", roots),
        target_strategy=target.layout or _strategy(target.strategy, "target", roots),
        scale=target.scale,
        options=Options(
            format=target.format,
            source_format=source.format,
            target_ranks=target.ranks,
            output=target.output,
            max_file_size_bytes=target.max_file_size_bytes,
            copy_settings=target.copy_settings,
            file_prefix=target.file_prefix,
            step=source.files.step,
            files=source.files.pattern,
            allow_single_rank=source.allow_single_rank,
            allow_equal_slices=source.allow_equal_slices,
            stages=source.stages,
            only_ranks=target.only_ranks,
            source_only=spec.parameters.source_only,
            allow_missing=spec.parameters.allow_missing,
            write_strategy=target.write_strategy,
            remove_redundancy=target.remove_redundancy,
            include=spec.parameters.include,
            exclude=spec.parameters.exclude,
            rename=spec.parameters.rename,
            cast=spec.parameters.cast,
            pad=spec.parameters.pad,
            allow_inconsistent=spec.parameters.allow_inconsistent,
            replicas=source.replicas,
            crc=target.crc,
            copy_mode=target.copy_mode,
            link_replicas=target.link_replicas,
            file_mode=None if target.file_mode is None else int(target.file_mode, 8),
            verification=spec.verification,
            overwrite=spec.overwrite,
        ),
        storage_options=RequestStorageOptions(
            source=storage_options["source"],
            target=storage_options["target"],
            source_strategy=storage_options.get("source-strategy"),
            target_strategy=storage_options.get("target-strategy"),
        ),
        decryption=encryptions.get("decryption"),
        encryption=encryptions.get("encryption"),
    )


def _join(root: str, path: str) -> str:
    return f"{root.rstrip('/')}/{path}" if path else root


def _strategy(strategy: StrategySpec | None, role: str, roots: Mapping[str, str]) -> str | None:
    if strategy is None:
        return None
    if strategy.config_map_key_ref is not None:
        return _join(roots[f"{role}-strategy"], strategy.config_map_key_ref.key)
    root = roots[role] if strategy.storage is None else _join(roots[f"{role}-strategy"], strategy.storage.path)
    return _join(root, strategy.path or "")
