"""The target folder: its structure in the store, and the completion of a checkpoint from its files.

```
rank_<r>/<prefix><r>.<ext>     a finished rank. Unified files: part<r>.safetensors. Files of a stage:
                               <prefix><r>_part<stage>.<ext>
reshard-strategy.ckpt          strategy file of the target, on request, written by the commit
reshard-index.json             replaces the files with `output: Index`, see reshard.source.index
param_name_map.json            index of unified files, written by the commit, see reshard.checkpoint.unified
reshard-manifest.json          written last: the checkpoint is complete if it exists
.reshard/                      exists only while a transform is unfinished
    lock                       the lock. Tasks that write stages share it, and each has lock-part<stage>
    <transform>/task.json        the record of a task: what it writes, and whether it replaces something
    <transform>/inventory.json  strategies and the source's headers, see reshard.source.index
    <transform>/draft.json      the manifest without the files
    <transform>/stage.json      the manifest of a finished stage. The last stage completes the checkpoint
    <transform>/commit.json     the ranks of a commit of staged files that has started
    <transform>/documents.json  exists when the commit has started to write the documents of the checkpoint
    <transform>/replaced.json   the retired manifest of the checkpoint that is being replaced
    <transform>/records/rank_<r> the record of a finished rank
    <transform>/staging/...     finished files that replace others, until the commit
    <transform>/tmp/...         files that are being written
    <transform>/rejected/...    files that differ from the source, for inspection
```
"""

from __future__ import annotations

import contextlib
import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import msgspec

from reshard.checkpoint.manifest import INDEX_NAME, MANIFEST_NAME, STATE, FileRecord, Loss, Manifest, decode, encode
from reshard.errors import DataError, MissingInputError
from reshard.formats.registry import document_names
from reshard.parallel import parallel
from reshard.storage.cancellable import CancellableReader
from reshard.storage.digest import ContentDigest, is_version, matches, sample_of
from reshard.storage.protocol import PROBE
from reshard.target.fingerprints import FingerprintSums, SliceFingerprints
from reshard.target.snapshot import TargetSnapshot, TaskRecord, Unfinished

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from reshard.checkpoint.inventory import CarriedFile
    from reshard.spec.storage_options import Link
    from reshard.storage.protocol import NewFile, ReadStore, Stat, Store, Writer

LOCK = f"{STATE}/lock"
_LARGEST_DOCUMENT = 4 << 30
_LARGEST_RECORD = 1 << 20
_LARGEST_RANK_RECORD = 1 << 30  # it names the parameters of the file
_RECORDS_AT_ONCE = 32
_DOCUMENTS = ("inventory.json", "draft.json", "stage.json")  # documents that may exceed a single request
_RECORD = re.compile(r"rank_(\d{1,9})\.json", re.ASCII)


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
    content = store.read(MANIFEST_NAME, _LARGEST_DOCUMENT)
    start, _, _ = content.rpartition(_CHECKSUM)
    if content != _with_checksum(start + b"\n}\n"):
        raise DataError("ContentChanged", f"the content of {MANIFEST_NAME} has changed", where=store.url, fix=fix)


class _Commit(msgspec.Struct, frozen=True):
    ranks: str


class _RankRecord(msgspec.Struct, frozen=True):
    """The record of a finished rank, and the folder of its task: a record that was copied from another task does not count."""

    task: str
    file: FileRecord


class _WithParameters(_RankRecord, frozen=True):
    """The same with the changes that casts have made to each parameter, and with the fingerprints of its slices."""

    losses: dict[str, Loss] = {}
    fingerprints: tuple[SliceFingerprints, ...] = ()


D = TypeVar("D")


def _unlocked() -> None:
    """Check nothing: a target that is only read needs no lock."""


@dataclass(frozen=True, slots=True)
class TargetFolder:
    """Reads and writes everything in a target.

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

    def observe(self) -> TargetSnapshot:
        """Return a snapshot of the target.

        Raises:
            DataError: the manifest or the record of a task is damaged.
        """
        state = self.store.list(STATE)
        tasks = [self._unfinished(f"{STATE}/{entry.name}") for entry in state if entry.is_folder]
        return TargetSnapshot(self.manifest(), tuple(task for task in tasks if task is not None), remains=bool(state))

    def _unfinished(self, folder: str) -> Unfinished | None:
        names = {entry.name for entry in self.store.list(folder)}
        task = self.document(f"{folder}/task.json", TaskRecord, _LARGEST_RECORD) if "task.json" in names else None
        return Unfinished(task, "commit.json" in names, "replaced.json" in names) if task is not None else None

    def manifest(self) -> Manifest | None:
        """Return the manifest of the complete checkpoint in the target, or None if there is none.

        Raises:
            DataError: the manifest is damaged.
        """
        return self.document(MANIFEST_NAME, Manifest, _LARGEST_DOCUMENT)

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

    def task(self, digest: str) -> TaskState:
        """Return the state of one task."""
        return TaskState(self, f"{STATE}/{digest[:16]}")

    def forget_tasks(self, digests: Collection[str], files: Iterable[str] = ()) -> None:
        """Remove everything that these tasks have left, including these files of this task. The lock remains.

        Other tasks remain, because another process may have started them after it has taken over the lock.
        """
        state = self.store.list(STATE)
        self.check_lock()
        documents = [f"{STATE}/{entry.name}/{name}" for entry in state if entry.is_folder for name in _DOCUMENTS]
        self.store.abort_stale_uploads([*files, *documents, MANIFEST_NAME, INDEX_NAME, PROBE], silent=0.0)
        for path in [f"{STATE}/{entry.name}" for entry in state if not f"{STATE}/{entry.name}".startswith(LOCK)]:
            task = self.document(f"{path}/task.json", TaskRecord, _LARGEST_RECORD)
            if task is None or task.digest in digests:
                self._remove(path)

    def replaced(self, snapshot: TargetSnapshot) -> list[Manifest]:
        """Return the manifests that unfinished tasks have retired."""
        found = [self.task(other.task.digest).replaced() for other in snapshot.unfinished if other.retired]
        return [manifest for manifest in found if manifest is not None]

    def replaced_files(self, snapshot: TargetSnapshot, digest: str) -> set[str]:
        """Return the paths of the files of retired checkpoints, and of the files that tasks other than `digest` have written."""
        found: set[str] = set()
        for manifest in self.replaced(snapshot):
            found |= self._listed(manifest)
        for other in snapshot.tasks:
            if other.digest != digest and not other.staged:
                found |= self._written(other)
        return found

    def _written(self, task: TaskRecord) -> set[str]:
        state = self.task(task.digest)
        documents = document_names(task.request) if state.has_begun_documents() else ()
        return {*(record.path for record in state.records(None).values()), *documents}

    def _listed(self, manifest: Manifest | None) -> set[str]:
        return {*(each.path for each in manifest.listed), *document_names(manifest.options)} if manifest is not None else set()

    def discard(self, task: TaskRecord, heir: TaskState) -> None:
        """Remove an unfinished task and its files. Assign the checkpoint that it has retired to the task `heir`.

        Files of a complete checkpoint remain: the task may be what a killed process has left after it has completed it.
        """
        state = self.task(task.digest)
        self.check_lock()
        if self.store.stat(f"{state.folder}/replaced.json") is not None:
            self.store.move(f"{state.folder}/replaced.json", f"{heir.folder}/replaced.json", make_folder=False)
        if not task.staged:
            written = self._written(task)
            self._end_writers(state, written)
            heir.take_away(written - self._listed(self.manifest()))
        self._remove(state.folder)

    def _end_writers(self, state: TaskState, files: Iterable[str]) -> None:
        """Remove what processes of a task have not published yet. They check the lock before they publish anything newer."""
        self.store.delete(f"{state.folder}/tmp")
        for entry in self.store.list(state.folder):
            if entry.name.endswith(".tmp"):
                self.store.delete(f"{state.folder}/{entry.name}")
        self.store.abort_stale_uploads([*files, MANIFEST_NAME], silent=0.0)

    def _remove(self, path: str) -> None:
        """Remove a folder, records first. If the process is killed, no record with an unknown key remains."""
        if self.store.list(f"{path}/records"):
            self.store.delete(f"{path}/records")
        self.store.delete(path)


@dataclass(frozen=True, slots=True)
class TaskState:
    """The progress of one task in the target."""

    target: TargetFolder
    folder: str

    def read(self) -> TaskRecord | None:
        """Return the record of the task, or None if it was not started."""
        return self._document("task.json", TaskRecord, _LARGEST_RECORD)

    def begin(self, task: TaskRecord, index: bytes, draft: Manifest, carried: Mapping[str, bytes]) -> TaskRecord:
        """Record the task. If several processes do this concurrently, all return the record of the first.

        Args:
            task: the record.
            index: index of the source.
            draft: manifest without files.
            carried: files for the commit to write, by their paths.
        """
        store, path = self.target.store, f"{self.folder}/task.json"
        self._keep(carried)
        store.write(f"{self.folder}/draft.json", encode(draft), mode=self.target.mode)
        store.write(f"{self.folder}/inventory.json", index, mode=self.target.mode)
        if store.write_new(path, encode(task), mode=self.target.mode):
            return task
        recorded = self.read()
        return recorded if recorded is not None else task

    def _keep(self, carried: Mapping[str, bytes]) -> None:
        store = self.target.store
        for path, content in ((f"{self.folder}/carried/{name}", content) for name, content in carried.items()):
            found = store.stat(path)
            if found is None or found.size != len(content):
                store.write(path, content, mode=self.target.mode)

    def refresh(self, task: TaskRecord, index: bytes, draft: Manifest, carried: Mapping[str, bytes]) -> None:
        """Record a task again whose source was copied again since the task was started. Arguments: see `begin`."""
        store = self.target.store
        self._keep(carried)
        store.write(f"{self.folder}/inventory.json", index, mode=self.target.mode)
        store.write(f"{self.folder}/draft.json", encode(draft), mode=self.target.mode)
        store.write(f"{self.folder}/task.json", encode(task), mode=self.target.mode)

    def restore(self, index: bytes, draft: Callable[[], Manifest], carried: Mapping[str, bytes], *, stage: bool) -> None:
        """Restore the missing documents of a started task, and add the number of stages, which was unknown before.

        Args:
            index: index of the source.
            draft: function that returns the manifest without files. It reads the manifest of the source.
            carried: files for the commit to write, by their paths.
            stage: whether the task writes a stage.
        """
        store = self.target.store
        self._keep(carried)
        if store.stat(f"{self.folder}/inventory.json") is None:
            store.write(f"{self.folder}/inventory.json", index, mode=self.target.mode)
        missing = store.stat(f"{self.folder}/draft.json") is None
        if not (missing or stage):
            return
        known, new = None if missing else self.draft(), draft()
        if known is None or known.stages != new.stages:
            store.write(f"{self.folder}/draft.json", encode(new), mode=self.target.mode)

    def finish_stage(self, manifest: Manifest) -> None:
        """Record that all ranks of a stage are finished."""
        self.target.store.write(f"{self.folder}/stage.json", encode(manifest), mode=self.target.mode)

    def finished_stage(self) -> Manifest | None:
        """Return the manifest that `finish_stage` has recorded, or None if the stage is not finished."""
        return self._document("stage.json", Manifest, _LARGEST_DOCUMENT)

    def begin_commit(self, ranks: str) -> None:
        """Record that staged files start to replace others. From here on, the commit can only be completed."""
        self.target.store.write(f"{self.folder}/commit.json", encode(_Commit(ranks)), mode=self.target.mode)

    def started_commit(self) -> str | None:
        """Return the ranks of a commit that has started, or None if no commit has started."""
        found = self._document("commit.json", _Commit, _LARGEST_RECORD)
        return found.ranks if found is not None else None

    def begin_documents(self) -> None:
        """Record that the documents of the checkpoint start to be written. From here on, they belong to the task."""
        self.target.store.write(f"{self.folder}/documents.json", b"{}\n", mode=self.target.mode)

    def has_begun_documents(self) -> bool:
        """Return whether the documents of the checkpoint have started to be written."""
        return self.target.store.stat(f"{self.folder}/documents.json") is not None

    def index(self) -> bytes:
        """Return the index that was passed to `begin`."""
        return self.target.store.read(f"{self.folder}/inventory.json", _LARGEST_DOCUMENT)

    def carried(self, file: CarriedFile) -> bytes:
        """Return the content of a file that was passed to `begin`.

        Raises:
            MissingInputError: it was deleted or changed.
        """
        path = f"{self.folder}/carried/{file.path}"
        content = self.target.store.read(path, file.size)
        if str(ContentDigest(content)) != file.digest:
            where = f"{self.target.store.url}/{path}"
            raise MissingInputError("PlanMissing", "the saved file was changed", where=where, fix="run the transform again")
        return content

    def draft(self) -> Manifest:
        """Return the manifest that was passed to `begin`."""
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
        """Make the target read as incomplete before its files are replaced, also to programs that read its documents."""
        with contextlib.suppress(MissingInputError):  # another process of this task was faster
            if (manifest := self.target.manifest()) is not None:
                self.take_away(document_names(manifest.options))
                self.target.store.move(MANIFEST_NAME, f"{self.folder}/replaced.json", make_folder=False)

    def take_away(self, paths: Collection[str], *, prune: bool = False) -> None:
        """Delete files at final paths, see `Store.delete_files`.

        Raises:
            LockedError: another process has taken over the lock.
            StorageError: another process has deleted the folder of the task.
        """
        self.target.check_lock()
        self.target.store.delete_files(paths, prune=prune, through=self.folder)

    def replaced(self) -> Manifest | None:
        """Return the manifest of the checkpoint that this task has retired, or None if it has retired none."""
        return self._document("replaced.json", Manifest, _LARGEST_DOCUMENT)

    def create(self, path: str, *, rank: int, staged: bool, writer: str, size: int, memory: int, copies: bool = False) -> Writer:
        """Create a file of the checkpoint. The name of its temporary file contains the writer. See `Store.create`."""
        temporary = f"{self.folder}/tmp/rank_{rank}.{writer}.{uuid.uuid4().hex}"
        where = self.where(path, staged=staged)
        return self.target.store.create(
            where, temporary=temporary, mode=self.target.mode, size=size, memory=memory, copies=copies
        )

    def link(self, original: str, path: str, how: Link, *, rank: int, staged: bool, writer: str) -> NewFile:
        """Create a file of the checkpoint from a finished one. See `create`."""
        return self.target.store.link(
            self.where(original, staged=staged),
            self.where(path, staged=staged),
            how,
            temporary=f"{self.folder}/tmp/rank_{rank}.{writer}.{uuid.uuid4().hex}",
            mode=self.target.mode,
        )

    def where(self, path: str, *, staged: bool) -> str:
        """Return the path of a finished file: its final path, or its path in the staging folder."""
        return f"{self.folder}/staging/{path}" if staged else path

    def reject(self, path: str, temporary: str) -> str:
        """Keep a file that differs from the source for inspection, and replace an earlier one of its rank. Return its URL."""
        aside = f"{self.folder}/rejected/{path}"
        self.target.store.move(temporary, aside)
        return f"{self.target.store.url}/{aside}"

    def sweep(self, ranks: set[int], writing: Collection[str]) -> None:
        """Remove the temporary files of these ranks, except those of running writers."""
        for entry in self.target.store.list(f"{self.folder}/tmp"):
            rank, _, writer = entry.name.rpartition(".")[0].removeprefix("rank_").partition(".")
            if rank.isascii() and rank.isdigit() and int(rank) in ranks and writer not in writing:
                self.target.store.delete(f"{self.folder}/tmp/{entry.name}")

    def record(self, record: FileRecord, losses: Mapping[str, Loss], fingerprints: tuple[SliceFingerprints, ...] = ()) -> None:
        """Record that a rank's file is complete, durable and verified.

        Args:
            record: record of the file.
            losses: changes of casts, by parameter.
            fingerprints: fingerprints of the slices in the file.
        """
        content = encode(_WithParameters(self.folder, record, dict(losses), fingerprints))
        self.target.store.write(f"{self.folder}/records/rank_{record.rank}.json", content, mode=self.target.mode)

    def recorded_ranks(self) -> set[int]:
        """Return the finished ranks."""
        names = (entry.name for entry in self.target.store.list(f"{self.folder}/records"))
        return {int(found[1]) for name in names if (found := _RECORD.fullmatch(name))}

    def records(
        self,
        ranks: Iterable[int] | None,
        check: Callable[[], None] = lambda: None,
        fingerprints: FingerprintSums | None = None,
    ) -> dict[int, FileRecord]:
        """Return the records of ranks as far as they are finished.

        Args:
            ranks: the ranks. None means all.
            check: function that raises to cancel.
            fingerprints: sums to which the fingerprints of the slices in the files are added.
        """
        wanted = None if ranks is None else {f"rank_{rank}.json" for rank in ranks}
        names = (entry.name for entry in self.target.store.list(f"{self.folder}/records"))
        listed = [name for name in names if name.endswith(".json") and (wanted is None or name in wanted)]
        if fingerprints is None:
            found = parallel(lambda name: self._record(name, _RankRecord), listed, check=check)
            return {record.file.rank: record.file for record in found if record is not None and record.task == self.folder}
        records = {}
        for record in self._complete_records(listed, check):
            if record.task == self.folder:
                records[record.file.rank] = record.file
                fingerprints.add(record.file.rank, record.fingerprints)
        return records

    def losses(self, ranks: Iterable[int], check: Callable[[], None]) -> dict[str, Loss]:
        """Return the changes that casts have made in the files of these ranks, by parameter. `check` raises to cancel.

        Raises:
            MissingInputError: a record was deleted.
        """
        found: dict[str, Loss] = {}
        names = [f"rank_{rank}.json" for rank in ranks]
        read = 0
        for record in self._complete_records(names, check):
            read += 1
            for name, loss in record.losses.items():
                found[name] = found.get(name, Loss()).plus(loss)
        if read < len(names):
            where = f"{self.target.store.url}/{self.folder}/records"
            raise MissingInputError("FileMissing", "a record was deleted", where=where, fix="run the transform again")
        return found

    def _complete_records(self, names: Sequence[str], check: Callable[[], None]) -> Iterator[_WithParameters]:
        for start in range(0, len(names), _RECORDS_AT_ONCE):  # each can be large
            batch = names[start : start + _RECORDS_AT_ONCE]
            found = parallel(lambda name: self._record(name, _WithParameters), batch, check=check)
            yield from (record for record in found if record is not None)

    def _record(self, name: str, kind: type[D]) -> D | None:
        """Return a record, or None if another process has removed it since it was listed."""
        return self._document(f"records/{name}", kind, _LARGEST_RANK_RECORD)

    def locate(
        self,
        records: Iterable[FileRecord],
        *,
        staged: bool,
        thorough: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> dict[str, str]:
        """Return the location of the file of each record, by path. Missing files and files with another size are left out.

        An interrupted commit has already moved some staged files. A file at the final path may also be an old file of the same
        size, so its content is compared.

        Args:
            records: records of the files.
            staged: whether the files are staged until the commit.
            thorough: whether contents are compared as well.
            check: function that raises to cancel.
        """
        wanted = {record.path: record for record in records}
        waiting = {path: self.where(path, staged=True) for path in wanted} if staged else {}
        there = self.target.store.stats([*wanted, *waiting.values()])

        def find(record: FileRecord) -> str | None:
            if staged and self._is_unchanged(record, waiting[record.path], there.get(waiting[record.path]), check):
                return waiting[record.path]
            found = there.get(record.path)
            if found is None or found.size != record.size:
                return None
            whole = staged or thorough
            unchanged = (
                self._matches(record, record.path, check) if whole else self._is_unchanged(record, record.path, found, check)
            )
            return record.path if unchanged else None

        found = zip(wanted, parallel(find, wanted.values(), check=check), strict=True)
        return {path: where for path, where in found if where is not None}

    def _matches(self, record: FileRecord, path: str, check: Callable[[], None]) -> bool:
        with contextlib.closing(CancellableReader(self.target.store.open(path), check)) as reader:
            return matches(reader, record.digest, remote=self.target.store.remote)

    def _is_unchanged(self, record: FileRecord, path: str, found: Stat | None, check: Callable[[], None]) -> bool:
        """Return True if a file has the size in its record, and is unchanged as far as its version and content show.

        A listing contains the versions. A file in a file system with another version, which is its modification time, is
        compared completely. Of an object with another version, such as a copy, blocks are compared: reading all of it takes
        longer than the rest of a commit of thousands of ranks.
        """
        if found is None or found.size != record.size:
            return False
        remote = self.target.store.remote
        known = record.version != "" and found.version != ""
        if not record.sample or (remote and known and record.version == found.version):
            return True
        if known and not remote and record.version != found.version and not is_version(record.digest):
            return self._matches(record, path, check)
        with contextlib.closing(CancellableReader(self.target.store.open(path), check)) as reader:
            return sample_of(reader, remote=remote) == record.sample

    def publish(self, records: Sequence[FileRecord], check: Callable[[], None]) -> None:
        """Move staged files to their final paths. `check` raises to cancel.

        Raises:
            MissingInputError: a file is neither staged nor at its final path.
        """
        there = self.locate(records, staged=True, check=check)
        gone = next((record.path for record in records if record.path not in there), None)
        if gone is not None:
            raise MissingInputError("FileMissing", "a finished file was deleted", where=gone, fix="run the transform again")
        self.target.check_lock()
        moves = [(where, path) for path, where in there.items() if where != path]
        for _ in parallel(lambda move: self.target.store.move(*move), moves, check=check):
            pass
