"""Resources at each maximum that the CRD's schema allows, made by walking the schema."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

Object = dict[str, Any]

_CRD = Path(__file__).parents[2] / "crds" / "checkpointtransforms.yaml"
_CLAIM = {"persistentVolumeClaim": {"claimName": "c"}}
# Size of the largest object that the API server stores.
MOST_STORED = 1536 << 10
# Kubernetes requires valid names in these fields, although the schema allows other characters.
_NAMES = {"name", "claimName", "key", "priorityClassName", "runtimeClassName", "serviceAccountName"}
_LABEL = "a" * 63
_QUALIFIED = [f"example.com/{'a' * 60}{number:03}" for number in range(64)]
# As large as the API server stores.
_AFFINITY = {
    "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [
                {
                    "matchExpressions": [
                        {"key": "zone", "operator": "NotIn", "values": [f"{n:05}" + "a" * 58 for n in range(1024)]}
                    ]
                }
            ]
            * 20
        }
    }
}
_LAYOUT = {
    "apiVersion": "reshard.dev/layout-v1",
    "mesh": "dp=1048576",
    "rules": [{"match": [f"{number:04}" + "n" * 1020], "shard": {"31": ["dp"]}} for number in range(1024)],
}
# Values that a maximum alone does not make valid; rules fill up an object of the API server.
_VALUES: Object = {
    "source.layout": _LAYOUT,
    "target.layout": _LAYOUT,
    "target.fileMode": "0777",
    "target.scale": ",".join(["dp=1"] * 16),
    "parameters.rename": [{"from": f"{number:04}" + "f" * 696, "to": f"{number:04}" + "t" * 696} for number in range(1024)],
    "parameters.cast": [{"pattern": f"{number:04}" + "f" * 1020, "to": "BFloat16"} for number in range(1024)],
    "parameters.pad": [{"name": f"{number:04}" + "n" * 1020, "dimension": 63, "length": 1 << 47} for number in range(1024)],
    "execution.podTemplate.labels": dict.fromkeys(_QUALIFIED, _LABEL),
    "execution.podTemplate.nodeSelector": dict.fromkeys(_QUALIFIED, _LABEL),
    "execution.podTemplate.annotations": dict.fromkeys((f"example.com/{number}" for number in range(59)), "a" * 4096),
    "execution.podTemplate.tolerations": [
        {
            "key": "a" * 252 + "/" + "b" * 60 + f"{number:03}",
            "operator": "Equal",
            "value": _LABEL,
            "effect": "NoExecute",
            "tolerationSeconds": 1 << 53,
        }
        for number in range(64)
    ],
    "execution.podTemplate.affinity": _AFFINITY,
    "execution.podTemplate.imagePullSecrets": [{"name": "a" * 250 + f"{number:03}"} for number in range(16)],
    "execution.podTemplate.env": [
        {"name": "A" * 250 + f"{number:03}", "value": "😀" * 4096 * (number % 2)} for number in range(64)
    ],
}
_EXTENDED = {f"example.com/r{number}": "1" for number in range(32)}
# Fields that must be set too, by the beginning of the field's path.
_COMPANIONS: Object = {
    "execution.podTemplate.resources": {
        "execution": {"podTemplate": {"resources": {"requests": _EXTENDED, "limits": _EXTENDED}}}
    },
    "source.strategy.storage": {"source": {"strategy": {"path": "p"}}},
    "target.strategy.storage": {"target": {"strategy": {"path": "p"}}},
}


def schema_of_specs() -> Object:
    """The schema of `spec`."""
    schema: Object = yaml.safe_load(_CRD.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return schema


def specs() -> dict[str, Object]:
    """A spec for each field that has a maximum, by the field's path."""
    schema = schema_of_specs()
    return {path: _spec(schema, path, inner) for path, inner in _bounded(schema, "")}


def everything_at_once() -> Object:
    """One spec with as much as the API server stores, in fields that pods need to start; its rules need no parameter to match."""
    rules = [{"pattern": f"{number:04}" + "f" * 406, "to": f"{number:04}" + "t" * 406} for number in range(1024)]
    pod = {field: _VALUES[f"execution.podTemplate.{field}"] for field in ("labels", "annotations")}
    pod["env"] = [{"name": "A" * 250 + f"{number:03}", "value": "a" * 4096} for number in range(64)]
    return {"parameters": {"rename": rules}, "execution": {"podTemplate": pod}}


def _bounded(schema: Object, path: str) -> Iterator[tuple[str, Object]]:
    for name, inner in schema.get("properties", {}).items():
        where = f"{path}.{name}" if path else name
        if where in _VALUES or {"maxLength", "maxItems", "maxProperties", "maximum"} & inner.keys():
            yield where, inner
        else:
            yield from _bounded(inner, where)


def _spec(schema: Object, path: str, field: Object) -> Object:
    spec: Object = {"source": {"storage": copy.deepcopy(_CLAIM)}, "target": {"storage": copy.deepcopy(_CLAIM)}}
    for beginning, companion in _COMPANIONS.items():
        if path.startswith(beginning):
            _merge(spec, copy.deepcopy(companion))
    place = spec
    *folders, last = path.split(".")
    for name in folders:
        schema = schema["properties"][name]
        if name == "s3":
            place.pop("persistentVolumeClaim", None)
        place = place.setdefault(name, {})
        for needed in schema.get("required", ()):
            place.setdefault(
                needed, copy.deepcopy(_CLAIM) if needed == "storage" else _least(needed, schema["properties"][needed])
            )
    place[last] = (
        _VALUES[path] if path in _VALUES else place[last] if path.endswith(("requests", "limits")) else _largest(last, field)
    )
    return spec


def _merge(spec: Object, more: Object) -> None:
    for name, value in more.items():
        if isinstance(value, dict) and name in spec:
            _merge(spec[name], value)
        else:
            spec[name] = value


def _least(name: str, schema: Object) -> Any:
    if schema["type"] == "object":
        return {needed: _least(needed, schema["properties"][needed]) for needed in schema["required"]}
    return "abc" if name == "bucket" else "k"


def _largest(name: str, schema: Object) -> Any:
    if "maximum" in schema:
        return schema["maximum"]
    if schema["type"] == "array":
        items, count = schema["items"], schema["maxItems"]
        if "maxLength" in items:  # all must fit into one object, as the client sends them: 12 bytes for each of these characters
            items = items | {"maxLength": min(items["maxLength"], (MOST_STORED - (64 << 10)) // count // 12)}
        return [_largest(name, items)] * count
    length = schema["maxLength"]
    ranks = ",".join(str(rank) for rank in range(0, 1 << 16, 2))[:length].rpartition(",")[0]
    candidates = ("😀" * length, "a" * length, "http://" + "a" * (length - 7), ranks)
    usable = candidates[1:] if name in _NAMES else candidates
    return next(text for text in usable if re.fullmatch(schema.get("pattern", ".*"), text))
