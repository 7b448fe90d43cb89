"""Access to object stores. The default is the resolution of the AWS CLI. Frozen data. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec

Addressing = Literal["Auto", "Path", "Virtual"]
Checksums = Literal["Auto", "MD5", "None"]


class StorageOptions(msgspec.Struct, frozen=True):
    """Options of one object store. The AWS environment resolves a field that is None: variables, profile, web identity, instance.

    Attributes:
        endpoint: URL of the server.
        region: region of the bucket.
        addressing: location of the bucket in URLs: the path or the host name.
        ca_bundle: PEM file with the trusted certificate authorities.
        credentials: folder with the files accessKeyId, secretAccessKey and optionally sessionToken, such as a mounted Secret.
            The files are read again when they change.
        profile: profile of the AWS configuration.
        checksums: checksum of uploads. "Auto": the strongest of CRC32, MD5 and none that the server accepts.
    """

    endpoint: str | None = None
    region: str | None = None
    addressing: Addressing = "Auto"
    ca_bundle: str | None = None
    credentials: str | None = None
    profile: str | None = None
    checksums: Checksums = "Auto"


class RequestStorageOptions(msgspec.Struct, frozen=True):
    """Storage options of the locations of a request. None: a strategy uses those of its side, an index those of the source."""

    source: StorageOptions = StorageOptions()
    target: StorageOptions = StorageOptions()
    source_strategy: StorageOptions | None = None
    target_strategy: StorageOptions | None = None
    index: StorageOptions | None = None
