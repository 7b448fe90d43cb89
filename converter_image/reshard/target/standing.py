"""What is at a target at one moment. Decisions about it are made from this, and not by looking again. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Collection

    from reshard.checkpoint.manifest import Manifest


class Identity(Protocol):
    """What makes a job that job, before it is begun and after."""

    @property
    def digest(self) -> str:
        """Identifies source, strategies and options."""

    @property
    def stage(self) -> int | None:
        """The pipeline stage of the source, if it writes only the files of that."""

    @property
    def whole(self) -> str:
        """Equal for jobs that write stages of one checkpoint."""

    @property
    def versions(self) -> str:
        """Changes if the source's files are written or copied again."""


class JobDocument(msgspec.Struct, frozen=True, rename="camel"):
    """What is being made at a target.

    Attributes:
        digest: the digest of the job; its first 16 digits name its folder.
        request: what was asked for, as far as it decides the outcome, to find the job again without reading the source.
        staged: whether finished files wait in the staging folder, because they will replace others.
        mode: permission bits of the files; None: as the umask has them.
        in_place: whether they replace others one by one, where a storage cannot rename. The other checkpoint's manifest is
            retired before, so that the target reads as incomplete until this one's is there.
        stage: the pipeline stage of the source, if it writes only the files of that.
        whole: equal for jobs that write stages of one checkpoint.
        key_check: tells whether a key is that of the files, if they are encrypted: see `BlockCipher.key_check`.
        versions: a digest of the versions of the source's files, see `Inventory.versions`.
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
        """Whether something else was at the target when this was begun."""
        return self.staged or self.in_place


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A job that was begun and is not committed.

    Attributes:
        job: what it makes.
        committing: whether staged files have begun to take the place of others, and not all of them have.
        retired: whether it has taken another checkpoint apart, of which only it knows the files.
    """

    job: JobDocument
    committing: bool
    retired: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """What is at a target.

    Attributes:
        manifest: the manifest of the complete checkpoint that is there, if there is one.
        unfinished: jobs that were begun and are not committed.
        remains: whether anything is there that is gone once a checkpoint is complete.
    """

    manifest: Manifest | None
    unfinished: tuple[Unfinished, ...]
    remains: bool

    @property
    def jobs(self) -> tuple[JobDocument, ...]:
        """The unfinished jobs."""
        return tuple(found.job for found in self.unfinished)

    @property
    def committing(self) -> bool:
        """Whether a commit was interrupted while it replaced files."""
        return any(found.committing for found in self.unfinished)

    def begun(self, digest: str) -> JobDocument | None:
        """A job as it was begun; None when it was not, or is complete."""
        return next((job for job in self.jobs if job.digest == digest), None)

    def siblings(self, job: Identity) -> tuple[JobDocument, ...]:
        """Unfinished jobs that write other stages of the same checkpoint."""
        return tuple(
            other
            for other in self.jobs
            if None not in {job.stage, other.stage} and other.whole == job.whole and other.stage != job.stage
        )

    def own(self, job: Identity) -> Manifest | None:
        """The manifest, if this job has written the checkpoint or a stage of it, and no other stage is being replaced."""
        if self.manifest is None or job.digest not in self.manifest.jobs:
            return None
        return None if any(other.digest not in self.manifest.jobs for other in self.siblings(job)) else self.manifest

    def versions_of(self, job: Identity) -> str | None:
        """Return the versions of the source's files that a job was last carried out with; None: it was not begun."""
        if (document := self.begun(job.digest)) is not None:
            return document.versions
        if (manifest := self.own(job)) is None:
            return None
        sources = [stage.source for stage in manifest.stages if stage.digest == job.digest]
        return (sources[0] if sources else manifest.source).versions

    def outdated(self, digest: str, request: dict[str, Any]) -> tuple[JobDocument, ...]:
        """Unfinished jobs of an equal request, whose source has changed since: nobody can want them any more.

        One whose commit has begun is not among them, nor one that replaces in place: it has taken another checkpoint apart.
        """
        return tuple(
            found.job
            for found in self.unfinished
            if found.job.digest != digest and found.job.request == request and not (found.job.in_place or found.committing)
        )

    def is_left_over(self, digests: Collection[str]) -> bool:
        """Whether all that remains is of these jobs, whose processes were killed when all but done."""
        return self.remains and all(job.digest in digests for job in self.jobs)
