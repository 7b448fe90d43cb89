"""A snapshot of a target, from which decisions about the target are derived without reading it again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Collection

    from reshard.checkpoint.manifest import Manifest


class Identity(Protocol):
    """The identity of a task, before and after it is recorded in the target."""

    @property
    def digest(self) -> str:
        """Digest of source, strategies and options."""

    @property
    def stage(self) -> int | None:
        """Pipeline stage of the source whose files the task writes. None means all stages."""

    @property
    def whole(self) -> str:
        """Digest of the checkpoint. It is equal for tasks that write stages of one checkpoint."""

    @property
    def versions(self) -> str:
        """Digest that changes if the source's files are written or copied again."""


class TaskRecord(msgspec.Struct, frozen=True, rename="camel"):
    """Record of a task in a target.

    Attributes:
        digest: digest of the task. Its first 16 digits are the name of the task's folder.
        request: fields of the request that determine the result, to find the task again without reading the source.
        staged: whether finished files are staged, because they will replace others.
        mode: permission bits of the files. None means that the umask determines them.
        in_place: whether the files replace others one by one, because the store cannot rename. The manifest of the other
            checkpoint is retired first, so that the target reads as incomplete until the new manifest exists.
        stage: pipeline stage of the source whose files the task writes. None means all stages.
        whole: value that is equal for tasks that write stages of one checkpoint.
        key_check: value that identifies the key of encrypted files, see `BlockCipher.key_check`.
        versions: digest of the versions of the source's files, see `Inventory.versions`.
    """

    digest: str
    request: dict[str, Any]
    staged: bool
    mode: int | None = None
    in_place: bool = False
    stage: int | None = None
    whole: str = ""
    key_check: bytes | None = None
    versions: str = ""

    @property
    def replaces(self) -> bool:
        """True if the target contained something else when the task was recorded."""
        return self.staged or self.in_place


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A task that was started and is not committed.

    Attributes:
        task: record of the task.
        committing: whether the replacement of files by staged files has started, but not finished.
        retired: whether the task has retired another checkpoint, whose files only this task lists.
    """

    task: TaskRecord
    committing: bool
    retired: bool


@dataclass(frozen=True, slots=True)
class TargetSnapshot:
    """A snapshot of a target.

    Attributes:
        manifest: manifest of the complete checkpoint in the target, if there is one.
        unfinished: tasks that were started and are not committed.
        remains: whether the target contains anything that is removed once a checkpoint is complete.
    """

    manifest: Manifest | None
    unfinished: tuple[Unfinished, ...]
    remains: bool

    @property
    def tasks(self) -> tuple[TaskRecord, ...]:
        """Records of the unfinished tasks."""
        return tuple(found.task for found in self.unfinished)

    @property
    def committing(self) -> bool:
        """True if a commit was interrupted while it replaced files."""
        return any(found.committing for found in self.unfinished)

    def started(self, task: TaskRecord) -> TargetSnapshot:
        """Return the snapshot after a task was started."""
        return replace(self, unfinished=(*self.unfinished, Unfinished(task, committing=False, retired=False)), remains=True)

    def discarded(self, task: TaskRecord, heir: str) -> TargetSnapshot:
        """Return the snapshot after a task was discarded. The task with the digest `heir` now lists what it had retired."""
        retired = any(found.retired for found in self.unfinished if found.task == task)
        kept = [found for found in self.unfinished if found.task != task]
        heirs = (replace(found, retired=found.retired or (retired and found.task.digest == heir)) for found in kept)
        return replace(self, unfinished=tuple(heirs))

    def without_manifest(self, digest: str) -> TargetSnapshot:
        """Return the snapshot after a task has retired the manifest, if there is one."""
        if self.manifest is None:
            return self
        unfinished = tuple(replace(found, retired=True) if found.task.digest == digest else found for found in self.unfinished)
        return replace(self, manifest=None, unfinished=unfinished)

    @property
    def stale(self) -> tuple[TaskRecord, ...]:
        """Records of tasks that would write over a complete checkpoint without replacing it.

        Their process paused before it wrote the record. Meanwhile, another process has taken over the target and completed it.
        """
        complete = self.manifest.tasks if self.manifest is not None else None
        return tuple(task for task in self.tasks if complete is not None and not (task.replaces or task.digest in complete))

    def find_task(self, digest: str) -> TaskRecord | None:
        """Return the record of an unfinished task, or None if it was not started, or is complete."""
        return next((task for task in self.tasks if task.digest == digest), None)

    def siblings(self, task: Identity) -> tuple[TaskRecord, ...]:
        """Return the unfinished tasks that write other stages of the same checkpoint."""
        return tuple(
            other
            for other in self.tasks
            if None not in {task.stage, other.stage} and other.whole == task.whole and other.stage != task.stage
        )

    def manifest_for(self, task: Identity) -> Manifest | None:
        """Return the manifest if this task has written the checkpoint or a stage of it, and no other stage is being replaced."""
        if self.manifest is None or task.digest not in self.manifest.tasks:
            return None
        return None if any(other.digest not in self.manifest.tasks for other in self.siblings(task)) else self.manifest

    def versions_of(self, task: Identity) -> str | None:
        """Return the versions of the source's files in the last run of a task, or None if the task was not started."""
        if (document := self.find_task(task.digest)) is not None:
            return document.versions
        if (manifest := self.manifest_for(task)) is None:
            return None
        sources = [stage.source for stage in manifest.stages if stage.digest == task.digest]
        return (sources[0] if sources else manifest.source).versions

    def outdated(self, digest: str, request: dict[str, Any]) -> tuple[TaskRecord, ...]:
        """Return the unfinished tasks of an equal request whose source has changed since. They are no longer needed.

        Tasks whose commit has started, and tasks that replace files in place, are not included: they have modified another
        checkpoint.
        """
        return tuple(
            found.task
            for found in self.unfinished
            if found.task.digest != digest and found.task.request == request and not (found.task.in_place or found.committing)
        )

    def is_left_over(self, digests: Collection[str]) -> bool:
        """Return whether all remaining files belong to these tasks, whose processes were killed before cleanup finished."""
        return self.remains and all(task.digest in digests for task in self.tasks)
