"""The progress of one task in a target: its documents, its records of finished files, and the files themselves."""

from __future__ import annotations

import contextlib
import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from reshard.checkpoint.manifest import MANIFEST_NAME, FileRecord, Manifest, encode
from reshard.errors import MissingInputError
from reshard.formats.registry import document_names
from reshard.parallel import parallel
from reshard.storage.cancellable import CancellableReader
from reshard.storage.digest import ContentDigest, is_version, matches, sample_of
from reshard.target.cast_losses import CastLosses
from reshard.target.documents import LARGEST_DOCUMENT, LARGEST_RECORD, D, TargetDocuments
from reshard.target.fingerprint_sums import SliceFingerprints
from reshard.target.snapshot import TaskRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from reshard.checkpoint.inventory import CarriedFile
    from reshard.spec.storage_options import Link
    from reshard.storage.protocol import NewFile, Stat, Writer

_LARGEST_RANK_RECORD = 1 << 30  # it contains a fingerprint of each parameter of the file
# Bytes of records that are read at the same time.
RECORDS_BYTES = 2 << 20
_RECORDS_AT_ONCE = 32
_RECORD = re.compile(r"rank_(\d{1,9})\.json", re.ASCII)
_NO_LOSSES = CastLosses()


class _Commit(msgspec.Struct, frozen=True):
    ranks: str


class _FinishedFile(msgspec.Struct, frozen=True):
    """The file of a finished rank, and the folder of its task: a record that was copied from another task does not count."""

    task: str
    file: FileRecord


class RankRecord(_FinishedFile, frozen=True):
    """The same with the changes that casts have made to each parameter, and with the fingerprints of its slices."""

    losses: CastLosses = _NO_LOSSES
    fingerprints: tuple[SliceFingerprints, ...] = ()


@dataclass(frozen=True, slots=True)
class TaskState:
    """The progress of one task in the target."""

    target: TargetDocuments
    folder: str

    def read(self) -> TaskRecord | None:
        """Return the record of the task, or None if it was not started."""
        return self._document("task.json", TaskRecord, LARGEST_RECORD)

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
        return self._document("stage.json", Manifest, LARGEST_DOCUMENT)

    def begin_commit(self, ranks: str) -> None:
        """Record that staged files start to replace others. From here on, the commit can only be completed."""
        self.target.store.write(f"{self.folder}/commit.json", encode(_Commit(ranks)), mode=self.target.mode)

    def started_commit(self) -> str | None:
        """Return the ranks of a commit that has started, or None if no commit has started."""
        found = self._document("commit.json", _Commit, LARGEST_RECORD)
        return found.ranks if found is not None else None

    def begin_documents(self) -> None:
        """Record that the documents of the checkpoint start to be written. From here on, they belong to the task."""
        self.target.store.write(f"{self.folder}/documents.json", b"{}\n", mode=self.target.mode)

    def has_begun_documents(self) -> bool:
        """Return whether the documents of the checkpoint have started to be written."""
        return self.target.store.stat(f"{self.folder}/documents.json") is not None

    def index(self) -> bytes:
        """Return the index that was passed to `begin`."""
        return self.target.store.read(f"{self.folder}/inventory.json", LARGEST_DOCUMENT)

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
        found = self._document("draft.json", Manifest, LARGEST_DOCUMENT)
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
            seen = self.target.store.stat(MANIFEST_NAME)
            if seen is not None and (manifest := self.target.manifest()) is not None:
                self.take_away(document_names(manifest.options))
                self.target.store.move(MANIFEST_NAME, f"{self.folder}/replaced.json", make_folder=False, seen=seen)

    def take_away(self, paths: Collection[str], *, prune: bool = False) -> None:
        """Delete files at final paths, see `Store.delete_files`.

        Raises:
            LockedError: another process has taken over the lock.
            StorageError: another process has deleted the folder of the task.
        """
        store = self.target.store
        seen = None if store.renames else store.stats(sorted(paths))  # before the check: without files of a later run
        self.target.check_lock()
        store.delete_files(paths, seen=seen, prune=prune, through=self.folder)

    def replaced(self) -> Manifest | None:
        """Return the manifest of the checkpoint that this task has retired, or None if it has retired none."""
        return self._document("replaced.json", Manifest, LARGEST_DOCUMENT)

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

    def record(
        self, record: FileRecord, losses: CastLosses = _NO_LOSSES, fingerprints: tuple[SliceFingerprints, ...] = ()
    ) -> None:
        """Record that a rank's file is complete, durable and verified.

        Args:
            record: record of the file.
            losses: changes of casts.
            fingerprints: fingerprints of the slices in the file.
        """
        content = encode(RankRecord(self.folder, record, losses, fingerprints))
        self.target.store.write(f"{self.folder}/records/rank_{record.rank}.json", content, mode=self.target.mode)

    def recorded_ranks(self) -> set[int]:
        """Return the finished ranks."""
        names = self.target.store.names(f"{self.folder}/records")
        return {int(found[1]) for name in names if (found := _RECORD.fullmatch(name))}

    def records(
        self,
        ranks: Iterable[int] | None,
        check: Callable[[], None] = lambda: None,
        add: Callable[[RankRecord], None] | None = None,
    ) -> dict[int, FileRecord]:
        """Return the records of ranks as far as they are finished.

        Args:
            ranks: the ranks. None means all.
            check: function that raises to cancel.
            add: function that adds the changes of casts and the fingerprints in the files to sums. All of them would take memory
                that grows as ranks times parameters.
        """
        wanted = None if ranks is None else {f"rank_{rank}.json" for rank in ranks}
        entries = self.target.store.list(f"{self.folder}/records")
        listed = [entry for entry in entries if entry.name.endswith(".json") and (wanted is None or entry.name in wanted)]
        kind = _FinishedFile if add is None else RankRecord
        records = {}
        for batch in _batches(listed):
            for record in parallel(lambda name: self._record(name, kind), batch, check=check):
                if record is not None and record.task == self.folder:
                    records[record.file.rank] = record.file
                    if add is not None and isinstance(record, RankRecord):
                        add(record)
        return records

    def fingerprints(self, rank: int) -> tuple[SliceFingerprints, ...]:
        """Return the fingerprints of the slices in the file of a finished rank.

        Raises:
            MissingInputError: the record was deleted.
        """
        record = self._record(f"rank_{rank}.json", RankRecord)
        if record is None:
            where = f"{self.target.store.url}/{self.folder}/records"
            raise MissingInputError("FileMissing", "a record was deleted", where=where, fix="run the transform again")
        return record.fingerprints

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


def _batches(records: Iterable[Stat]) -> Iterator[list[str]]:
    """Yield the names of records that are read at the same time: of `RECORDS_BYTES` together, or of one that is larger."""
    batch, nbytes = list[str](), 0
    for record in records:
        if batch and (len(batch) == _RECORDS_AT_ONCE or nbytes + record.size > RECORDS_BYTES):
            yield batch
            batch, nbytes = [], 0
        batch.append(record.name)
        nbytes += record.size
    if batch:
        yield batch
