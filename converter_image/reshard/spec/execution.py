"""How a transform's pods run: the part of a CheckpointTransform that decides nothing about the bytes. Frozen, validated data."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

_Count = Annotated[int, msgspec.Meta(ge=1)]
_Seconds = Annotated[int, msgspec.Meta(ge=0)]
_Id = Annotated[int, msgspec.Meta(ge=0, le=2_147_483_647)]


class Strict(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True, omit_defaults=True):
    """Resources are written in camelCase; what is not known is refused, so that a typing error is never ignored."""


class EnvSpec(Strict, frozen=True):
    """An environment variable of the container."""

    name: str
    value: str | None = None
    value_from: dict[str, Any] | None = None


class SecurityContextSpec(Strict, frozen=True):
    """As whom the pods run; what is absent is left to the image and the cluster."""

    run_as_user: _Id | None = None
    run_as_group: _Id | None = None
    run_as_non_root: bool | None = None
    fs_group: _Id | None = None
    fs_group_change_policy: str | None = None
    supplemental_groups: tuple[_Id, ...] = ()


class PodTemplateSpec(Strict, frozen=True):
    """What the transform's pods have besides what the operator decides. The names are those of a pod's own fields."""

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
    """How the work is spread over pods, and when it is given up.

    Attributes:
        parallelism: pods that write ranks at a time.
        ranks_per_pod: target ranks that one pod writes.
        backoff_limit_per_index: number of times that a pod's ranks are tried again after a failure that another try can mend.
        attempt: raised to try a finished or failed transform again; finished ranks are kept.
        startup_deadline_seconds: how long pods may be unable to start (wrong image, missing secret) before the transform fails.
        active_deadline_seconds: how long the ranks may take in all.
        ttl_seconds_after_finished: how long Jobs and pods are kept once the transform has ended.
        pod_template: more about the pods.
    """

    parallelism: _Count = 8
    ranks_per_pod: _Count = 1
    backoff_limit_per_index: Annotated[int, msgspec.Meta(ge=0, le=10)] = 2
    attempt: _Count = 1
    startup_deadline_seconds: _Seconds = 600
    active_deadline_seconds: _Count | None = None
    ttl_seconds_after_finished: _Seconds = 3600
    pod_template: PodTemplateSpec = PodTemplateSpec()
