"""Locations of a resource's files (a claim or a bucket), and the folders in which a pod finds them."""

from __future__ import annotations

from typing import Annotated

import msgspec

from reshard.spec.execution import Strict
from reshard.spec.storage_options import Addressing, Checksums, StorageOptions

# Mount points in pods: volumes, credentials of each storage, certificate authorities, keys of files, and the spec of the
# transform.
VOLUMES = "/volumes"
CREDENTIALS = "/credentials"
CERTIFICATES = "/certificates"
KEYS = "/keys"
SPEC = "/spec"

RelativePath = Annotated[str, msgspec.Meta(max_length=1024)]
# Patterns end with \Z, because $ also matches before a line break at the end.
_Name = Annotated[
    str, msgspec.Meta(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z", max_length=253)
]
_Key = Annotated[str, msgspec.Meta(pattern=r"^(?!\.{1,2}$)[-._a-zA-Z0-9]+\Z", max_length=253)]
_HOST = r"([^\s/@:\[\]]+|\[[0-9a-fA-F:.]+\])"
_PORT = r"(:([0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?"


class ClaimSpec(Strict, frozen=True):
    """A folder of a PersistentVolumeClaim."""

    claim_name: _Name
    path: RelativePath = ""


class SecretRef(Strict, frozen=True):
    """A Secret in the transform's namespace with the keys accessKeyId, secretAccessKey and optionally sessionToken."""

    name: _Name


class SecretKeyRef(Strict, frozen=True):
    """One entry of a Secret in the transform's namespace."""

    name: _Name
    key: _Key


class ConfigMapKeyRef(Strict, frozen=True):
    """One entry of a ConfigMap in the transform's namespace."""

    name: _Name
    key: _Key


class CaBundleRef(Strict, frozen=True):
    """One entry of a ConfigMap in the transform's namespace that contains PEM certificates."""

    name: _Name
    key: _Key = "ca.crt"


class S3Spec(Strict, frozen=True):
    """A prefix in a bucket. The pod's environment and service account determine absent fields.

    Attributes:
        bucket: name of the bucket.
        prefix: prefix of the objects' names, without a '/' at either end.
        endpoint: URL of the server. Absent means AWS.
        region: region of the bucket.
        addressing_style: location of the bucket in URLs: the path or the host name.
        checksums: checksum of uploads, which the server verifies.
        credentials_secret_ref: credentials of this storage. Absent means those of the pod's service account.
        ca_bundle_ref: trusted certificate authorities. Absent means those in the image.
    """

    bucket: Annotated[str, msgspec.Meta(pattern=r"^[a-zA-Z0-9][-._:a-zA-Z0-9]{1,254}\Z")]
    prefix: RelativePath = ""
    endpoint: Annotated[str, msgspec.Meta(pattern=rf"^https?://{_HOST}{_PORT}(/[^\s@]*)?\Z", max_length=1024)] | None = None
    region: Annotated[str, msgspec.Meta(pattern=r"^[-a-zA-Z0-9]+\Z", max_length=64)] | None = None
    addressing_style: Addressing = "Auto"
    checksums: Checksums = "Auto"
    credentials_secret_ref: SecretRef | None = None
    ca_bundle_ref: CaBundleRef | None = None

    def storage_options(self, *, credentials: str | None, ca_bundle: str | None) -> StorageOptions:
        """Return the options of this storage, given the folder of the credentials and the file of the certificate authorities."""
        return StorageOptions(
            endpoint=self.endpoint,
            region=self.region,
            addressing=self.addressing_style,
            checksums=self.checksums,
            credentials=credentials,
            ca_bundle=ca_bundle,
        )


class StorageSpec(Strict, frozen=True):
    """A storage location. Exactly one field is set."""

    persistent_volume_claim: ClaimSpec | None = None
    s3: S3Spec | None = None

    def __post_init__(self) -> None:
        """Check that exactly one field is set. msgspec adds the name of the field that contains this value to the message."""
        if (self.persistent_volume_claim is None) == (self.s3 is None):
            raise ValueError("Expected either `persistentVolumeClaim` or `s3`")

    @property
    def path(self) -> str:
        """Path of the checkpoint, relative to the root of the claim or bucket."""
        if self.s3 is not None:
            return self.s3.prefix
        return self.persistent_volume_claim.path if self.persistent_volume_claim is not None else ""

    @property
    def field(self) -> str:
        """Name of the field that has `path`."""
        return "s3.prefix" if self.s3 is not None else "persistentVolumeClaim.path"
