"""What uploads carry for the server to check: as much as it understands."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from typing import TYPE_CHECKING, Any

from botocore import exceptions as boto
from zlib_ng import zlib_ng

from reshard.storage.s3.failures import code_of
from reshard.storage.s3.retries import retrying

if TYPE_CHECKING:
    from collections.abc import Callable

    from botocore.client import BaseClient

    from reshard.spec.access import Checksums as Wanted

# With one of these a server says that it does not know a checksum; it is then sent the next.
_NOT_UNDERSTOOD = {"InvalidArgument", "InvalidRequest", "NotImplemented", "UnsupportedHeader", "InvalidHeader", "400", "501"}
_WORSE = {"CRC32": "MD5", "MD5": "None"}


class Checksums:
    """Which checksum the uploads to one server carry."""

    def __init__(self, wanted: Wanted) -> None:
        self._adapts = wanted == "Auto"
        self.kind: str = "CRC32" if wanted == "Auto" else wanted

    def of(self, content: bytes | memoryview) -> dict[str, str]:
        """The parameters of a request that carries the checksum of its content."""
        return _of(self.kind, content)

    def of_part(self, content: bytes | memoryview, upload: dict[str, Any]) -> dict[str, str]:
        """The same for a part of an upload, which was begun with one kind and stays with that."""
        return _of(upload["kind"], content)

    def carried(self, request: Callable[..., object], content: bytes, **parameters: str) -> None:
        """Send content with its checksum; with a simpler one, from now on, if the server does not know it."""
        while True:
            try:
                retrying(request, Body=content, **self.of(content), **parameters)
            except boto.ClientError as error:
                self._adapt(error)
            else:
                return

    def begun(self, client: BaseClient, **parameters: object) -> dict[str, Any]:
        """Begin a multipart upload whose parts will carry checksums. Returns what identifies it."""
        while True:
            kind = self.kind
            algorithm = {"ChecksumAlgorithm": kind} if kind == "CRC32" else {}
            try:
                found = client.create_multipart_upload(**algorithm, **parameters)
            except boto.ClientError as error:
                self._adapt(error)
            else:
                return {"UploadId": found["UploadId"], "kind": kind}

    def _adapt(self, error: boto.ClientError) -> None:
        """Go on with a simpler checksum, or raise what has another cause."""
        if not self._adapts or code_of(error) not in _NOT_UNDERSTOOD or self.kind == "None":
            raise error
        self.kind = _WORSE[self.kind]


def _of(kind: str, content: bytes | memoryview) -> dict[str, str]:
    if kind == "CRC32":
        return {"ChecksumCRC32": b64encode(zlib_ng.crc32(content).to_bytes(4, "big")).decode()}
    if kind == "MD5":
        return {"ContentMD5": b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()}
    return {}
