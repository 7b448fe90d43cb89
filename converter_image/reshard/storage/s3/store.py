"""A prefix of a bucket as a storage."""

from __future__ import annotations

import uuid
from dataclasses import replace
from os.path import commonprefix
from typing import TYPE_CHECKING, Any, NamedTuple

from botocore import exceptions as boto

from reshard.errors import BugError, DataError, MissingInputError, StorageError, UsageError
from reshard.parallel import parallel
from reshard.storage.buffers import BufferPool
from reshard.storage.protocol import PROBE, PartLimits, Stat, WriteCost
from reshard.storage.s3.checksums import Checksums
from reshard.storage.s3.client import client_of
from reshard.storage.s3.deletion import Deleter
from reshard.storage.s3.failures import MISSING, code_of, date_of, failures, stated, without_credentials
from reshard.storage.s3.parts import LONGEST_COPY, MOST_PARTS, SMALLEST_PART, buffers, part_size
from reshard.storage.s3.reader import S3Reader, receive, response
from reshard.storage.s3.retries import retrying
from reshard.storage.s3.upload import S3Writer
from reshard.storage.s3.uploads import Uploads
from reshard.storage.traffic import current_meter

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from reshard.spec.storage_options import Link, StorageOptions
    from reshard.storage.protocol import NewFile, Store

SCHEME = "s3://"
# Fewer files are requested one by one, concurrently: a listing also returns the keys between them.
_LISTED_TOGETHER = 32
# A listing is given up when it has more pages than this, plus one for this many keys.
_FEWEST_PAGES = 8
_KEYS_PER_PAGE = 64
# Another process was quicker: the new object exists already, or the one to replace has changed.
_TOO_LATE = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409", *MISSING}


class _Found(NamedTuple):
    """An existing object, as a listing describes it.

    Attributes:
        key: key of the object.
        size: length in bytes.
        version: ETag of the object.
        modified: time at which the object was written, by the server's clock.
        now: server's time in the response. None means that the response does not contain it.
    """

    key: str
    size: int
    version: str
    modified: float
    now: float | None


class S3Store:
    """The objects below one prefix of a bucket.

    Listings and conditional requests must be strongly consistent, as in S3 since 2020.
    """

    def __init__(self, url: str, storage_options: StorageOptions) -> None:
        bucket, _, prefix = url.removeprefix(SCHEME).partition("/")
        if "@" in bucket:
            raise UsageError(
                "InvalidAddress",
                "the address must not contain credentials",
                where=without_credentials(url),
                fix="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use a profile",
            )
        self._is_folder = prefix.endswith("/")
        prefix = prefix.rstrip("/")
        if not bucket or any(part in ("", ".", "..") for part in prefix.split("/") if prefix):
            raise UsageError(
                "InvalidAddress", "not a valid s3://bucket/prefix URL", where=url, fix="use an address like s3://bucket/prefix"
            )
        self._bucket, self._prefix = bucket, prefix
        self._storage_options = storage_options
        self._client = client_of(storage_options)
        self._meter = current_meter()
        self._checksums = Checksums(storage_options.checksums, self._client, self._named(PROBE))
        self._deleter = Deleter(self._client, bucket)
        self._uploads = Uploads(self._client, bucket, f"{prefix}/" if prefix else "", self._key(PROBE), self._clock)
        self._idle = BufferPool()  # of writers
        self.url = f"{SCHEME}{bucket}" + (f"/{prefix}" if prefix else "")
        self.remote = True
        self.renames = False
        self.notes: tuple[str, ...] = ()

    def can_link(self, folder: str, how: Link) -> bool:
        """See `Store.can_link`. Always false, because objects share nothing."""
        del folder, how
        self.notes = ("objects of an object store cannot be links; equal files are written in full",)
        return False

    def link(self, path: str, to: str, how: Link, *, temporary: str, mode: int | None) -> NewFile:
        """See `Store.link`. Always raises an error."""
        del to, how, temporary, mode
        raise BugError("Internal", "an object cannot be a link", where=path, fix="this is a bug in reshard: please report it")

    def copies_from(self, other: Store) -> bool:
        """See `Store.copies_from`. True for stores on the same server with the same credentials."""
        return isinstance(other, S3Store) and other._client is self._client  # noqa: SLF001 - another of this class

    @property
    def part_limits(self) -> PartLimits:
        """See `Store.part_limits`."""
        return PartLimits(SMALLEST_PART, MOST_PARTS, LONGEST_COPY)

    def around(self) -> list[str]:
        """See `Store.around`."""
        parts = self.url.removeprefix(SCHEME).split("/")
        server = self._storage_options.endpoint or self._client.meta.endpoint_url
        return [f"{server} {'/'.join(parts[:n])}" for n in range(len(parts), 0, -1)]

    def list(self, path: str) -> list[Stat]:
        """See `Store.list`."""
        folder, found = self._folder_key(path), []
        for page in self._pages("list_objects_v2", Prefix=folder, Delimiter="/"):
            found += [_folder(p["Prefix"][len(folder) : -1]) for p in page.get("CommonPrefixes", ())]
            found += [_file(each, each.key.removeprefix(folder)) for each in self._objects(page)]
        return _entries(found)

    def names(self, path: str) -> Sequence[str]:
        """See `Store.names`."""
        return [found.name for found in self.list(path)]

    def list_folders(self, paths: Sequence[str]) -> Sequence[Sequence[Stat]]:
        """See `Store.list_folders`. Uses one listing of all objects below the folders."""
        keys = [self._folder_key(path) for path in paths]
        listed = self._listed_together(keys)
        if listed is None:
            return list(parallel(self.list, paths))
        folders: dict[str, dict[str, Stat]] = {key: {} for key in keys}
        for found in listed:
            for folder in _folders_around(found.name):
                if folder in folders:
                    name, slash, _ = found.name[len(folder) :].partition("/")
                    folders[folder][f"{name}{slash}"] = _folder(name) if slash else replace(found, name=name)
        return [_entries(folders[key].values()) for key in keys]

    def stat(self, path: str) -> Stat | None:
        """See `Store.stat`. An empty object with other objects below it is a folder marker, which some tools create."""
        key = self._key(path)
        name = key.rpartition("/")[2]
        found = self._find(key) if key else None
        if found is None or not found.size or (self._is_folder and not path):
            with failures(self._where(path)):
                below = self._client.list_objects_v2(Bucket=self._bucket, Prefix=key + "/" if key else "", MaxKeys=1)
            if below.get("Contents"):
                return Stat(name, is_folder=True, size=0, version="")
        return Stat(name, is_folder=False, size=found.size, version=found.version) if found is not None else None

    def stats(self, paths: Sequence[str]) -> dict[str, Stat]:
        """See `Store.stats`. Uses one listing of all objects between the first and the last one."""
        keys = {self._key(path): path for path in paths}
        listed = self._listed_together(keys)
        if listed is None:
            each = zip(keys, parallel(self._find, keys), strict=True)
            listed = [_file(found, key) for key, found in each if found is not None]
        there = ((keys[stat.name], stat) for stat in listed if stat.name in keys)
        return {path: replace(stat, name=path.rpartition("/")[2]) for path, stat in there}

    def _listed_together(self, keys: Collection[str]) -> Sequence[Stat] | None:
        """Return the objects with these keys or below them, by key. The result may contain other objects.

        Return None if one request per key takes less time: there are few keys, or many other objects between them.
        """
        if len(keys) < _LISTED_TOGETHER:
            return None
        found: list[Stat] = []
        most = _FEWEST_PAGES + len(keys) // _KEYS_PER_PAGE
        prefix = commonprefix(list(keys))  # noqa: RUF071 - a key has no components
        for number, page in enumerate(self._pages("list_objects_v2", Prefix=prefix)):
            if number == most:
                return None
            found += [_file(each, each.key) for each in self._objects(page)]
        return found

    def open(self, path: str) -> S3Reader:
        """See `Store.open`."""
        found = self._find(self._key(path))
        if found is None:
            raise MissingInputError(
                "NotFound", "no such object", where=self._where(path), fix="check the bucket, prefix and endpoint"
            )
        key, size, version = self._key(path), found.size, found.version
        return S3Reader(self._client, self._bucket, key, self._meter, size=size, version=version)

    def read(self, path: str, limit: int) -> bytes:
        """See `Store.read`."""
        with failures(self._where(path)):
            return bytes(retrying(self._read, path, limit))

    def _read(self, path: str, limit: int) -> bytearray:
        with response(self._client, (self._meter,), **self._named(path), ChecksumMode="ENABLED") as found:
            size = stated(found, "ContentLength")
            if size > limit:
                where = self._where(path)
                raise DataError(
                    "FileTooLarge",
                    f"the object has {size} bytes; at most {limit} are supported for a file of this kind",
                    where=where,
                    fix="check that this is the intended file",
                )
            content = bytearray(size)
            receive(found["Body"], memoryview(content))
            found["Body"].read(1)  # at the end of the body, where the server's checksum, if any, is compared
            return content

    def create(
        self, path: str, *, temporary: str, mode: int | None, size: int | None = None, memory: int = 0, copies: bool = False
    ) -> S3Writer:
        """See `Store.create`."""
        del temporary, mode
        return S3Writer(self._client, self._named(path), self._checksums, self._idle, size=size, memory=memory, copies=copies)

    def write_cost(self, size: int, memory: int) -> WriteCost:
        """See `Store.write_cost`."""
        parts = -(-size // part_size(size))
        return WriteCost(buffers(size, memory) * part_size(size), parts + 2 if parts > 1 else 1)

    def write(self, path: str, content: bytes, *, mode: int | None) -> None:
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
            self._checksums.send(self._client.put_object, content, **self._named(path))

    def write_new(self, path: str, content: bytes, *, mode: int | None) -> bool:
        """See `Store.write_new`."""
        del mode
        return self._put_if(path, content, IfNoneMatch="*")

    def swap(self, path: str, content: bytes, version: str, *, mode: int | None) -> bool:
        """See `Store.swap`."""
        del mode
        return self._put_if(path, content, IfMatch=version)

    def _put_if(self, path: str, content: bytes, **condition: str) -> bool:
        """Write an object if a condition holds. An equal object counts as success, as a retried request may have written it."""
        with failures(self._where(path)):
            try:
                self._checksums.send(self._client.put_object, content, **self._named(path), **condition)
            except boto.ClientError as error:
                if code_of(error) not in _TOO_LATE:
                    raise
            else:
                return True
        try:
            return self.read(path, len(content)) == content
        except (MissingInputError, DataError):
            return False

    def move(self, path: str, to: str, *, make_folder: bool = True, seen: Stat | None = None) -> None:
        """See `Store.move`. Ignores `make_folder`, because a bucket has no folders."""
        del make_folder
        condition = {"CopySourceIfMatch": seen.version} if seen is not None else {}
        with failures(self._where(path)):
            self._client.copy_object(**self._named(to), CopySource=self._named(path), **condition)
        self._deleter.delete([self._key(path)], {self._key(path): seen.version} if seen is not None else {})

    def delete(self, path: str) -> None:
        """See `Store.delete`. Deletes the object, and the objects below it page by page."""
        for _ in parallel(lambda delete: delete(path), (self._delete_one, self._delete_below)):
            pass

    def _delete_one(self, path: str) -> None:
        self._deleter.delete([self._key(path)])

    def _delete_below(self, path: str) -> None:
        for page in self._pages("list_objects_v2", Prefix=f"{self._key(path)}/"):
            self._deleter.delete([each.key for each in self._objects(page)])

    def delete_files(
        self, paths: Collection[str], *, seen: Mapping[str, Stat] | None = None, prune: bool = False, through: str = ""
    ) -> None:
        """See `Store.delete_files`. Ignores `prune` and `through`, because a bucket has no folders and no renames."""
        del prune, through
        versions = {self._key(path): stat.version for path, stat in seen.items()} if seen is not None else {}
        keys = [self._key(path) for path in paths]
        self._deleter.delete(keys if seen is None else [key for key in keys if key in versions], versions)

    def touch(self, path: str) -> None:
        """See `Store.touch`. Rewrites the object if it is unchanged, because that is the only way to update its time."""
        found = self._find(self._key(path))
        if found is not None:
            self.swap(path, self.read(path, found.size), found.version, mode=0)

    def age(self, path: str) -> float | None:
        """See `Store.age`."""
        found = self._find(self._key(path))
        return self._clock(found.now) - found.modified if found is not None else None

    def abort_stale_uploads(self, paths: Iterable[str], *, silent: float) -> None:
        """See `Store.abort_stale_uploads`. Aborts multipart uploads."""
        self._uploads.abort_stale([self._key(path) for path in paths], silent=silent)

    def check_writable(self) -> None:
        """See `Store.check_writable`. Creates and aborts an upload, and writes and deletes a small object."""
        with failures(self.url):
            for _ in parallel(lambda check: check(), (self._check_abort, self._checksums.probe)):
                pass

    def _check_abort(self) -> None:
        named = self._named(PROBE)
        upload = self._client.create_multipart_upload(**named)
        self._client.abort_multipart_upload(**named, UploadId=stated(upload, "UploadId"))

    def free_bytes(self) -> int | None:
        """See `Store.free_bytes`."""
        return None

    def _key(self, path: str) -> str:
        if ".." in path.split("/") or path.startswith("/"):  # whatever path a malicious document contains
            raise DataError(
                "UnsafePath",
                f"the path {path!r} leads out of the prefix",
                where=self.url,
                fix="restore the file that contains this path",
            )
        return "/".join(part for part in (self._prefix, path) if part)

    def _folder_key(self, path: str) -> str:
        return f"{key}/" if (key := self._key(path)) else ""

    def _named(self, path: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._key(path)}

    def _where(self, path: str) -> str:
        return f"{SCHEME}{self._bucket}/{self._key(path)}"

    def _find(self, key: str) -> _Found | None:
        """Find one object with a listing. Unlike the response to a HEAD request, a denied listing contains the reason."""
        with failures(f"{SCHEME}{self._bucket}/{key}"):
            page = self._client.list_objects_v2(Bucket=self._bucket, Prefix=key, MaxKeys=1)
        return next((each for each in self._objects(page) if each.key == key), None)

    def _clock(self, said: float | None) -> float:
        """Return the server's time in a response. If it contains none, return the time of an object that is written now."""
        if said is not None:
            return said
        named = self._named(f"{PROBE}-{uuid.uuid4().hex}")
        with failures(self.url):
            self._client.put_object(**named)
            found = self._find(named["Key"])
            self._client.delete_object(**named)
        if found is None:
            raise StorageError(
                "RequestFailed",
                "the server does not list an object that was just written",
                where=self.url,
                fix="check that the server's listings are strongly consistent, then retry",
            )
        return found.modified

    def _objects(self, page: dict[str, Any]) -> Sequence[_Found]:
        now = date_of(page)
        with failures(self.url):
            return [_found(listed, now) for listed in page.get("Contents", ())]

    def _pages(self, operation: str, **parameters: str) -> Iterator[dict[str, Any]]:
        pages = iter(self._client.get_paginator(operation).paginate(Bucket=self._bucket, **parameters))
        while True:
            with failures(f"{SCHEME}{self._bucket}/{parameters.get('Prefix', '')}"):
                page = next(pages, None)
            if page is None:
                return
            yield page


def _found(listed: dict[str, Any], now: float | None) -> _Found:
    key, size, version, modified = (stated(listed, name) for name in ("Key", "Size", "ETag", "LastModified"))
    return _Found(key, size, version, modified.timestamp(), now)


def _file(found: _Found, name: str) -> Stat:
    return Stat(name, False, found.size, found.version, found.modified)  # noqa: FBT003 - as its fields are


def _folder(name: str) -> Stat:
    return Stat(name, is_folder=True, size=0, version="")


def _folders_around(key: str) -> Iterator[str]:
    """Yield the folders that contain a key, outermost first."""
    yield ""
    at = key.find("/") + 1
    while at:
        yield key[:at]
        at = key.find("/", at) + 1


def _entries(found: Collection[Stat]) -> list[Stat]:
    """Return the entries of a folder without folder markers, which some tools create."""
    folders = {each.name for each in found if each.is_folder}
    kept = (each for each in found if each.name and (each.is_folder or each.size or each.name not in folders))
    return sorted(kept, key=lambda each: (each.name, not each.is_folder))
