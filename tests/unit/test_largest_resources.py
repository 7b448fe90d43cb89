"""Every resource that the schema allows results in objects that the API server stores, and pods that Linux starts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import largest
import msgspec
import pytest
from largest import MOST_STORED
from pretend_cluster import CONFIG, PLAN, resource

from reshard.spec.messages import PlanMessage
from reshard.spec.resource import parse_spec
from reshard_operator import jobs
from reshard_operator.observation import Transform

if TYPE_CHECKING:
    from collections.abc import Iterator

SPECS = largest.specs()
# Limits of Kubernetes (ConfigMaps, annotations, requests) and of Linux (one variable, all of them with a stack of 8 MiB).
CONFIG_MAP = 1 << 20
ANNOTATIONS = 256 << 10
REQUEST = 3 << 20
VARIABLE = 128 << 10
VARIABLES = 2 << 20
# Bytes that Kubernetes, its plugins and the image may add.
RESERVED = 8 << 10


def nbytes(value: object) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode())


def check(spec: dict[str, Any]) -> None:
    given = resource(**spec)
    assert nbytes(given) < MOST_STORED - RESERVED
    transform = Transform.parse(given)
    planned = msgspec.convert(PLAN | {"targetRanks": 100_000}, PlanMessage)
    config_maps = jobs.spec_config_maps(transform)
    made = [
        jobs.plan_job(transform, CONFIG),
        jobs.ranks_job(transform, CONFIG, planned),
        jobs.commit_job(transform, CONFIG, planned),
    ]
    for manifest in (*config_maps, *made):
        assert len(json.dumps(manifest)) < REQUEST
        assert nbytes(manifest) < MOST_STORED
        assert annotations(manifest["metadata"]) < ANNOTATIONS - RESERVED
    for config_map in config_maps:
        assert sum(len(value.encode()) for value in config_map["data"].values()) <= CONFIG_MAP
    for job in made:
        template = job["spec"]["template"]
        assert annotations(template["metadata"]) < ANNOTATIONS - RESERVED
        entries = [len(f"{e['name']}={e['value']}".encode()) + 1 for e in template["spec"]["containers"][0]["env"]]
        assert max(entries) < VARIABLE
        assert sum(entries) < VARIABLES - RESERVED
    text = "".join(part["data"]["spec.json"] for part in config_maps)
    assert parse_spec(json.loads(text), "x").parameters == transform.spec.parameters


def annotations(metadata: dict[str, Any]) -> int:
    return sum(len(key.encode()) + len(value.encode()) for key, value in metadata["annotations"].items())


@pytest.mark.parametrize("field", SPECS)
def test_a_field_at_its_maximum(field: str) -> None:
    check(SPECS[field])


def test_everything_at_once() -> None:
    check(largest.everything_at_once())


def unlimited(schema: dict[str, Any], path: str) -> Iterator[str]:
    """Yield the fields that can have any length, any number of entries, or any number of levels."""
    untyped = "x-kubernetes-preserve-unknown-fields" in schema
    limits = {
        "maxLength": schema.get("type") == "string" or untyped or "x-kubernetes-int-or-string" in schema,
        "maxItems": schema.get("type") == "array" or untyped,
        "maxProperties": "additionalProperties" in schema or untyped,
    }
    if "enum" not in schema:
        yield from (f"{path}: {limit}" for limit, needed in limits.items() if needed and limit not in schema)
    if untyped and schema["maxItems"] and "items" not in schema:
        yield f"{path}: items"
    if untyped and schema["maxProperties"] and "properties" not in schema:
        yield f"{path}: properties"
    inner = [(f"{path}.{name}", field) for name, field in schema.get("properties", {}).items()]
    inner += [(f"{path}[]", schema[entries]) for entries in ("items", "additionalProperties") if entries in schema]
    for where, field in inner:
        yield from unlimited(field, where)


def test_every_field_has_a_limit() -> None:
    assert list(unlimited(largest.schema_of_specs(), "spec")) == []


def test_rules_of_the_most_bytes_are_split_between_characters() -> None:
    rules = [{"from": "😀" * 170 + str(number), "to": "😀" * 170} for number in range(1024)]
    check({"parameters": {"rename": rules}})
