"""Checksums of uploads, which the server verifies. By default, the strongest kind that the server accepts is used."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

from botocore import exceptions as boto
from zlib_ng import zlib_ng

from reshard.storage.s3.failures import PRECONDITION_FAILED, code_of, stated

if TYPE_CHECKING:
    from collections.abc import Callable

    from botocore.client import BaseClient

    from reshard.spec.storage_options import Checksums as Wanted

T = TypeVar("T")

# Error codes of servers that do not support a checksum. The next weaker kind is then used.
_NOT_UNDERSTOOD = {"InvalidArgument", "InvalidRequest", "NotImplemented", "UnsupportedHeader", "InvalidHeader", "400", "501"}
# Some servers answer so to a multipart upload without conditions: they read no checksums in the list of its parts.
_LIST_NOT_UNDERSTOOD = _NOT_UNDERSTOOD | PRECONDITION_FAILED | {"MalformedXML", "InvalidPart"}
_WEAKER = {"CRC32": "MD5", "MD5": "None"}
_PROBE_TRIES = 3
_HEADERS = {"ChecksumCRC32": "x-amz-checksum-crc32", "ContentMD5": "Content-MD5"}


class Checksums:
    """The kind of checksum that is sent with uploads to one server. Threads may share it.

    Args:
        wanted: requested kind. "Auto" means the strongest that the server accepts.
        client: S3 client.
        probe: bucket and key of an object that may be written and deleted.
    """

    def __init__(self, wanted: Wanted, client: BaseClient, probe: dict[str, str]) -> None:
        self._adapts = wanted == "Auto"
        self._settled = not self._adapts
        self._client, self._probe = client, probe
        self._lock = Lock()
        self._kind: str = "CRC32" if wanted == "Auto" else wanted

    def send(self, request: Callable[..., object], content: bytes, **parameters: str) -> None:
        """Send a whole object with its checksum. Switch to a weaker kind if the server does not support it."""
        while True:
            kind = self._kind
            try:
                request(Body=content, **checksum(kind, content), **parameters)
            except boto.ClientError as error:
                self._weaken(kind, error, _NOT_UNDERSTOOD)
            else:
                return

    def of_parts(self, *, copies: bool) -> str:
        """Return the kind of checksum for the parts of a multipart upload.

        The server is probed before the first upload. Some servers ignore a checksum when an upload is created, and reject it when
        a part is sent or the upload is completed. At that time, the parts are no longer in memory and cannot be sent again.

        Args:
            copies: whether the server copies some of the parts. These have no checksum, which only MD5 permits.
        """
        with self._lock:
            if not self._settled:
                self.probe()
        return "MD5" if copies and self._kind == "CRC32" else self._kind

    def probe(self) -> None:
        """Write a small object as a multipart upload, and delete it. Switch to a weaker kind if the server rejects a checksum."""
        refused = 0
        while True:
            kind = self._kind
            try:
                _write_in_parts(self._client, self._probe, kind)
                break
            except boto.ClientError as error:
                refused += 1
                if code_of(error) != "NoSuchUpload" or refused == _PROBE_TRIES:  # another run's commit has aborted it
                    self._weaken(kind, error, _LIST_NOT_UNDERSTOOD)
        self._client.delete_object(**self._probe)
        self._settled = True

    def _weaken(self, used: str, error: boto.ClientError, not_understood: set[str]) -> None:
        """Switch to a weaker kind than the one that was used. Raise the error if it has another cause."""
        if not self._adapts or code_of(error) not in not_understood or used == "None":
            raise error
        if self._kind == used:  # otherwise another thread has switched already
            self._kind = _WEAKER[used]


def create_upload(client: BaseClient, named: dict[str, Any], kind: str) -> str:
    """Create a multipart upload whose parts have this kind of checksum. Return its ID."""
    algorithm = {"ChecksumAlgorithm": kind} if kind == "CRC32" else {}
    return str(stated(client.create_multipart_upload(**algorithm, **named), "UploadId"))


def completed_part(number: int, etag: str, carried: dict[str, str]) -> dict[str, Any]:
    """Return the entry of a part in the request that completes the upload, given the checksum of the part."""
    return {"PartNumber": number, "ETag": etag, **{k: v for k, v in carried.items() if k != "ContentMD5"}}


def checksum(kind: str, content: bytes | memoryview) -> dict[str, str]:
    """Return the parameters of a request with a checksum of its content."""
    if kind == "CRC32":
        return {"ChecksumCRC32": b64encode(zlib_ng.crc32(content).to_bytes(4, "big")).decode()}
    if kind == "MD5":
        return {"ContentMD5": b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()}
    return {}


def headers_of(carried: dict[str, str]) -> dict[str, str]:
    """Return the headers of a request, given the parameters that `checksum` returns."""
    return {_HEADERS[name]: value for name, value in carried.items()}


def _write_in_parts(client: BaseClient, named: dict[str, str], kind: str) -> None:
    content = b"probe"
    upload = {**named, "UploadId": create_upload(client, named, kind)}
    try:
        carried = checksum(kind, content)
        found = client.upload_part(PartNumber=1, Body=content, **carried, **upload)
        parts = [completed_part(1, stated(found, "ETag"), carried)]
        client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
    except boto.ClientError:
        with suppress(boto.ClientError, boto.BotoCoreError):
            client.abort_multipart_upload(**upload)
        raise
