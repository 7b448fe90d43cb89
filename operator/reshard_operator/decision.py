"""The result of a reconcile as frozen data: actions to execute, and the status to write."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reshard_operator.objects import Job, Object


@dataclass(frozen=True)
class Create:
    """Create a Job, or a ConfigMap that its pods require."""

    manifest: Object

    @property
    def kind(self) -> str:
        """Job or ConfigMap."""
        return str(self.manifest["kind"])

    @property
    def name(self) -> str:
        """Name of the object."""
        return str(self.manifest["metadata"]["name"])


@dataclass(frozen=True)
class Patch:
    """Change some fields of a Job's spec."""

    job: Job
    spec: Object

    @property
    def name(self) -> str:
        """Name of the Job."""
        return self.job.name


@dataclass(frozen=True)
class Delete:
    """Delete a Job and its pods."""

    job: Job

    @property
    def name(self) -> str:
        """Name of the Job."""
        return self.job.name


Action = Create | Patch | Delete


@dataclass(frozen=True)
class Decision:
    """The result of an observation: actions and status.

    Attributes:
        status: new status of the resource. None means that the status is not changed.
        actions: actions to execute before the status is written.
        requeue_after_seconds: delay until the next observation, unless a watch reports a change earlier.
        settle_seconds: least delay until the next observation, even if a watch reports a change.
    """

    status: Object | None = None
    actions: tuple[Action, ...] = field(default=())
    requeue_after_seconds: float | None = None
    settle_seconds: float = 0.0
