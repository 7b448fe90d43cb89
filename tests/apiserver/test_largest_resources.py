"""A real API server takes every object that a resource at one of the schema's maxima makes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import largest
import msgspec
import pytest
from pretend_cluster import CONFIG, PLAN

from reshard.spec.messages import PlanMessage
from reshard_operator import jobs
from reshard_operator.observation import Transform

if TYPE_CHECKING:
    from transforms_on_cluster import Transforms

SPECS = largest.specs()
LEAST = next(iter(SPECS.values()))


def check(transforms: Transforms, spec: dict[str, Any]) -> None:
    transforms.create("largest", spec)
    transform = Transform.parse(transforms.custom.get_namespaced_custom_object(*transforms.where, "largest"))
    planned = msgspec.convert(PLAN | {"targetRanks": 100_000}, PlanMessage)
    server = {"dry_run": "All", "field_validation": "Strict"}
    for config_map in jobs.spec_config_maps(transform):
        transforms.core.create_namespaced_config_map(transforms.namespace, config_map, **server)
    for job in (
        jobs.plan_job(transform, CONFIG),
        jobs.ranks_job(transform, CONFIG, planned),
        jobs.commit_job(transform, CONFIG, planned),
    ):
        transforms.batch.create_namespaced_job(transforms.namespace, job, **server)


@pytest.mark.parametrize("field", SPECS)
def test_a_field_at_its_maximum(transforms: Transforms, field: str) -> None:
    check(transforms, SPECS[field])


def test_as_much_as_the_api_server_stores(transforms: Transforms) -> None:
    sides = {"source": LEAST["source"], "target": LEAST["target"]}
    check(transforms, sides | largest.everything_at_once())
