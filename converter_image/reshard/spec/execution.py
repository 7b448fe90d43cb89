"""Execution of a transform's pods: the part of a CheckpointTransform that does not affect its result."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from reshard.spec.storage_options import Io

_Count = Annotated[int, msgspec.Meta(ge=1)]
_Seconds = Annotated[int, msgspec.Meta(ge=0)]
Mode = Literal["Chained", "SinglePod"]
_Id = Annotated[int, msgspec.Meta(ge=0, le=2_147_483_647)]


class Strict(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True, omit_defaults=True):
    """Base class of resources with camelCase fields. Unknown fields are refused, so that no typing error is ignored."""


class EnvSpec(Strict, frozen=True):
    """An environment variable of the container."""

    name: str
    value: str | None = None
    value_from: dict[str, Any] | None = None


class SecurityContextSpec(Strict, frozen=True):
    """User and groups of the pods. The image and the cluster determine absent fields."""

    run_as_user: _Id | None = None
    run_as_group: _Id | None = None
    run_as_non_root: bool | None = None
    fs_group: _Id | None = None
    fs_group_change_policy: str | None = None
    supplemental_groups: tuple[_Id, ...] = ()


class PodTemplateSpec(Strict, frozen=True):
    """Additional fields of the pods, with the names of the Pod API."""

    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    resources: dict[str, Any] = {}
    node_selector: dict[str, str] = {}
    tolerations: tuple[dict[str, Any], ...] = ()
    affinity: dict[str, Any] = {}
    priority_class_name: str | None = None
    runtime_class_name: str | None = None
    service_account_name: str | None = None
    image_pull_secrets: tuple[dict[str, str], ...] = ()
    env: tuple[EnvSpec, ...] = ()
    security_context: SecurityContextSpec = SecurityContextSpec()


class ExecutionSpec(Strict, frozen=True):
    """Distribution of the work among pods, its limits, and access to files.

    Attributes:
        mode: whether a pod plans and others write the ranks, or one pod does everything.
        parallelism: maximum number of pods that write ranks at a time.
        ranks_per_pod: number of consecutive target ranks per pod. Auto: ranks that need the same bytes are in one pod.
        backoff_limit_per_index: number of retries of a pod's ranks after a failure that a retry can fix.
        attempt: number to increase in order to retry a finished or failed transform. Finished ranks are kept.
        startup_deadline_seconds: time after which the transform fails if pods cannot start (wrong image, missing Secret).
        active_deadline_seconds: maximum duration of all ranks, or of the only pod.
        ttl_seconds_after_finished: time for which Jobs and pods are kept after the transform has ended.
        io: access to large files on file systems, see `StorageOptions.io`.
        pod_template: additions to the pods.
    """

    mode: Mode = "Chained"
    parallelism: _Count = 8
    ranks_per_pod: _Count | Literal["Auto"] = "Auto"
    backoff_limit_per_index: Annotated[int, msgspec.Meta(ge=0, le=10)] = 2
    attempt: _Count = 1
    startup_deadline_seconds: _Seconds = 600
    active_deadline_seconds: _Count | None = None
    ttl_seconds_after_finished: _Seconds = 3600
    io: Io = "Auto"
    pod_template: PodTemplateSpec = PodTemplateSpec()
