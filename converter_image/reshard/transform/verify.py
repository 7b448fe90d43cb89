"""Verify a finished checkpoint against its manifest, without the source."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from reshard.checkpoint.manifest import MANIFEST_NAME
from reshard.engine.memory import default_workers
from reshard.errors import DataError, IncomparableError, MissingInputError
from reshard.parallel import parallel
from reshard.progress import Cancellation, Silent
from reshard.source.described import unlisted
from reshard.source.listing import preview
from reshard.spec.request import Options
from reshard.storage import open_store
from reshard.storage.cancellable import CancellableReader
from reshard.storage.digest import is_version, matches, sample_of
from reshard.target.folder import TargetFolder
from reshard.target.parts import listed_ranks
from reshard.telemetry import operation, phase
from reshard.transform.documents import changed_documents, check_exists

if TYPE_CHECKING:
    from reshard.checkpoint.manifest import FileRecord, Manifest
    from reshard.progress import Progress
    from reshard.spec.storage_options import StorageOptions
    from reshard.storage.protocol import ReadStore


@operation("verify_checkpoint")
def verify_checkpoint(
    target_url: str,
    *,
    storage_options: StorageOptions | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    cancellation: Cancellation | None = None,
) -> Manifest:
    """Verify a finished checkpoint against its manifest: its list of files, and the size and content digest of each.

    Args:
        target_url: folder with the manifest, or s3://bucket/prefix.
        storage_options: options of the object store, if the target is in one.
        workers: number of files read at a time.
        progress: receives the progress.
        cancellation: cancels the work.

    Returns:
        The manifest.

    Raises:
        MissingInputError: there is no manifest, or a file does not exist.
        DataError: a file has changed, or there are checkpoint files or ranks that the manifest does not list.
        IncomparableError: an object store has assembled a file, and this is not the object that it created.
    """
    cancellation = cancellation or Cancellation()
    target, progress = TargetFolder(open_store(target_url, storage_options), Options().file_mode), progress or Silent()
    manifest = target.manifest()
    if manifest is None:
        raise MissingInputError(
            "ManifestMissing",
            f"{MANIFEST_NAME} does not exist: this is not a complete checkpoint",
            where=target.store.url,
            fix="run the transform again; finished ranks are kept",
        )
    _check_files(target.store, manifest)
    nbytes = sum(record.size for record in manifest.files)
    progress.begin("Verifying", nbytes, "bytes")
    documents = changed_documents(target.store, manifest)

    incomparable: list[str] = []

    def check(record: FileRecord) -> str | None:
        with closing(CancellableReader(target.store.open(record.path), cancellation.check)) as reader:
            if reader.size != record.size:
                return f"{record.path} has {reader.size} bytes instead of {record.size}"
            if matches(reader, record.digest, progress.advance, remote=target.store.remote):
                return None
            sample = record.sample if is_version(record.digest) else None
            if sample is not None and sample == sample_of(reader, remote=target.store.remote):
                incomparable.append(record.path)
                return None
        return f"the content of {record.path} has changed"

    with phase("verify_files", files=len(manifest.files), bytes_read=nbytes):
        damaged = [found for found in parallel(check, manifest.files, at_once=workers or default_workers()) if found]
    damaged += [f"the content of {name} has changed" for name in documents]
    if damaged:
        more = f" (and {len(damaged) - 1} more files)" if len(damaged) > 1 else ""
        raise DataError(
            "ContentChanged",
            damaged[0] + more,
            where=target.store.url,
            fix="restore the file, or run the same transform again with --overwrite to rewrite changed files",
        )
    if incomparable:
        more = f" (and {len(incomparable) - 1} more files)" if len(incomparable) > 1 else ""
        raise IncomparableError(
            "DigestIncomparable",
            f"{min(incomparable)}{more} cannot be compared here: its recorded digest is the ETag of the original object",
            where=target.store.url,
            fix="verify the original object, or run its transform again with --verification sample to record a content digest",
        )
    return manifest


def _check_files(store: ReadStore, manifest: Manifest) -> None:
    """Refuse a folder unless its checkpoint files are exactly those that its manifest lists, for the ranks that it names.

    Raises:
        DataError: there are other files, or the manifest contradicts itself.
        MissingInputError: a file does not exist.
    """
    if (listed := listed_ranks(manifest)) != manifest.ranks:
        raise DataError(
            "DocumentInvalid",
            f"the manifest records ranks {manifest.ranks} as complete, but lists the files of ranks {listed}",
            where=f"{store.url}/{MANIFEST_NAME}",
            fix="restore it, or run the same transform again with --overwrite",
        )
    there = check_exists(store, manifest)
    if added := unlisted(manifest, there):
        raise DataError(
            "FilesUnlisted",
            f"the manifest does not list {preview(added)}",
            where=store.url,
            fix="move files that do not belong to the checkpoint to another folder",
        )
