"""Documents in a target: manifests with checksums, and JSON files of unfinished tasks."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from reshard.checkpoint.manifest import MANIFEST_NAME, STATE, Manifest, decode, indented
from reshard.errors import DataError, MissingInputError
from reshard.storage.digest import ContentDigest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from reshard.storage.protocol import ReadStore, Store

LOCK = f"{STATE}/lock"
LARGEST_DOCUMENT = 4 << 30
LARGEST_RECORD = 1 << 20  # of a task
_CHECKSUM = b',\n  "checksum": "'  # before the last field of a manifest
_END = b"\n}\n"


def _with_checksum(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the parts of a manifest with the digest of itself as its last field."""
    digest, last = ContentDigest(), b""
    for part in parts:
        digest.update(part)
        yield last
        last = part
    yield last.removesuffix(_END) + _CHECKSUM + str(digest).encode() + b'"' + _END


def check_manifest(store: ReadStore, *, fix: str) -> None:
    """Check that the manifest of a checkpoint has the checksum that it was written with.

    Args:
        store: folder of the checkpoint.
        fix: remedy in the error.

    Raises:
        DataError: the manifest has changed.
    """
    content = store.read(MANIFEST_NAME, LARGEST_DOCUMENT)
    at = max(0, content.rfind(_CHECKSUM))
    digest = ContentDigest(memoryview(content)[:at])
    digest.update(_END)
    if content[at:] != b"".join((_CHECKSUM, str(digest).encode(), b'"', _END)):
        raise DataError("ContentChanged", f"the content of {MANIFEST_NAME} has changed", where=store.url, fix=fix)


D = TypeVar("D")


def _unlocked() -> None:
    """Check nothing: a target that is only read needs no lock."""


@dataclass(frozen=True, slots=True)
class TargetDocuments:
    """Reads and writes the documents in a target.

    Attributes:
        store: store of the target.
        mode: permission bits of written files. None means that the umask determines them.
        check_lock: function that raises if another process has taken over the lock. It is called before files appear or disappear
            at final paths. In a folder, all of these changes are renames from or to the folder of the task. A run of another task
            that takes over the lock deletes that folder, so that they fail even if this process pauses after the check.
    """

    store: Store
    mode: int | None
    check_lock: Callable[[], None] = _unlocked

    def manifest(self) -> Manifest | None:
        """Return the manifest of the complete checkpoint in the target, or None if there is none.

        Raises:
            DataError: the manifest is damaged.
        """
        return self.document(MANIFEST_NAME, Manifest, LARGEST_DOCUMENT)

    def document(self, path: str, kind: type[D], limit: int) -> D | None:
        """Return a document of at most `limit` bytes, or None if it does not exist.

        Raises:
            DataError: the document is damaged, or larger than the limit.
        """
        try:
            content = self.store.read(path, limit)
        except MissingInputError as error:
            if error.reason != "NotFound":
                raise
            return None
        where = f"{self.store.url}/{path}"
        if path == MANIFEST_NAME:  # without it, the other files would belong to no checkpoint
            return decode(content, kind, where, fix="restore the file, or choose another target")
        return decode(content, kind, where)

    def write_manifest(self, manifest: Manifest, folder: str = STATE) -> None:
        """Mark the checkpoint as complete. The folder of the task contains the file until then."""
        self.publish(MANIFEST_NAME, _with_checksum(indented(manifest)), folder)

    def publish(self, path: str, content: Iterable[bytes], folder: str) -> None:
        """Write the parts of a document at its final path. The folder of the task contains the file until then.

        Raises:
            LockedError: another process has taken over the lock.
        """
        writer = self.store.create(path, temporary=f"{folder}/{uuid.uuid4().hex}.tmp", mode=self.mode)
        try:
            for part in content:
                writer.write(part)
            writer.flush()
            self.check_lock()
            writer.finish()
        finally:
            writer.abort()
