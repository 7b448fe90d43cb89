"""The target folder: its layout on the storage, and how files in it become a complete checkpoint.

```
rank_<r>/<prefix><r>.<ext>     appears whole, when its rank is done; of unified files part<r>.safetensors,
                               of a part <prefix><r>_part<stage>.<ext>
reshard-index.json             in the place of files, where `layout: Index` asks for it: see reshard.source.index
param_name_map.json            of unified files, see reshard.checkpoint.unified: written by the commit
reshard-manifest.json          written last: its presence says complete
.reshard/                      of unfinished transforms only; gone once the manifest is there
    lock                       with parts, each a job: shared by all of them; lock-part<stage> is of one
    <job>/job.json             what is being made, and whether it replaces something
    <job>/inventory.json       strategies and the source's headers, read once: see reshard.source.index
    <job>/draft.json           the manifest but for the files
    <job>/part.json            the manifest of a part, once it is finished; the last one to be finished completes the checkpoint
    <job>/commit.json          which ranks are being committed, once the commit of staged files has begun
    <job>/replaced.json        the manifest of the checkpoint that is being replaced, once that is retired
    <job>/records/rank_<r>     a finished rank
    <job>/staging/...          finished files that wait for the commit, when they replace others
    <job>/tmp/...              files that are being written
```
"""

from __future__ import annotations

import contextlib
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from reshard.checkpoint.manifest import INDEX_NAME, MANIFEST_NAME, STATE, FileRecord, Manifest, decode, encode
from reshard.checkpoint.unified import maps_beside
from reshard.errors import MissingInputError
from reshard.storage.digest import matches

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from reshard.storage.protocol import Store, Writer

LOCK = f"{STATE}/lock"
_LARGEST_DOCUMENT = 4 << 30
_LARGEST_RECORD = 1 << 20


class JobDocument(msgspec.Struct, frozen=True, rename="camel"):
    """What is being made at a target.

    Attributes:
        digest: of the job; its first 16 digits name its folder.
        request: what was asked for, as far as it decides the outcome, to find the job again without reading the source.
        staged: whether finished files wait in the staging folder, because they will replace others.
        mode: permission bits of the files.
        in_place: whether they replace others one by one, where a storage cannot rename. The other checkpoint's manifest is
            retired before, so that the target reads as incomplete until this one's is there.
        part: the pipeline stage of the source, where it makes only what of the checkpoint is made from that.
        whole: equal for jobs that make parts of one checkpoint.
    """

    digest: str
    request: dict[str, Any]
    staged: bool
    mode: int = 0o640
    in_place: bool = False
    part: int | None = None
    whole: str = ""

    @property
    def replaces(self) -> bool:
        """Whether something else was at the target when this was begun."""
        return self.staged or self.in_place


class _Commit(msgspec.Struct, frozen=True):
    ranks: str


D = TypeVar("D")


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
                found.append(decode(self.store.read(path, _LARGEST_RECORD), JobDocument, f"{self.store.url}/{path}"))
        return found

    def job(self, digest: str) -> JobState:
        """The state of one job."""
        return JobState(self, f"{STATE}/{digest[:16]}")

    def forget_jobs(self, files: Iterable[str] = ()) -> None:
        """Remove what unfinished jobs have left, this one's of these files included; the lock stays.

        Whoever still writes here is lost.
        """
        self.drop_unfinished(0.0, files)
        for entry in self.store.list(STATE):
            if not f"{STATE}/{entry.name}".startswith(LOCK):
                self.store.delete(f"{STATE}/{entry.name}")

    def drop_unfinished(self, silent: float, files: Iterable[str] = ()) -> None:
        """Take away what killed writers have left where no listing shows it, if nothing was added for so many seconds.

        Of files with names that no layout gives, of these only.
        """
        known = ("rank_", "part", "hyper_param", STATE, INDEX_NAME, MANIFEST_NAME)
        for beginning in (*known, *(path for path in files if not path.startswith(known))):
            self.store.drop_unfinished(beginning, silent=silent)

    def outdated(self, digest: str, request: dict[str, Any]) -> list[JobDocument]:
        """Unfinished jobs of an equal request, whose source has changed since: nobody can want them any more.

        One whose commit has begun is not among them, nor one that replaces in place: it has taken another checkpoint apart, of
        which only it knows the files.
        """
        return [
            job
            for job in self.jobs()
            if job.digest != digest
            and job.request == request
            and not job.in_place
            and self.job(job.digest).begun_commit() is None
        ]

    def siblings(self, whole: str, part: int | None) -> list[JobDocument]:
        """Unfinished jobs that make other parts of the same checkpoint."""
        return [job for job in self.jobs() if None not in {part, job.part} and job.whole == whole and job.part != part]

    def commit_is_interrupted(self) -> bool:
        """Whether staged files have begun to take the place of others, and not all of them have."""
        return any(self.job(job.digest).begun_commit() is not None for job in self.jobs())

    def discard(self, job: JobDocument, heir: JobState) -> None:
        """Remove an unfinished job and what it has written; what it has taken apart its heir is to remove."""
        state = self.job(job.digest)
        if self.store.stat(f"{state.folder}/replaced.json") is not None:
            self.store.move(f"{state.folder}/replaced.json", f"{heir.folder}/replaced.json")
        if not job.staged:
            for record in state.records(None).values():
                self.store.delete(record.path)
        self.store.delete(state.folder)

    def has_remains(self, digests: Collection[str]) -> bool:
        """Whether a process that was killed when all but done has left something of these jobs, and no other job is begun."""
        return bool(self.store.list(STATE)) and all(job.digest in digests for job in self.jobs())


@dataclass(frozen=True, slots=True)
class JobState:
    """What one job has reached so far."""

    target: TargetFolder
    folder: str

    def read(self) -> JobDocument | None:
        """The job as it was begun; None when it was not."""
        return self._document("job.json", JobDocument, _LARGEST_RECORD)

    def begin(self, job: JobDocument, index: bytes, draft: Manifest) -> JobDocument:
        """Note down the job. Of several processes that begin it at once, all get what the first wrote."""
        store, path = self.target.store, f"{self.folder}/job.json"
        store.write(f"{self.folder}/draft.json", encode(draft), mode=self.target.mode)
        store.write(f"{self.folder}/inventory.json", index, mode=self.target.mode)
        if store.write_new(path, encode(job), mode=self.target.mode):
            return job
        begun = self.read()
        return begun if begun is not None else job

    def restore(self, index: bytes, draft: Manifest) -> None:
        """Note down again what of a begun job is gone, and what of it nobody could know before: the number of stages."""
        store = self.target.store
        if store.stat(f"{self.folder}/inventory.json") is None:
            store.write(f"{self.folder}/inventory.json", index, mode=self.target.mode)
        known = self._document("draft.json", Manifest, _LARGEST_DOCUMENT) if draft.parts else None
        if store.stat(f"{self.folder}/draft.json") is None or (known is not None and known.parts != draft.parts):
            store.write(f"{self.folder}/draft.json", encode(draft), mode=self.target.mode)

    def finish_part(self, manifest: Manifest) -> None:
        """Note down that all ranks of a part are finished."""
        self.target.store.write(f"{self.folder}/part.json", encode(manifest), mode=self.target.mode)

    def finished_part(self) -> Manifest | None:
        """What `finish_part` has noted down, if anything."""
        return self._document("part.json", Manifest, _LARGEST_DOCUMENT)

    def begin_commit(self, ranks: str) -> None:
        """Note down that staged files begin to take the place of others: from here on only going on makes sense."""
        self.target.store.write(f"{self.folder}/commit.json", encode(_Commit(ranks)), mode=self.target.mode)

    def begun_commit(self) -> str | None:
        """The ranks of a commit that has begun; None when none has."""
        found = self._document("commit.json", _Commit, _LARGEST_RECORD)
        return found.ranks if found is not None else None

    def index(self) -> bytes:
        """The index, as it was given to `begin`."""
        return self.target.store.read(f"{self.folder}/inventory.json", _LARGEST_DOCUMENT)

    def draft(self) -> Manifest:
        """The manifest as it was given to `begin`."""
        found = self._document("draft.json", Manifest, _LARGEST_DOCUMENT)
        if found is None:
            where = f"{self.target.store.url}/{self.folder}/draft.json"
            raise MissingInputError("PlanMissing", "a begun transform's plan is gone", where=where, fix="run the transform again")
        return found

    def _document(self, name: str, kind: type[D], limit: int) -> D | None:
        path = f"{self.folder}/{name}"
        if self.target.store.stat(path) is None:
            return None
        return decode(self.target.store.read(path, limit), kind, f"{self.target.store.url}/{path}")

    def retire_old_manifest(self) -> None:
        """Make what is at the target read as incomplete, before its files are replaced."""
        with contextlib.suppress(MissingInputError):  # another process of this job was quicker
            if self.target.store.stat(MANIFEST_NAME) is not None:
                self.target.store.move(MANIFEST_NAME, f"{self.folder}/replaced.json")

    def replaced_files(self) -> list[str]:
        """The files of the checkpoints that this and other unfinished jobs replace, and those that the others have written."""
        found: list[str] = []
        for manifest in self.replaced():
            found += (*(record.path for record in manifest.listed), *maps_beside(manifest.options))
        for job in self.target.jobs():
            other = self.target.job(job.digest)
            if other.folder != self.folder and not job.staged:
                found += (*(record.path for record in other.records(None).values()), *maps_beside(job.request))
        return found

    def replaced(self) -> list[Manifest]:
        """The manifests of what this and other unfinished jobs have retired."""
        states = [self.target.job(job.digest) for job in self.target.jobs()]
        found = [state._document("replaced.json", Manifest, _LARGEST_DOCUMENT) for state in states]  # noqa: SLF001 - of this class
        return [manifest for manifest in found if manifest is not None]

    def create(self, path: str, *, rank: int, staged: bool, writer: str, size: int, memory: int, copies: bool = False) -> Writer:
        """A new file of the checkpoint; its temporary's name says who writes it. See `Store.create`."""
        temporary = f"{self.folder}/tmp/rank_{rank}.{writer}.{uuid.uuid4().hex}"
        where = self.where(path, staged=staged)
        return self.target.store.create(
            where, temporary=temporary, mode=self.target.mode, size=size, memory=memory, copies=copies
        )

    def where(self, path: str, *, staged: bool) -> str:
        """Where a file appears when it is finished: in its place, or where it waits for the commit."""
        return f"{self.folder}/staging/{path}" if staged else path

    def sweep(self, ranks: set[int], is_gone: Callable[[str, str], bool]) -> None:
        """Remove temporaries of these ranks whose writers are gone; `is_gone` is asked with the writer and the file's path."""
        for entry in self.target.store.list(f"{self.folder}/tmp"):
            path = f"{self.folder}/tmp/{entry.name}"
            rank, _, writer = entry.name.rpartition(".")[0].removeprefix("rank_").partition(".")
            if rank.isdigit() and int(rank) in ranks and is_gone(writer, path):
                self.target.store.delete(path)

    def record(self, record: FileRecord) -> None:
        """Note down that a rank's file is whole, durable and verified."""
        self.target.store.write(f"{self.folder}/records/rank_{record.rank}.json", encode(record), mode=self.target.mode)

    def records(self, ranks: Iterable[int] | None) -> dict[int, FileRecord]:
        """The records of those of these ranks (None: of all) that are finished."""
        return {record.rank: record for record in self.each_record(ranks)}

    def each_record(self, ranks: Iterable[int] | None) -> Iterator[FileRecord]:
        """The same one by one: each is a file of its own."""
        wanted = None if ranks is None else {f"rank_{rank}.json" for rank in ranks}
        for entry in self.target.store.list(f"{self.folder}/records"):
            if entry.name.endswith(".json") and (wanted is None or entry.name in wanted):
                path = f"{self.folder}/records/{entry.name}"
                yield decode(self.target.store.read(path, _LARGEST_RECORD), FileRecord, f"{self.target.store.url}/{path}")

    def find(self, record: FileRecord, *, staged: bool, thorough: bool = False) -> str | None:
        """Where a record's file is, if it is there in its full length; `thorough`: and with its content.

        A commit that was interrupted has moved some staged files already. What lies in their place may as well be an old file
        of the same length, so there the content decides.
        """
        store = self.target.store
        waiting = self.where(record.path, staged=True)
        if staged and self._has_length(waiting, record.size):
            return waiting
        if not self._has_length(record.path, record.size):
            return None
        if staged or thorough:
            reader = store.open(record.path)
            try:
                if not matches(reader, record.digest, remote=store.remote):
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
