"""Where a resource's files are: a claim or a bucket; and under which folders a pod finds what it needs for it. Frozen data."""

from __future__ import annotations

from typing import Annotated

import msgspec

from reshard.spec.access import Access, Addressing, Checksums
from reshard.spec.execution import Strict

# Where pods have their volumes, the credentials of each storage, the authorities that vouch for it, the keys of files, and
# the spec of the transform.
VOLUMES = "/volumes"
CREDENTIALS = "/credentials"
CERTIFICATES = "/certificates"
KEYS = "/keys"
SPEC = "/spec"

RelativePath = Annotated[str, msgspec.Meta(max_length=1024)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=253)]
_Key = Annotated[str, msgspec.Meta(pattern=r"^(?!\.{1,2}$)[-._a-zA-Z0-9]+$", max_length=253)]


class ClaimSpec(Strict, frozen=True):
    """A folder of a PersistentVolumeClaim."""

    claim_name: _Name
    path: RelativePath = ""


class SecretRef(Strict, frozen=True):
    """A Secret of the transform's namespace, with the keys accessKeyId, secretAccessKey and perhaps sessionToken."""

    name: _Name


class SecretKeyRef(Strict, frozen=True):
    """One entry of a Secret of the transform's namespace."""

    name: _Name
    key: _Key


class ConfigMapKeyRef(Strict, frozen=True):
    """One entry of a ConfigMap of the transform's namespace."""

    name: _Name
    key: _Key


class CaBundleRef(Strict, frozen=True):
    """The same, with certificates in PEM."""

    name: _Name
    key: _Key = "ca.crt"


class S3Spec(Strict, frozen=True):
    """A prefix of a bucket. What is absent is decided by the pod's environment and service account.

    Attributes:
        bucket: its name.
        prefix: the beginning of the objects' names, without a '/' at either end.
        endpoint: the server's URL; absent: AWS.
        region: the region of the bucket.
        addressing_style: whether the bucket stands in the URL's path or in its host name.
        checksums: what uploads carry for the server to check.
        credentials_secret_ref: keys of this storage; absent: those of the pod's service account.
        ca_bundle_ref: the authorities to trust; absent: the authorities that the image knows.
    """

    bucket: Annotated[str, msgspec.Meta(pattern=r"^[a-zA-Z0-9][-._:a-zA-Z0-9]{1,254}$")]
    prefix: RelativePath = ""
    endpoint: Annotated[str, msgspec.Meta(pattern=r"^https?://[^\s/@]+(/[^\s@]*)?$", max_length=1024)] | None = None
    region: Annotated[str, msgspec.Meta(pattern=r"^[-a-zA-Z0-9]+$", max_length=64)] | None = None
    addressing_style: Addressing = "Auto"
    checksums: Checksums = "Auto"
    credentials_secret_ref: SecretRef | None = None
    ca_bundle_ref: CaBundleRef | None = None

    def access(self, *, credentials: str | None, ca_bundle: str | None) -> Access:
        """How it is reached, given the folder of the credentials and the file of the authorities."""
        return Access(
            endpoint=self.endpoint,
            region=self.region,
            addressing=self.addressing_style,
            checksums=self.checksums,
            credentials=credentials,
            ca_bundle=ca_bundle,
        )


class StorageSpec(Strict, frozen=True):
    """Where files are: exactly one of these."""

    persistent_volume_claim: ClaimSpec | None = None
    s3: S3Spec | None = None

    def __post_init__(self) -> None:
        """Refuse none and both; msgspec tells in which field."""
        if (self.persistent_volume_claim is None) == (self.s3 is None):
            raise ValueError("Expected either `persistentVolumeClaim` or `s3`")

    @property
    def path(self) -> str:
        """The checkpoint's place from the root of the claim or bucket."""
        if self.s3 is not None:
            return self.s3.prefix
        return self.persistent_volume_claim.path if self.persistent_volume_claim is not None else ""

    @property
    def field(self) -> str:
        """The name of the field that has `path`."""
        return "s3.prefix" if self.s3 is not None else "persistentVolumeClaim.path"
