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

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reshard.checkpoint.manifest import INDEX_NAME, MANIFEST_NAME, STATE, Manifest
from reshard.formats.registry import document_names
from reshard.storage.protocol import PROBE
from reshard.target.documents import LARGEST_RECORD, LOCK, TargetDocuments
from reshard.target.snapshot import TargetSnapshot, TaskRecord, Unfinished
from reshard.target.task import TaskState

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

_UPLOADED = ("inventory.json", "draft.json", "stage.json")  # documents of a task that may exceed a single request


@dataclass(frozen=True, slots=True)
class TargetFolder(TargetDocuments):
    """Reads and writes everything in a target."""

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
        task = self.document(f"{folder}/task.json", TaskRecord, LARGEST_RECORD) if "task.json" in names else None
        return Unfinished(task, "commit.json" in names, "replaced.json" in names) if task is not None else None

    def task(self, digest: str) -> TaskState:
        """Return the state of one task."""
        return TaskState(self, f"{STATE}/{digest[:16]}")

    def forget_tasks(self, digests: Collection[str], files: Iterable[str] = ()) -> None:
        """Remove everything that these tasks have left, including these files of this task. The lock remains.

        Other tasks remain, because another process may have started them after it has taken over the lock.
        """
        state = self.store.list(STATE)
        self.check_lock()
        documents = [f"{STATE}/{entry.name}/{name}" for entry in state if entry.is_folder for name in _UPLOADED]
        self.store.abort_stale_uploads([*files, *documents, MANIFEST_NAME, INDEX_NAME, PROBE], silent=0.0)
        for path in [f"{STATE}/{entry.name}" for entry in state if not f"{STATE}/{entry.name}".startswith(LOCK)]:
            task = self.document(f"{path}/task.json", TaskRecord, LARGEST_RECORD)
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
