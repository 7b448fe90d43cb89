"""Documents in a target: manifests with checksums, and JSON files of unfinished tasks."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from reshard.checkpoint.manifest import MANIFEST_NAME, STATE, Manifest, decode, encode
from reshard.errors import DataError, MissingInputError
from reshard.storage.digest import ContentDigest

if TYPE_CHECKING:
    from collections.abc import Callable

    from reshard.storage.protocol import ReadStore, Store

LOCK = f"{STATE}/lock"
LARGEST_DOCUMENT = 4 << 30
LARGEST_RECORD = 1 << 20  # of a task
_CHECKSUM = b',\n  "checksum": "'  # before the last field of a manifest


def _with_checksum(content: bytes) -> bytes:
    """Return a manifest with the digest of itself as its last field."""
    start = content.removesuffix(b"\n}\n")
    return start + _CHECKSUM + str(ContentDigest(content)).encode() + b'"\n}\n'


def check_manifest(store: ReadStore, *, fix: str) -> None:
    """Check that the manifest of a checkpoint has the checksum that it was written with.

    Args:
        store: folder of the checkpoint.
        fix: remedy in the error.

    Raises:
        DataError: the manifest has changed.
    """
    content = store.read(MANIFEST_NAME, LARGEST_DOCUMENT)
    start, _, _ = content.rpartition(_CHECKSUM)
    if content != _with_checksum(start + b"\n}\n"):
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
        self.publish(MANIFEST_NAME, _with_checksum(encode(manifest, pretty=True)), folder)

    def publish(self, path: str, content: bytes, folder: str) -> None:
        """Write a document at its final path. The folder of the task contains the file until then.

        Raises:
            LockedError: another process has taken over the lock.
        """
        writer = self.store.create(path, temporary=f"{folder}/{uuid.uuid4().hex}.tmp", mode=self.mode)
        try:
            writer.write(content)
            writer.flush()
            self.check_lock()
            writer.finish()
        finally:
            writer.abort()
