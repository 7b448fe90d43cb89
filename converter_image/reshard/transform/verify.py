"""Verify a finished checkpoint against its manifest, without the source."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
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
from reshard.storage.traffic import Meter
from reshard.target.documents import check_manifest
from reshard.target.folder import TargetFolder
from reshard.target.parts import listed_ranks
from reshard.telemetry import durations, operation, phase
from reshard.transform.documents import changed_documents, check_exists, expected_documents

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reshard.checkpoint.manifest import FileRecord, Manifest
    from reshard.progress import Progress
    from reshard.spec.storage_options import StorageOptions
    from reshard.storage.protocol import ReadStore
    from reshard.transform.documents import Expected


@dataclass(frozen=True, slots=True)
class FileResult:
    """Throughput of one verified file.

    Attributes:
        rank: number of the target rank.
        path: path relative to the checkpoint.
        bytes_fetched: number of bytes that were fetched to compare the file. 0 means that its ETag was compared instead of its
            content.
        requests: number of requests that fetched them, see `reshard.storage.traffic.Traffic`.
        seconds: duration of the comparison.
    """

    rank: int
    path: str
    bytes_fetched: int
    requests: int
    seconds: float


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """The result of a verification.

    Attributes:
        manifest: manifest of the checkpoint.
        seconds: duration of the verification.
        files: throughput of each file.
        durations: seconds of each phase, see `reshard.telemetry.durations`.
    """

    manifest: Manifest
    seconds: float
    files: tuple[FileResult, ...]
    durations: dict[str, float]

    @property
    def bytes_fetched(self) -> int:
        """Total number of bytes that were fetched to compare the files."""
        return sum(file.bytes_fetched for file in self.files)

    @property
    def requests(self) -> int:
        """Total number of requests that fetched them."""
        return sum(file.requests for file in self.files)


def verify_checkpoint(
    target_url: str,
    *,
    storage_options: StorageOptions | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    cancellation: Cancellation | None = None,
) -> VerifyResult:
    """Verify a finished checkpoint against its manifest: its list of files, the size and digest of each, and its own checksum.

    Args:
        target_url: folder with the manifest, or s3://bucket/prefix.
        storage_options: options of the object store, if the target is in one.
        workers: number of files read at a time.
        progress: receiver of the progress.
        cancellation: object that cancels the work from another thread.

    Returns:
        The manifest, and how long the verification took.

    Raises:
        MissingInputError: there is no manifest, or a file does not exist.
        DataError: a file has changed, or there are checkpoint files or ranks that the manifest does not list.
        IncomparableError: an object store has assembled a file, and this file is not the original object.
    """
    target, progress = TargetFolder(open_store(target_url, storage_options), Options().file_mode), progress or Silent()
    with operation("verify_checkpoint") as measured:
        manifest = target.manifest()
        if manifest is None:
            raise MissingInputError(
                "ManifestMissing",
                f"{MANIFEST_NAME} does not exist: this is not the complete target of a transform",
                where=target.store.url,
                fix="specify the target of a transform; if the transform was interrupted, run it again",
            )
        documents = expected_documents(manifest)
        _check_files(target.store, manifest, documents)
        files = _verify_files(
            target.store, manifest, documents, workers or default_workers(), progress, cancellation or Cancellation()
        )
        check_manifest(target.store, fix="restore the file, or run the same transform again with --overwrite")
        measured.measure(bytes_fetched=sum(file.bytes_fetched for file in files), requests=sum(file.requests for file in files))
        return VerifyResult(manifest, measured.seconds, files, durations())


def _verify_files(
    store: ReadStore,
    manifest: Manifest,
    documents: Mapping[str, Expected],
    workers: int,
    progress: Progress,
    cancellation: Cancellation,
) -> tuple[FileResult, ...]:
    """Compare the content of each file with its record, and of each index file with what the manifest determines.

    Raises:
        DataError: a file has changed.
        IncomparableError: an object store has assembled a file, and this file is not the original object.
    """
    progress.begin("Verifying", sum(record.size for record in manifest.files), "bytes")
    incomparable: list[str] = []

    def damage(record: FileRecord, meter: Meter) -> str | None:
        with closing(CancellableReader(store.open(record.path), cancellation.check)) as reader:
            reader.count_in(meter)
            if reader.size != record.size:
                return f"{record.path} has {reader.size} bytes instead of {record.size}"
            if matches(reader, record.digest, progress.advance, remote=store.remote):
                return None
            if is_version(record.digest) and record.sample == sample_of(reader, remote=store.remote):
                incomparable.append(record.path)
                return None
        return f"the content of {record.path} has changed"

    def check(record: FileRecord) -> tuple[FileResult, str | None]:
        started, meter = time.perf_counter(), Meter()
        found = damage(record, meter)
        seconds = round(time.perf_counter() - started, 6)
        return FileResult(record.rank, record.path, meter.traffic.nbytes, meter.traffic.requests, seconds), found

    with phase("verify_files", files=len(manifest.files)) as measured:
        changed = changed_documents(store, documents)
        checked = list(parallel(check, manifest.files, at_once=workers))
        files = tuple(file for file, _ in checked)
        measured.measure(bytes_fetched=sum(file.bytes_fetched for file in files), requests=sum(file.requests for file in files))
    damaged = [found for _, found in checked if found] + [f"the content of {name} has changed" for name in changed]
    if damaged:
        more = f" (and {len(damaged) - 1} more files)" if len(damaged) > 1 else ""
        raise DataError(
            "ContentChanged",
            damaged[0] + more,
            where=store.url,
            fix="restore the file, or run the same transform again with --overwrite to rewrite changed files",
        )
    if incomparable:
        more = f" (and {len(incomparable) - 1} more files)" if len(incomparable) > 1 else ""
        raise IncomparableError(
            "DigestIncomparable",
            f"{min(incomparable)}{more} cannot be compared here: its recorded digest is the ETag of the original object",
            where=store.url,
            fix="verify the original object, or run its transform again with --verification sample to record a content digest",
        )
    return files


def _check_files(store: ReadStore, manifest: Manifest, documents: Mapping[str, Expected]) -> None:
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
    if added := unlisted(manifest, check_exists(store, manifest, documents)):
        raise DataError(
            "FilesUnlisted",
            f"the manifest does not list {preview(added)}",
            where=store.url,
            fix="move files that do not belong to the checkpoint to another folder",
        )
