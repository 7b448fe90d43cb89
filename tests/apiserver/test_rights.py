"""The operator needs exactly the rights that the chart gives it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from kubernetes_access import requests
from kubernetes_objects import indexed_job, pod_spec, wait_for
from operator_process import account, operator_process
from pretend_cluster import resource
from pretend_kubelet import PretendKubelet

from reshard_operator.observation import job_name

if TYPE_CHECKING:
    from pathlib import Path

    from cluster.layout import Layout
    from kubernetes import client
    from transforms_on_cluster import Transforms

SPEC = resource()["spec"]
# The API server checks this one when a Job is created. No request names it.
IMPLIED = ("checkpointtransforms/finalizers", "update")
_PATIENCE = 60.0


def everything(transforms: Transforms, kubelet: PretendKubelet) -> None:
    """Make the operator use every right of the chart."""

    def lease() -> client.V1Lease | None:
        items = transforms.leases.list_namespaced_lease(transforms.namespace).items
        return items[0] if items else None

    taken = wait_for(lease, _PATIENCE)

    transforms.create("named", {**SPEC, "suspend": True})
    transforms.wait("named", lambda s: s.get("phase") == "Suspended", _PATIENCE)
    uid = transforms.custom.get_namespaced_custom_object(*transforms.where, "named")["metadata"]["uid"]
    foreign = indexed_job(job_name("named", uid, "plan", 1), 1, pod_spec("localhost/none", []))
    foreign["spec"]["suspend"] = True
    transforms.batch.create_namespaced_job(transforms.namespace, foreign)
    transforms.change("named", {"suspend": False})
    wait_for(lambda: transforms.ready("named").get("reason") == "NameTaken", _PATIENCE)
    transforms.delete("named")

    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    transforms.core.create_namespaced_resource_quota(transforms.namespace, quota)
    wait_for(lambda: transforms.core.read_namespaced_resource_quota("none", transforms.namespace).status.hard, _PATIENCE)
    transforms.create("denied", SPEC)
    transforms.wait("denied", lambda s: "exceeded quota" in str(s), _PATIENCE)
    transforms.delete("denied")
    transforms.core.delete_namespaced_resource_quota("none", transforms.namespace)

    kubelet.held.add("ranks")
    transforms.create("again", SPEC)
    transforms.wait("again", lambda s: s.get("ranks", {}).get("active") == s.get("ranks", {}).get("total", 0) > 0, _PATIENCE)
    transforms.change("again", {"execution": {"attempt": 2}})
    transforms.wait("again", lambda s: s.get("attempt") == 2 and s.get("phase") == "Resharding", _PATIENCE)
    ranks = next(name for name in transforms.jobs() if name.endswith("ranks-2"))
    wait_for(lambda: transforms.jobs()[ranks].status.ready, _PATIENCE)
    time.sleep(6)  # it polls every 5 s until all run: from then on only its watch reports changes
    kubelet.held.clear()
    transforms.ended("again", seconds=_PATIENCE)
    assert not [name for name in transforms.jobs() if name.endswith("ranks")]
    jobs = {name: job for name, job in transforms.jobs().items() if name.endswith("-2")}
    assert len(jobs) == 3
    wait_for(lambda: all(j.spec.ttl_seconds_after_finished == 3600 for n, j in transforms.jobs().items() if n in jobs), _PATIENCE)

    def reasons() -> set[str]:
        return {event.reason for event in transforms.core.list_namespaced_event(transforms.namespace).items}

    wait_for(lambda: {"Planning", "Complete"} <= reasons(), _PATIENCE)
    wait_for(lambda: lease().spec.renew_time > taken.spec.renew_time, _PATIENCE)


def test_the_operator_uses_all_rights_of_the_chart_and_needs_no_others(
    transforms: Transforms, layout: Layout, tmp_path: Path
) -> None:
    who = account(transforms.api, layout, transforms.namespace, tmp_path)
    with operator_process(who, tmp_path), PretendKubelet(transforms.api, transforms.namespace).running() as kubelet:
        everything(transforms, kubelet)
    decided: dict[str, set[tuple[str, str]]] = {"allow": set(), "forbid": set()}
    for entry in requests(layout, transforms.namespace, who.name):
        if (found := entry.get("objectRef")) is not None:
            resource = "/".join(filter(None, (found["resource"], found.get("subresource"))))
            decided[entry["annotations"]["authorization.k8s.io/decision"]].add((resource, entry["verb"]))
    assert decided == {"allow": who.rights - {IMPLIED}, "forbid": set()}


def test_a_job_that_blocks_the_deletion_of_its_owner_needs_a_right(
    transforms: Transforms, layout: Layout, tmp_path: Path
) -> None:
    who = account(transforms.api, layout, transforms.namespace, tmp_path, without=IMPLIED)
    with operator_process(who, tmp_path):
        transforms.create("denied", SPEC)
        wait_for(lambda: "cannot set blockOwnerDeletion" in (tmp_path / "first.log").read_text())
    assert transforms.jobs() == {}
