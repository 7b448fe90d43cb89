"""A prefix of a bucket as a storage."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from botocore import exceptions as boto

from reshard.errors import DataError, MissingInputError, UsageError
from reshard.storage.protocol import PartLimits, Stat, WriteCost
from reshard.storage.s3.checksums import Checksums
from reshard.storage.s3.client import client_of
from reshard.storage.s3.failures import MISSING, code_of, failures
from reshard.storage.s3.parts import LONGEST_COPY, MOST_PARTS, SMALLEST_PART, buffers, part_size
from reshard.storage.s3.reader import S3Reader, receive
from reshard.storage.s3.retries import retrying
from reshard.storage.s3.upload import S3Writer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from mmap import mmap

    from reshard.spec.access import Access
    from reshard.storage.protocol import Store

SCHEME = "s3://"
_DELETED_AT_ONCE = 16
# Someone else was quicker: what was to be new is there, or what was to be replaced is another.
_TOO_LATE = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409", *MISSING}


class _Found(NamedTuple):
    """An object that is there: what a listing says of it, and how old it is by the server's clock."""

    size: int
    version: str
    age: float


class S3Store:
    """The objects below one prefix of a bucket.

    Listings and the answers to conditional requests are taken to be consistent, as S3's are since 2020.
    """

    def __init__(self, url: str, access: Access) -> None:
        bucket, _, prefix = url.removeprefix(SCHEME).partition("/")
        prefix = prefix.rstrip("/")
        if not bucket or any(part in ("", ".", "..") for part in prefix.split("/") if prefix):
            raise UsageError("InvalidAddress", "this is no bucket and prefix", where=url, fix="write it like s3://bucket/prefix")
        self._bucket, self._prefix = bucket, prefix
        self._access = access
        self._client = client_of(access)
        self._checksums = Checksums(access.checksums)
        self._idle: list[mmap] = []  # memory of writers, of one size as all ranks' files are
        self.url = f"{SCHEME}{bucket}" + (f"/{prefix}" if prefix else "")
        self.remote = True
        self.renames = False

    def copies_from(self, other: Store) -> bool:
        """See `Store.copies_from`: the same server, reached with the same rights."""
        return isinstance(other, S3Store) and other._client is self._client  # noqa: SLF001 - another of this class

    @property
    def part_limits(self) -> PartLimits:
        """See `Store.part_limits`."""
        return PartLimits(SMALLEST_PART, MOST_PARTS, LONGEST_COPY)

    def around(self) -> list[str]:
        """See `Store.around`."""
        parts = self.url.removeprefix(SCHEME).split("/")
        server = self._access.endpoint or self._client.meta.endpoint_url
        return [f"{server} {'/'.join(parts[:n])}" for n in range(len(parts), 0, -1)]

    def list(self, path: str) -> list[Stat]:
        """See `Store.list`."""
        folder = self._key(path) + "/" if self._key(path) else ""
        found = []
        for page in self._pages("list_objects_v2", Prefix=folder, Delimiter="/"):
            found += [
                Stat(p["Prefix"][len(folder) : -1], is_folder=True, size=0, version="") for p in page.get("CommonPrefixes", ())
            ]
            found += [
                Stat(o["Key"][len(folder) :], is_folder=False, size=o["Size"], version=o["ETag"])
                for o in page.get("Contents", ())
                if o["Key"] != folder  # what consoles make to show an empty folder
            ]
        return sorted((s for s in found if s.name), key=lambda s: s.name)

    def stat(self, path: str) -> Stat | None:
        """See `Store.stat`."""
        key = self._key(path)
        name = key.rpartition("/")[2]
        if key and (found := self._find(key)) is not None:
            return Stat(name, is_folder=False, size=found.size, version=found.version)
        with failures(self._where(path)):
            below = self._client.list_objects_v2(Bucket=self._bucket, Prefix=key + "/" if key else "", MaxKeys=1)
        return Stat(name, is_folder=True, size=0, version="") if below.get("Contents") else None

    def open(self, path: str) -> S3Reader:
        """See `Store.open`."""
        found = self._find(self._key(path))
        if found is None:
            raise MissingInputError(
                "NotFound", "there is no such object", where=self._where(path), fix="check bucket, prefix and endpoint"
            )
        return S3Reader(self._client, self._bucket, self._key(path), size=found.size, version=found.version)

    def read(self, path: str, limit: int) -> bytes:
        """See `Store.read`."""
        with failures(self._where(path)):
            return bytes(retrying(self._read, path, limit))

    def _read(self, path: str, limit: int) -> bytearray:
        found = self._client.get_object(Bucket=self._bucket, Key=self._key(path), ChecksumMode="ENABLED")
        try:
            size = found["ContentLength"]
            if size > limit:
                where = self._where(path)
                raise DataError(
                    "FileTooLarge",
                    f"{size} bytes where at most {limit} can be meant",
                    where=where,
                    fix="give the file that is meant",
                )
            content = bytearray(size)
            receive(found["Body"], memoryview(content))
            found["Body"].read(1)  # the end: there the server's checksum, if it has one, is compared
            return content
        finally:
            found["Body"].close()

    def create(
        self, path: str, *, temporary: str, mode: int, size: int | None = None, memory: int = 0, copies: bool = False
    ) -> S3Writer:
        """See `Store.create`. For parts that they copy servers have no checksum to be relied on; MD5 does not ask for one."""
        del temporary, mode
        checksums = Checksums("MD5") if copies and self._checksums.kind == "CRC32" else self._checksums
        return S3Writer(self._client, self._bucket, self._key(path), checksums, self._idle, size=size, memory=memory)

    def write_cost(self, size: int, memory: int) -> WriteCost:
        """See `Store.write_cost`."""
        parts = -(-size // part_size(size))
        return WriteCost(buffers(size, memory) * part_size(size), parts + 2 if parts > 1 else 1)

    def write(self, path: str, content: bytes, *, mode: int) -> None:
        """See `Store.write`."""
        if len(content) > part_size(len(content)):
            writer = self.create(path, temporary="", mode=mode, size=len(content))
            try:
                writer.write(content)
                writer.finish()
            finally:
                writer.abort()
            return
        with failures(self._where(path)):
            self._checksums.carried(self._client.put_object, content, Bucket=self._bucket, Key=self._key(path))

    def write_new(self, path: str, content: bytes, *, mode: int) -> bool:
        """See `Store.write_new`."""
        del mode
        return self._put_if(path, content, IfNoneMatch="*")

    def swap(self, path: str, content: bytes, version: str, *, mode: int) -> bool:
        """See `Store.swap`."""
        del mode
        return self._put_if(path, content, IfMatch=version)

    def _put_if(self, path: str, content: bytes, **condition: str) -> bool:
        """Write under a condition. An answer may get lost and the request be sent again: then what is there is ours."""
        with failures(self._where(path)):
            try:
                self._checksums.carried(self._client.put_object, content, Bucket=self._bucket, Key=self._key(path), **condition)
            except boto.ClientError as error:
                if code_of(error) not in _TOO_LATE:
                    raise
            else:
                return True
        try:
            return self.read(path, len(content)) == content
        except (MissingInputError, DataError):
            return False

    def move(self, path: str, to: str) -> None:
        """See `Store.move`."""
        source = {"Bucket": self._bucket, "Key": self._key(path)}
        with failures(self._where(path)):
            self._client.copy_object(Bucket=self._bucket, Key=self._key(to), CopySource=source)
            self._client.delete_object(**source)

    def delete(self, path: str) -> None:
        """See `Store.delete`: one request an object, for some servers refuse those for many without a certain checksum."""
        key = self._key(path)
        keys = [o["Key"] for page in self._pages("list_objects_v2", Prefix=key + "/") for o in page.get("Contents", ())]
        with failures(self._where(path)), ThreadPoolExecutor(_DELETED_AT_ONCE) as pool:
            for _ in pool.map(lambda each: self._client.delete_object(Bucket=self._bucket, Key=each), [key, *keys]):
                pass

    def touch(self, path: str) -> None:
        """See `Store.touch`: it is written anew, if it is still what was read, for nothing else makes an object younger."""
        found = self._find(self._key(path))
        if found is not None:
            self.swap(path, self.read(path, found.size), found.version, mode=0)

    def age(self, path: str) -> float | None:
        """See `Store.age`."""
        found = self._find(self._key(path))
        return found.age if found is not None else None

    def drop_unfinished(self, beginning: str, *, silent: float) -> None:
        """See `Store.drop_unfinished`: multipart uploads, which cost as much as objects and are in no listing of these."""
        for page in self._pages("list_multipart_uploads", Prefix=self._key(beginning)):
            for upload in page.get("Uploads", ()):
                named = {"Bucket": self._bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
                with failures(self._where(beginning)):
                    try:
                        if silent <= 0 or self._silence(upload, named) > silent:
                            self._client.abort_multipart_upload(**named)
                    except boto.ClientError as error:
                        if code_of(error) not in ("NoSuchUpload", *MISSING):
                            raise

    def _silence(self, upload: dict[str, Any], named: dict[str, str]) -> float:
        """Seconds since something was added to an upload."""
        marker, last = 0, upload["Initiated"]
        while True:
            parts = self._client.list_parts(**named, PartNumberMarker=marker)
            last = max([last, *(part["LastModified"] for part in parts.get("Parts", ()))])
            if not parts.get("IsTruncated"):
                return _now(parts) - float(last.timestamp())
            marker = parts["NextPartNumberMarker"]

    def check_writable(self) -> None:
        """See `Store.check_writable`: an upload that is begun and called off never appears."""
        with failures(self.url):
            named = {"Bucket": self._bucket, "Key": self._key(".reshard/probe")}
            upload = self._checksums.begun(self._client, **named)
            self._client.abort_multipart_upload(**named, UploadId=upload["UploadId"])

    def free_bytes(self) -> int | None:
        """See `Store.free_bytes`."""
        return None

    def _key(self, path: str) -> str:
        if ".." in path.split("/") or path.startswith("/"):  # whatever a hostile document says
            raise DataError(
                "UnsafePath", f"{path!r} leads out of the prefix", where=self.url, fix="restore the file that names it"
            )
        return "/".join(part for part in (self._prefix, path) if part)

    def _where(self, path: str) -> str:
        return f"{SCHEME}{self._bucket}/{self._key(path)}"

    def _find(self, key: str) -> _Found | None:
        """One object, by a listing: unlike the answer to HEAD, one that refuses says why."""
        with failures(f"{SCHEME}{self._bucket}/{key}"):
            page = self._client.list_objects_v2(Bucket=self._bucket, Prefix=key, MaxKeys=1)
        for found in page.get("Contents", ()):
            if found["Key"] == key:
                age = _now(page) - float(found["LastModified"].timestamp())
                return _Found(found["Size"], found["ETag"], age)
        return None

    def _pages(self, operation: str, **parameters: str) -> Iterator[dict[str, Any]]:
        pages = iter(self._client.get_paginator(operation).paginate(Bucket=self._bucket, **parameters))
        while True:
            with failures(f"{SCHEME}{self._bucket}/{parameters.get('Prefix', '')}"):
                page = next(pages, None)
            if page is None:
                return
            yield page


def _now(answer: dict[str, Any]) -> float:
    """The server's clock, in seconds, as an answer tells it."""
    return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()
