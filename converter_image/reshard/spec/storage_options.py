"""Options for access to storages. Those of object stores are resolved like those of the AWS CLI by default."""

from __future__ import annotations

from typing import Literal

import msgspec

Addressing = Literal["Auto", "Path", "Virtual"]
Checksums = Literal["Auto", "MD5", "None"]
Io = Literal["Auto", "Direct", "Buffered"]
# How a file gets the content of another one without being written. Hard links are one file with several names.
Link = Literal["Clone", "HardLink"]


class StorageOptions(msgspec.Struct, frozen=True):
    """Options of one storage. Fields that are None are resolved from the AWS environment (variables, profile, role).

    Attributes:
        endpoint: URL of the server.
        region: region of the bucket.
        addressing: location of the bucket in URLs: the path or the host name.
        ca_bundle: PEM file with the trusted certificate authorities.
        credentials: folder with the files accessKeyId, secretAccessKey and optionally sessionToken, such as a mounted Secret.
            The files are read again when they change.
        profile: profile of the AWS configuration.
        checksums: checksum of uploads. "Auto": the strongest of CRC32, MD5 and none that the server accepts.
        io: access to large files on file systems. "Direct": past the page cache of the system. "Buffered": through
            it. "Auto": past it, if the file system supports this and the bytes are not in it.
        inside: folder that all files are in, after symbolic links are followed. None: links may lead anywhere.
    """

    endpoint: str | None = None
    region: str | None = None
    addressing: Addressing = "Auto"
    ca_bundle: str | None = None
    credentials: str | None = None
    profile: str | None = None
    checksums: Checksums = "Auto"
    io: Io = "Auto"
    inside: str | None = None


class RequestStorageOptions(msgspec.Struct, frozen=True):
    """Storage options of a request. By default, strategies use the options of their side, and an index those of the source."""

    source: StorageOptions = StorageOptions()
    target: StorageOptions = StorageOptions()
    source_strategy: StorageOptions | None = None
    target_strategy: StorageOptions | None = None
    index: StorageOptions | None = None
