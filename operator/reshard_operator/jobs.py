"""Manifests of a transform's Jobs as dicts. The functions perform no I/O."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import msgspec

from reshard.spec.mounts import mounts
from reshard.spec.places import SPEC
from reshard.spec.resource import API_VERSION, KIND
from reshard_operator.labels import (
    ANNOTATION_ATTEMPT,
    ANNOTATION_CREATED,
    ANNOTATION_SPEC,
    ANNOTATION_TRANSFORM,
    LABEL_MANAGED_BY,
    LABEL_QUEUE,
    LABEL_STAGE,
    LABEL_STEP,
    LABEL_TARGET,
    LABEL_TRANSFORM,
    MANAGED_BY,
)
from reshard_operator.objects import CONTAINER, Object
from reshard_operator.observation import job_name, ranks_of
from reshard_operator.rivals import stage_label, target_label

if TYPE_CHECKING:
    from reshard.spec.execution import PodTemplateSpec
    from reshard.spec.messages import PlanMessage
    from reshard.spec.mounts import Volume
    from reshard.spec.resource import TransformSpec
    from reshard_operator.config import Config
    from reshard_operator.observation import Transform

# Exit codes of docs/architecture.md. A pod with any other code is retried, within the limit.
_REQUEST_IS_WRONG = (2, 77, 78)
_DATA_IS_WRONG = (65, 66, 70)
_GRACE_SECONDS = 30
# Requests of the pods that start before the plan states a bound. They have no limit, because no amount is known to be enough for
# every checkpoint. docs/operations.md lists the measured amounts.
_PLAN_BYTES = 256 << 20
_TRANSFORM_BYTES = 512 << 20
VARIABLE_GROUPING = "RESHARD_GROUPING"
_SPEC_KEY = "spec.json"
_TRACEPARENT = "TRACEPARENT"
# A character takes at most 4 bytes in a ConfigMap, which holds 1 MiB, and 12 in a request, which holds 3 MiB.
_MOST_CHARACTERS = 192 << 10


def spec_digest(spec: TransformSpec) -> str:
    """Return a digest of the immutable part of a spec.

    A field that equals its default counts as absent, because a later CRD may set defaults that this one does not.
    """
    return hashlib.sha256(msgspec.json.encode(_essence(_fixed(spec)), order="deterministic")).hexdigest()[:32]


def _essence(value: object) -> object:
    if not isinstance(value, msgspec.Struct):
        return value
    found = {}
    for field in msgspec.structs.fields(value):
        default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        if (own := getattr(value, field.name)) != default:
            found[field.encode_name] = _essence(own)
    return found


def plan_job(transform: Transform, config: Config, run: int = 1) -> Object:
    """Return the Job that validates the request and writes the plan."""
    variables = {"RESHARD_PARALLELISM": str(_spec(transform).execution.parallelism)}
    return _job(transform, config, "plan", variables, _memory_request(_PLAN_BYTES), run=run)


def ranks_job(transform: Transform, config: Config, planned: PlanMessage) -> Object:
    """Return the Indexed Job whose pods write the target ranks. The last of them commits."""
    spec = _spec(transform)
    ranks = ranks_of(spec, planned)
    completions = planned.grouping.groups(len(ranks))
    variables = {
        "RESHARD_TARGET_RANKS": str(planned.target_ranks),
        "RESHARD_DIGEST": planned.digest,
        VARIABLE_GROUPING: msgspec.json.encode(planned.grouping).decode(),
    }
    job = _job(transform, config, "ranks", variables, _memory_limit(planned.memory_bytes))
    job["spec"] |= {
        "completionMode": "Indexed",
        "completions": completions,
        "backoffLimitPerIndex": spec.execution.backoff_limit_per_index,
        **changeable_limits(spec, completions),
    }
    del job["spec"]["backoffLimit"]
    job["spec"]["podFailurePolicy"]["rules"] = [
        *job["spec"]["podFailurePolicy"]["rules"][:1],
        _rule("FailJob", _REQUEST_IS_WRONG),
        _rule("FailIndex", _DATA_IS_WRONG),
    ]
    _limit(job, transform)
    return job


def changeable_limits(spec: TransformSpec, completions: int) -> dict[str, int]:
    """Return the limits of the Job of the ranks that can change while it runs, by their fields."""
    most = min(spec.execution.parallelism, completions)
    # More failures than pods that run at the same time probably have a cause that concerns all ranks.
    return {"parallelism": most, "maxFailedIndexes": most}


def transform_job(transform: Transform, config: Config, run: int = 1) -> Object:
    """Return the Job whose only pod plans, writes all ranks, and commits."""
    job = _job(transform, config, "transform", {}, _memory_request(_TRANSFORM_BYTES), run=run)
    _limit(job, transform)
    return job


def _limit(job: Object, transform: Transform) -> None:
    """Add the deadline and the queue to the Job that writes the ranks."""
    deadline = _spec(transform).execution.active_deadline_seconds
    if deadline is not None:
        job["spec"]["activeDeadlineSeconds"] = deadline
    if transform.queue:  # Kueue starts it when there is room
        job["metadata"]["labels"][LABEL_QUEUE] = transform.queue
        job["spec"]["suspend"] = True


def commit_job(transform: Transform, config: Config, planned: PlanMessage, run: int = 1) -> Object:
    """Return the Job that reads the records of all ranks and completes the checkpoint, if no pod of the ranks has done so."""
    variables = {"RESHARD_DIGEST": planned.digest}
    return _job(transform, config, "commit", variables, _memory_limit(planned.memory_bytes), run=run)


def _job(transform: Transform, config: Config, step: str, variables: dict[str, str], memory: Object, *, run: int = 1) -> Object:
    spec = _spec(transform)
    overrides = spec.execution.pod_template
    name = job_name(transform.name, transform.uid, step, spec.execution.attempt, run)
    metadata = _metadata(transform, name)
    metadata["labels"][LABEL_STEP] = step
    if not spec.dry_run:  # it does not occupy its target
        metadata["labels"] |= {LABEL_TARGET: target_label(spec), LABEL_STAGE: stage_label(spec)}
    metadata["annotations"] |= {
        ANNOTATION_CREATED: transform.created,
        ANNOTATION_ATTEMPT: str(spec.execution.attempt),
        ANNOTATION_SPEC: spec_digest(spec),
    }
    labels, annotations = metadata["labels"], metadata["annotations"]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "completions": 1,
            "parallelism": 1,
            "backoffLimit": spec.execution.backoff_limit_per_index,
            "podReplacementPolicy": "Failed",
            "suspend": spec.suspend,
            "podFailurePolicy": {
                "rules": [
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                    _rule("FailJob", tuple(sorted(_REQUEST_IS_WRONG + _DATA_IS_WRONG))),
                ]
            },
            "template": {
                "metadata": {"labels": overrides.labels | labels, "annotations": overrides.annotations | annotations},
                "spec": _pod(transform, config, step, variables, memory),
            },
        },
    }


def _metadata(transform: Transform, name: str) -> Object:
    """Return the metadata of an object that is owned by a transform and deleted with it."""
    owner = {"apiVersion": API_VERSION, "kind": KIND, "name": transform.name, "uid": transform.uid}
    return {
        "name": name,
        "namespace": transform.namespace,
        "labels": {LABEL_MANAGED_BY: MANAGED_BY, LABEL_TRANSFORM: transform.uid},
        "annotations": {ANNOTATION_TRANSFORM: transform.name},
        "ownerReferences": [owner | {"controller": True, "blockOwnerDeletion": True}],
    }


def _pod(transform: Transform, config: Config, step: str, variables: dict[str, str], memory: Object) -> Object:
    spec = _spec(transform)
    overrides = spec.execution.pod_template
    volumes, mounted = _volumes(spec, step)
    volumes.append(_spec_volume(transform))
    mounted.append({"name": "spec", "mountPath": SPEC, "readOnly": True})
    environment = {
        "RESHARD_SPEC": SPEC,
        "RESHARD_SPEC_SHA256": _sha256(_pod_spec_text(spec)),
        "RESHARD_OWNER": transform.uid,
        "RESHARD_LOG_FORMAT": config.log_format,
        "RESHARD_LOG_LEVEL": config.log_level,
        **variables,
    }
    if all(variable.name != _TRACEPARENT for variable in overrides.env):
        environment[_TRACEPARENT] = _trace_of(transform)
    container: Object = {
        "name": CONTAINER,
        "image": config.converter_image,
        "args": ["step", step],
        "env": [
            # Users can add variables, but not replace those of the operator and of Kubernetes.
            *(msgspec.to_builtins(e) for e in overrides.env if not e.name.startswith(("RESHARD_", "JOB_COMPLETION_INDEX"))),
            *({"name": name, "value": value} for name, value in environment.items()),
        ],
        "volumeMounts": mounted,
        "resources": _resources(overrides, config, memory),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    if config.image_pull_policy:
        container["imagePullPolicy"] = config.image_pull_policy
    pod: Object = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        | msgspec.to_builtins(overrides.security_context),
        "containers": [container],
        "volumes": volumes,
    }
    for name, value in (
        ("nodeSelector", overrides.node_selector),
        ("tolerations", overrides.tolerations),
        ("affinity", overrides.affinity),
        ("priorityClassName", overrides.priority_class_name),
        ("runtimeClassName", overrides.runtime_class_name),
        ("serviceAccountName", overrides.service_account_name),
        ("imagePullSecrets", overrides.image_pull_secrets),
    ):
        if value:
            pod[name] = list(value) if isinstance(value, tuple) else value
    return pod


def _trace_of(transform: Transform) -> str:
    """Return the W3C trace context that all pods of an attempt share. Its parent span does not exist."""
    digest = _sha256(f"{transform.uid}/{transform.attempt}")
    return f"00-{digest[:32]}-{digest[32:48]}-01"


def _volumes(spec: TransformSpec, step: str) -> tuple[list[Object], list[Object]]:
    """Return the volumes and volume mounts of a step.

    A claim is mounted once for each role, but is only one volume, because a pod with two volumes for one claim never starts. The
    commit step gets only the target and its credentials, without keys.
    """
    needed = [mount for mount in mounts(spec) if step != "commit" or mount.role == "target"]
    distinct = list(dict.fromkeys(mount.volume for mount in needed))
    volumes: list[Object] = []
    for i, volume in enumerate(distinct):
        only_read = all(mount.read_only for mount in needed if mount.volume == volume)
        volumes.append({"name": f"volume-{i}"} | _volume_source(volume, only_read=only_read))
    mounted: list[Object] = []
    for mount in needed:
        entry: Object = {"name": f"volume-{distinct.index(mount.volume)}", "mountPath": mount.folder}
        mounted.append(entry | {"readOnly": True} if mount.read_only else entry)
    return volumes, mounted


def _volume_source(volume: Volume, *, only_read: bool) -> Object:
    if volume.kind == "PersistentVolumeClaim":
        claim: Object = {"claimName": volume.name}
        return {"persistentVolumeClaim": claim | {"readOnly": True} if only_read else claim}
    if volume.kind == "Secret":
        return {"secret": {"secretName": volume.name} | _items(volume)}
    return {"configMap": {"name": volume.name} | _items(volume)}


def _items(volume: Volume) -> Object:
    return {"items": [{"key": volume.key, "path": volume.key}]} if volume.key else {}


def _memory_request(nbytes: int) -> Object:
    """Return the memory of a pod whose requirement is not known."""
    return {"requests": {"memory": str(nbytes)}}


def _memory_limit(nbytes: int) -> Object:
    """Return the memory of a pod that needs at most `nbytes`."""
    return {kind: {"memory": str(nbytes)} for kind in ("requests", "limits")}


def _resources(overrides: PodTemplateSpec, config: Config, memory: Object) -> Object:
    """Return the resources of a container: each one as the transform sets it, otherwise the chart, otherwise as in `memory`.

    The request and the limit of a resource have the same origin, because a request above the limit would be rejected.
    """
    found: Object = {}
    for resources in (memory, config.converter_resources or {}, overrides.resources or {}):
        kinds = {kind: resources.get(kind) or {} for kind in ("requests", "limits")}
        named = {name for amounts in kinds.values() for name in amounts}
        rest = {kind: {n: a for n, a in found.get(kind, {}).items() if n not in named} for kind in kinds}
        found |= {**resources, **{kind: rest[kind] | amounts for kind, amounts in kinds.items()}}
    return {kind: amounts for kind, amounts in found.items() if amounts or kind not in {"requests", "limits"}}


def _rule(action: str, codes: tuple[int, ...]) -> Object:
    return {"action": action, "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": list(codes)}}


def _fixed(spec: TransformSpec) -> TransformSpec:
    """Return the spec without fields that are mutable or irrelevant to pods."""
    execution = msgspec.structs.replace(spec.execution, parallelism=1, attempt=1)
    return msgspec.structs.replace(spec, execution=execution, suspend=False)


def spec_config_maps(transform: Transform) -> list[Object]:
    """Return the immutable ConfigMaps that contain the spec for pods. A large spec requires several ConfigMaps.

    The names depend on the content, so existing ConfigMaps are not written again (docs/decisions/0002-spec-in-config-maps.md).
    """
    text = _pod_spec_text(_spec(transform))
    parts = [text[at : at + _MOST_CHARACTERS] for at in range(0, len(text), _MOST_CHARACTERS)]
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": _metadata(transform, _config_map_name(transform, text, number)),
            "immutable": True,
            "data": {_SPEC_KEY: part},
        }
        for number, part in enumerate(parts)
    ]


def _spec_volume(transform: Transform) -> Object:
    """Return the volume with the content of these ConfigMaps. Its files are read in the order of their names."""
    names = [config_map["metadata"]["name"] for config_map in spec_config_maps(transform)]
    files = [[{"key": _SPEC_KEY, "path": f"{number:03}"}] for number in range(len(names))]
    sources = [{"configMap": {"name": name, "items": items}} for name, items in zip(names, files, strict=True)]
    return {"name": "spec", "projected": {"sources": sources}}


def _config_map_name(transform: Transform, text: str, number: int) -> str:
    name = job_name(transform.name, transform.uid, f"spec-{_sha256(text)[:16]}", attempt=1)
    return f"{name}-{number}" if number else name


def _pod_spec_text(spec: TransformSpec) -> str:
    """Return the spec for pods."""
    fixed = _fixed(spec)
    execution = {"ranksPerPod": fixed.execution.ranks_per_pod, "io": fixed.execution.io}
    return json.dumps(msgspec.to_builtins(fixed) | {"execution": execution}, sort_keys=True, ensure_ascii=False)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _spec(transform: Transform) -> TransformSpec:
    if transform.spec is None:
        raise ValueError(transform.problem)
    return transform.spec
