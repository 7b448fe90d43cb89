"""How an object store is reached: of each side, or with nothing said, what the AWS command line would do. Frozen data. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec

Addressing = Literal["Auto", "Path", "Virtual"]
Checksums = Literal["Auto", "MD5", "None"]


class Access(msgspec.Struct, frozen=True):
    """How one object store is reached. What is None is decided by the environment: variables, profile, web identity, instance.

    Attributes:
        endpoint: the server's URL.
        region: its region.
        addressing: whether the bucket stands in the path or in the host's name.
        ca_bundle: a file with the authorities that are trusted, in PEM.
        credentials: a folder with the files accessKeyId, secretAccessKey and, if there is one, sessionToken, as a Secret is
            mounted. They are read again when they change.
        profile: a section of the AWS configuration that has any of these.
        checksums: what uploads carry for the server to check: "Auto" is CRC32, else MD5, else nothing, by what it accepts.
    """

    endpoint: str | None = None
    region: str | None = None
    addressing: Addressing = "Auto"
    ca_bundle: str | None = None
    credentials: str | None = None
    profile: str | None = None
    checksums: Checksums = "Auto"


class Accesses(msgspec.Struct, frozen=True):
    """The access of everything that a request names. Unless it is said, a strategy's is its side's, an index' the source's."""

    source: Access = Access()
    target: Access = Access()
    source_strategy: Access | None = None
    target_strategy: Access | None = None
    index: Access | None = None
