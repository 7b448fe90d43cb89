"""Options for access to object stores. By default, they are resolved like those of the AWS CLI."""

from __future__ import annotations

from typing import Literal

import msgspec

Addressing = Literal["Auto", "Path", "Virtual"]
Checksums = Literal["Auto", "MD5", "None"]


class StorageOptions(msgspec.Struct, frozen=True):
    """Options of one object store. Fields that are None are resolved from the AWS environment (variables, profile, role).

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
    """Storage options of a request. By default, strategies use the options of their side, and an index those of the source."""

    source: StorageOptions = StorageOptions()
    target: StorageOptions = StorageOptions()
    source_strategy: StorageOptions | None = None
    target_strategy: StorageOptions | None = None
    index: StorageOptions | None = None
