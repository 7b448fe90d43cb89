"""The target folder: its layout on the storage, and how files in it become a complete checkpoint.

```
rank_<r>/<prefix><r>.<ext>     appears whole, when its rank is done
reshard-manifest.json          written last: its presence says complete
.reshard/                      of unfinished transforms only; gone once the manifest is there
    lock
    <job>/job.json             what is being made, and whether it replaces something
    <job>/inventory.json       the source's headers, read once
    <job>/draft.json           the manifest but for the files
    <job>/replaced.json        the manifest of the checkpoint that is being replaced, once the commit has begun
    <job>/records/rank_<r>     a finished rank
    <job>/staging/...          finished files that wait for the commit, when they replace others
    <job>/tmp/...              files that are being written
```
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from reshard.digest import digest_of
from reshard.errors import MissingInputError
from reshard.manifest import MANIFEST_NAME, FileRecord, Manifest, decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reshard.storage.protocol import Store, Writer

STATE = ".reshard"
LOCK = f"{STATE}/lock"
_LARGEST_DOCUMENT = 4 << 30
_LARGEST_RECORD = 1 << 20


class JobDocument(msgspec.Struct, frozen=True, rename="camel"):
    """What is being made at a target.

    Attributes:
        digest: of the job; its first 16 digits name its folder.
        request: what was asked for, as far as it decides the outcome, to find the job again without reading the source.
        ranks: the target ranks that make it complete, such as "0-5".
        staged: whether finished files wait in the staging folder, because they will replace others.
        mode: permission bits of the files.
    """

    digest: str
    request: dict[str, Any]
    ranks: str
    staged: bool
    mode: int = 0o640


@dataclass(frozen=True, slots=True)
class TargetFolder:
    """Reads and writes what belongs to one job at a target.

    Attributes:
        store: the target.
        mode: permission bits of what is written.
    """

    store: Store
    mode: int

    def manifest(self) -> Manifest | None:
        """The manifest of the complete checkpoint that is here, if there is one.

        Raises:
            DataError: it is damaged.
        """
        if self.store.stat(MANIFEST_NAME) is None:
            return None
        return decode(self.store.read(MANIFEST_NAME, _LARGEST_DOCUMENT), Manifest, f"{self.store.url}/{MANIFEST_NAME}")

    def write_manifest(self, manifest: Manifest) -> None:
        """Declare the checkpoint complete."""
        content = encode(manifest, pretty=True)
        writer = self.store.create(MANIFEST_NAME, temporary=f"{STATE}/manifest.tmp", mode=self.mode)
        try:
            writer.write(content)
            writer.finish()
        finally:
            writer.abort()

    def jobs(self) -> list[JobDocument]:
        """All jobs that were begun here and are not committed."""
        found = []
        for entry in self.store.list(STATE):
            if entry.is_folder and self.store.stat(f"{STATE}/{entry.name}/job.json") is not None:
                path = f"{STATE}/{entry.name}/job.json"
                found.append(decode(self.store.read(path, _LARGEST_RECORD), JobDocument, path))
        return found

    def job(self, digest: str) -> JobState:
        """The state of one job."""
        return JobState(self, f"{STATE}/{digest[:16]}")

    def forget_jobs(self) -> None:
        """Remove what unfinished jobs have left, this one's included; the lock stays."""
        for entry in self.store.list(STATE):
            if f"{STATE}/{entry.name}" != LOCK:
                self.store.delete(f"{STATE}/{entry.name}")

    def outdated(self, digest: str, request: dict[str, Any]) -> list[JobDocument]:
        """Unfinished jobs of an equal request, whose source has changed since: nobody can want them any more.

        One whose commit has begun is not among them: it has taken another checkpoint apart, which only it can mend.
        """
        return [
            job
            for job in self.jobs()
            if job.digest != digest and job.request == request and not self.job(job.digest).has_begun_commit()
        ]

    def discard(self, job: JobDocument) -> None:
        """Remove an unfinished job and what it has written."""
        state = self.job(job.digest)
        if not job.staged:
            for record in state.records(None).values():
                self.store.delete(record.path)
        self.store.delete(state.folder)

    def has_remains(self, digest: str) -> bool:
        """Whether a process that was killed when all but done has left something of this job, and no other job is begun."""
        return bool(self.store.list(STATE)) and all(job.digest == digest for job in self.jobs())


@dataclass(frozen=True, slots=True)
class JobState:
    """What one job has reached so far."""

    target: TargetFolder
    folder: str

    def read(self) -> JobDocument | None:
        """The job as it was begun; None when it was not."""
        path = f"{self.folder}/job.json"
        if self.target.store.stat(path) is None:
            return None
        return decode(self.target.store.read(path, _LARGEST_RECORD), JobDocument, path)

    def begin(self, job: JobDocument, inventory: bytes, draft: Manifest) -> JobDocument:
        """Note down the job. Of several processes that begin it at once, all get what the first wrote."""
        store, path = self.target.store, f"{self.folder}/job.json"
        store.write(f"{self.folder}/draft.json", encode(draft), mode=self.target.mode)
        store.write(f"{self.folder}/inventory.json", inventory, mode=self.target.mode)
        if store.write_new(path, encode(job), mode=self.target.mode):
            return job
        begun = self.read()
        return begun if begun is not None else job

    def extend(self, job: JobDocument) -> None:
        """Change the ranks that make it complete."""
        self.target.store.write(f"{self.folder}/job.json", encode(job), mode=self.target.mode)

    def inventory(self) -> bytes:
        """The inventory, as it was given to `begin`."""
        return self.target.store.read(f"{self.folder}/inventory.json", _LARGEST_DOCUMENT)

    def draft(self) -> Manifest:
        """The manifest as it was given to `begin`."""
        path = f"{self.folder}/draft.json"
        return decode(self.target.store.read(path, _LARGEST_DOCUMENT), Manifest, path)

    def retire_old_manifest(self) -> None:
        """Make what is at the target read as incomplete, before its files are replaced."""
        if self.target.store.stat(MANIFEST_NAME) is not None:
            self.target.store.move(MANIFEST_NAME, f"{self.folder}/replaced.json")

    def has_begun_commit(self) -> bool:
        """Whether the checkpoint that this job replaces is retired already."""
        return self.target.store.stat(f"{self.folder}/replaced.json") is not None

    def replaced_files(self) -> list[FileRecord]:
        """The files of the checkpoint that this job replaces, and those that other unfinished jobs have put into place."""
        store, path = self.target.store, f"{self.folder}/replaced.json"
        found: list[FileRecord] = []
        if store.stat(path) is not None:
            found += decode(store.read(path, _LARGEST_DOCUMENT), Manifest, path).files
        for job in self.target.jobs():
            other = self.target.job(job.digest)
            if other.folder != self.folder and not job.staged:
                found += other.records(None).values()
        return found

    def create(self, path: str, *, rank: int, staged: bool) -> Writer:
        """A new file of the checkpoint."""
        temporary = f"{self.folder}/tmp/rank_{rank}.{uuid.uuid4().hex}"
        return self.target.store.create(self.where(path, staged=staged), temporary=temporary, mode=self.target.mode)

    def where(self, path: str, *, staged: bool) -> str:
        """Where a file appears when it is finished: in its place, or where it waits for the commit."""
        return f"{self.folder}/staging/{path}" if staged else path

    def sweep(self, ranks: set[int]) -> None:
        """Remove temporaries that killed writers of these ranks have left."""
        for entry in self.target.store.list(f"{self.folder}/tmp"):
            name = entry.name.partition(".")[0].removeprefix("rank_")
            if name.isdigit() and int(name) in ranks:
                self.target.store.delete(f"{self.folder}/tmp/{entry.name}")

    def record(self, record: FileRecord) -> None:
        """Note down that a rank's file is whole, durable and verified."""
        self.target.store.write(f"{self.folder}/records/rank_{record.rank}.json", encode(record), mode=self.target.mode)

    def records(self, ranks: Iterable[int] | None) -> dict[int, FileRecord]:
        """The records of those of these ranks (None: of all) that are finished."""
        wanted = None if ranks is None else {f"rank_{rank}.json" for rank in ranks}
        found = {}
        for entry in self.target.store.list(f"{self.folder}/records"):
            if entry.name.endswith(".json") and (wanted is None or entry.name in wanted):
                path = f"{self.folder}/records/{entry.name}"
                record = decode(self.target.store.read(path, _LARGEST_RECORD), FileRecord, path)
                found[record.rank] = record
        return found

    def find(self, record: FileRecord, *, staged: bool) -> str | None:
        """Where a record's file is, if it is there in its full length.

        A commit that was interrupted has moved some staged files already. What lies in their place may as well be an old file
        of the same length, so there the content decides.
        """
        store = self.target.store
        waiting = self.where(record.path, staged=True)
        if staged and self._has_length(waiting, record.size):
            return waiting
        if not self._has_length(record.path, record.size):
            return None
        if staged:
            reader = store.open(record.path)
            try:
                if digest_of(reader) != record.digest:
                    return None
            finally:
                reader.close()
        return record.path

    def _has_length(self, path: str, size: int) -> bool:
        found = self.target.store.stat(path)
        return found is not None and found.size == size

    def publish(self, record: FileRecord) -> None:
        """Move a staged file to its place.

        Raises:
            MissingInputError: it is neither there nor in its place.
        """
        path = self.find(record, staged=True)
        if path is None:
            raise MissingInputError("FileMissing", "a finished file is gone", where=record.path, fix="run the transform again")
        if path != record.path:
            self.target.store.move(path, record.path)
