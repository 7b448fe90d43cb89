"""The target folder: its layout on the storage, and how files in it become a complete checkpoint.

```
rank_<r>/<prefix><r>.<ext>     appears whole, when its rank is done; of unified files part<r>.safetensors,
                               of a part <prefix><r>_part<stage>.<ext>
reshard-index.json             in the place of files, where `output: Index` asks for it: see reshard.source.index
param_name_map.json            of unified files, see reshard.checkpoint.unified: written by the commit
reshard-manifest.json          written last: its presence says complete
.reshard/                      of unfinished transforms only; gone once the manifest is there
    lock                       with parts, each a job: shared by all of them; lock-part<stage> is of one
    <job>/job.json             what is being made, and whether it replaces something
    <job>/inventory.json       strategies and the source's headers, read once: see reshard.source.index
    <job>/draft.json           the manifest but for the files
    <job>/stage.json            the manifest of a stage, once it is finished; the last one to be finished completes the checkpoint
    <job>/commit.json          which ranks are being committed, once the commit of staged files has begun
    <job>/replaced.json        the manifest of the checkpoint that is being replaced, once that is retired
    <job>/records/rank_<r>     a finished rank
    <job>/staging/...          finished files that wait for the commit, when they replace others
    <job>/tmp/...              files that are being written
    <job>/rejected/...         files that differ from the source when compared with it, for inspection
```
"""

from __future__ import annotations

import contextlib
import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import msgspec

from reshard.checkpoint.manifest import INDEX_NAME, MANIFEST_NAME, STATE, FileRecord, Manifest, decode, encode
from reshard.checkpoint.unified import maps_beside
from reshard.errors import MissingInputError, ReshardError
from reshard.parallel import parallel
from reshard.storage.cancellable import CancellableReader
from reshard.storage.digest import matches, sample_of
from reshard.storage.protocol import PROBE
from reshard.target.standing import JobDocument, Standing, Unfinished

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from reshard.storage.protocol import Stat, Store, Writer

LOCK = f"{STATE}/lock"
_LARGEST_DOCUMENT = 4 << 30
_LARGEST_RECORD = 1 << 20
_DOCUMENTS = ("inventory.json", "draft.json", "stage.json")  # which may be long enough to be sent in parts
_RECORD = re.compile(r"rank_(\d{1,9})\.json", re.ASCII)


class _Commit(msgspec.Struct, frozen=True):
    ranks: str


D = TypeVar("D")


@dataclass(frozen=True, slots=True)
class TargetFolder:
    """Reads and writes what belongs to one job at a target.

    Attributes:
        store: the target.
        mode: permission bits of what is written; None: as the umask has them.
    """

    store: Store
    mode: int | None

    def observe(self) -> Standing:
        """What is here now.

        Raises:
            DataError: the manifest, or what says what is being made, is damaged.
        """
        state = self.store.list(STATE)
        jobs = [self._unfinished(f"{STATE}/{entry.name}") for entry in state if entry.is_folder]
        return Standing(self.manifest(), tuple(job for job in jobs if job is not None), remains=bool(state))

    def _unfinished(self, folder: str) -> Unfinished | None:
        names = {entry.name for entry in self.store.list(folder)}
        job = self.document(f"{folder}/job.json", JobDocument, _LARGEST_RECORD) if "job.json" in names else None
        return Unfinished(job, "commit.json" in names, "replaced.json" in names) if job is not None else None

    def manifest(self) -> Manifest | None:
        """The manifest of the complete checkpoint that is here, if there is one.

        Raises:
            DataError: it is damaged.
        """
        return self.document(MANIFEST_NAME, Manifest, _LARGEST_DOCUMENT)

    def document(self, path: str, kind: type[D], limit: int) -> D | None:
        """A document of at most `limit` bytes, if it is there.

        Raises:
            DataError: it is damaged, or larger.
        """
        try:
            content = self.store.read(path, limit)
        except MissingInputError as error:
            if error.reason != "NotFound":
                raise
            return None
        return decode(content, kind, f"{self.store.url}/{path}")

    def write_manifest(self, manifest: Manifest) -> None:
        """Declare the checkpoint complete."""
        content = encode(manifest, pretty=True)
        writer = self.store.create(MANIFEST_NAME, temporary=f"{STATE}/manifest.{uuid.uuid4().hex}.tmp", mode=self.mode)
        try:
            writer.write(content)
            writer.finish()
        finally:
            writer.abort()

    def job(self, digest: str) -> JobState:
        """The state of one job."""
        return JobState(self, f"{STATE}/{digest[:16]}")

    def forget_jobs(self, files: Iterable[str] = ()) -> None:
        """Remove what unfinished jobs have left, this one's of these files included; the lock stays.

        Any concurrent writer will fail.
        """
        state = self.store.list(STATE)
        documents = [f"{STATE}/{entry.name}/{name}" for entry in state if entry.is_folder for name in _DOCUMENTS]
        self.store.abort_stale_uploads([*files, *documents, MANIFEST_NAME, INDEX_NAME, PROBE], silent=0.0)
        for entry in state:
            if not f"{STATE}/{entry.name}".startswith(LOCK):
                self._remove(f"{STATE}/{entry.name}")

    def replaced(self, standing: Standing) -> list[Manifest]:
        """The manifests of what unfinished jobs have retired."""
        found = [self.job(other.job.digest).replaced() for other in standing.unfinished if other.retired]
        return [manifest for manifest in found if manifest is not None]

    def replaced_files(self, standing: Standing, digest: str) -> set[str]:
        """The files of the checkpoints that a job and other unfinished ones replace, and those that the others have written."""
        found: set[str] = set()
        for manifest in self.replaced(standing):
            found.update((record.path for record in manifest.listed), maps_beside(manifest.options))
        for other in standing.jobs:
            if other.digest != digest and not other.staged:
                found.update((r.path for r in self.job(other.digest).records(None).values()), maps_beside(other.request))
        return found

    def discard(self, job: JobDocument, heir: JobState) -> None:
        """Remove an unfinished job and what it has written; what it has taken apart its heir is to remove."""
        state = self.job(job.digest)
        if self.store.stat(f"{state.folder}/replaced.json") is not None:
            self.store.move(f"{state.folder}/replaced.json", f"{heir.folder}/replaced.json")
        if not job.staged:
            self.store.delete_files([record.path for record in state.records(None).values()])
        self._remove(state.folder)

    def _remove(self, path: str) -> None:
        """Records first: a kill leaves none of a job of which nothing says any more with which key it was begun."""
        if self.store.list(f"{path}/records"):
            self.store.delete(f"{path}/records")
        self.store.delete(path)


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

    def refresh(self, job: JobDocument, index: bytes, draft: Manifest) -> None:
        """Record a job again whose source was copied again since it was started."""
        store = self.target.store
        store.write(f"{self.folder}/inventory.json", index, mode=self.target.mode)
        store.write(f"{self.folder}/draft.json", encode(draft), mode=self.target.mode)
        store.write(f"{self.folder}/job.json", encode(job), mode=self.target.mode)

    def restore(self, index: bytes, draft: Manifest) -> None:
        """Note down again what of a begun job is gone, and what of it nobody could know before: the number of stages."""
        store = self.target.store
        if store.stat(f"{self.folder}/inventory.json") is None:
            store.write(f"{self.folder}/inventory.json", index, mode=self.target.mode)
        known = self._document("draft.json", Manifest, _LARGEST_DOCUMENT) if draft.stages else None
        if store.stat(f"{self.folder}/draft.json") is None or (known is not None and known.stages != draft.stages):
            store.write(f"{self.folder}/draft.json", encode(draft), mode=self.target.mode)

    def finish_stage(self, manifest: Manifest) -> None:
        """Note down that all ranks of a part are finished."""
        self.target.store.write(f"{self.folder}/stage.json", encode(manifest), mode=self.target.mode)

    def finished_stage(self) -> Manifest | None:
        """What `finish_stage` has noted down, if anything."""
        return self._document("stage.json", Manifest, _LARGEST_DOCUMENT)

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
            raise MissingInputError(
                "PlanMissing", "the plan of the started transform was deleted", where=where, fix="run the transform again"
            )
        return found

    def _document(self, name: str, kind: type[D], limit: int) -> D | None:
        return self.target.document(f"{self.folder}/{name}", kind, limit)

    def retire_old_manifest(self) -> None:
        """Make what is at the target read as incomplete, before its files are replaced."""
        with contextlib.suppress(MissingInputError):  # another process of this job was quicker
            if self.target.store.stat(MANIFEST_NAME) is not None:
                self.target.store.move(MANIFEST_NAME, f"{self.folder}/replaced.json")

    def replaced(self) -> Manifest | None:
        """The manifest of the checkpoint that this job has retired."""
        return self._document("replaced.json", Manifest, _LARGEST_DOCUMENT)

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

    def reject(self, path: str, *, staged: bool) -> str:
        """Keep a finished file that differs from the source for inspection, in place of an earlier one of its rank.

        Returns:
            Where it is now: where it was, if the storage cannot move it. It has no record either way.
        """
        store, where, aside = self.target.store, self.where(path, staged=staged), f"{self.folder}/rejected/{path}"
        with contextlib.suppress(ReshardError):
            store.move(where, aside)
            where = aside
        return f"{store.url}/{where}"

    def sweep(self, ranks: set[int], writing: Collection[str]) -> None:
        """Remove temporaries of these ranks, except those of these processes."""
        for entry in self.target.store.list(f"{self.folder}/tmp"):
            rank, _, writer = entry.name.rpartition(".")[0].removeprefix("rank_").partition(".")
            if rank.isascii() and rank.isdigit() and int(rank) in ranks and writer not in writing:
                self.target.store.delete(f"{self.folder}/tmp/{entry.name}")

    def record(self, record: FileRecord) -> None:
        """Note down that a rank's file is whole, durable and verified."""
        self.target.store.write(f"{self.folder}/records/rank_{record.rank}.json", encode(record), mode=self.target.mode)

    def recorded_ranks(self) -> set[int]:
        """The ranks that are finished."""
        names = (entry.name for entry in self.target.store.list(f"{self.folder}/records"))
        return {int(found[1]) for name in names if (found := _RECORD.fullmatch(name))}

    def records(self, ranks: Iterable[int] | None, check: Callable[[], None] = lambda: None) -> dict[int, FileRecord]:
        """The records of those of these ranks (None: of all) that are finished; `check` raises to cancel."""
        wanted = None if ranks is None else {f"rank_{rank}.json" for rank in ranks}

        def read(name: str) -> FileRecord:
            path = f"{self.folder}/records/{name}"
            return decode(self.target.store.read(path, _LARGEST_RECORD), FileRecord, f"{self.target.store.url}/{path}")

        names = (entry.name for entry in self.target.store.list(f"{self.folder}/records"))
        listed = [name for name in names if name.endswith(".json") and (wanted is None or name in wanted)]
        return {record.rank: record for record in parallel(read, listed, check=check)}

    def locate(
        self,
        records: Iterable[FileRecord],
        *,
        staged: bool,
        thorough: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> dict[str, str]:
        """Return where the files of these records are, by their paths. Files that are gone or have another length are left out.

        A commit that was interrupted has moved some staged files already. What lies in their place may as well be an old file
        of the same length, so there the content decides.

        Args:
            records: the records of the files.
            staged: whether the files wait for the commit.
            thorough: whether to compare contents too.
            check: raises to cancel.
        """
        wanted = {record.path: record for record in records}
        waiting = {path: self.where(path, staged=True) for path in wanted} if staged else {}
        there = self.target.store.stats([*wanted, *waiting.values()])

        def find(record: FileRecord) -> str | None:
            if staged and self._is_unchanged(record, waiting[record.path], there.get(waiting[record.path])):
                return waiting[record.path]
            found = there.get(record.path)
            if found is None or found.size != record.size:
                return None
            unchanged = self._matches(record, check) if staged or thorough else self._is_unchanged(record, record.path, found)
            return record.path if unchanged else None

        found = zip(wanted, parallel(find, wanted.values(), check=check), strict=True)
        return {path: where for path, where in found if where is not None}

    def _matches(self, record: FileRecord, check: Callable[[], None]) -> bool:
        with contextlib.closing(CancellableReader(self.target.store.open(record.path), check)) as reader:
            return matches(reader, record.digest, remote=self.target.store.remote)

    def _is_unchanged(self, record: FileRecord, path: str, found: Stat | None) -> bool:
        """Return whether a file has the length, and the sampled blocks or the version, that its record lists.

        An object store lists versions with lengths. Blocks are read of objects with other versions only, such as copies: to read
        them all takes longer than all the rest of a commit of thousands of ranks.
        """
        if found is None or found.size != record.size:
            return False
        if not record.sample or (record.version and record.version == found.version):
            return True
        with contextlib.closing(self.target.store.open(path)) as reader:
            return sample_of(reader, remote=self.target.store.remote) == record.sample

    def publish(self, records: Sequence[FileRecord], check: Callable[[], None]) -> None:
        """Move staged files to their places; `check` raises to cancel.

        Raises:
            MissingInputError: a file is neither staged nor in its place.
        """
        there = self.locate(records, staged=True, check=check)
        gone = next((record.path for record in records if record.path not in there), None)
        if gone is not None:
            raise MissingInputError("FileMissing", "a finished file was deleted", where=gone, fix="run the transform again")
        moves = [(where, path) for path, where in there.items() if where != path]
        for _ in parallel(lambda move: self.target.store.move(*move), moves, check=check):
            pass
