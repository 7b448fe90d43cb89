"""The operator needs exactly the rights that the chart gives it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from kubernetes_access import written
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
# Where a right is missing, the end of one wait; a busy machine takes its time to start a process at all.
_LITTLE, _MUCH = 25.0, 60.0

RIGHTS = [
    ("checkpointtransforms", "get"),
    ("checkpointtransforms", "list"),
    ("checkpointtransforms", "watch"),
    ("checkpointtransforms/status", "patch"),
    ("checkpointtransforms/finalizers", "update"),
    ("jobs", "get"),
    ("jobs", "list"),
    ("jobs", "watch"),
    ("jobs", "create"),
    ("jobs", "patch"),
    ("jobs", "delete"),
    ("configmaps", "create"),
    ("pods", "list"),
    ("events", "list"),
    ("events", "create"),
    ("leases", "get"),
    ("leases", "create"),
    ("leases", "update"),
]
# Rights that the API server checks when a Job is created, without a request that names them.
IMPLIED = ("checkpointtransforms/finalizers", "update")


def everything(transforms: Transforms, kubelet: PretendKubelet, patience: float) -> None:
    """Exercise every right of the chart; fail if one is missing."""

    def lease() -> client.V1Lease | None:
        items = transforms.leases.list_namespaced_lease(transforms.namespace).items
        return items[0] if items else None

    taken = wait_for(lease, _MUCH)

    transforms.create("named", {**SPEC, "suspend": True})
    transforms.wait("named", lambda s: s.get("phase") == "Suspended", patience)
    uid = transforms.custom.get_namespaced_custom_object(*transforms.where, "named")["metadata"]["uid"]
    foreign = indexed_job(job_name("named", uid, "plan", 1), 1, pod_spec("localhost/none", []))
    foreign["spec"]["suspend"] = True
    transforms.batch.create_namespaced_job(transforms.namespace, foreign)
    transforms.change("named", {"suspend": False})
    wait_for(lambda: transforms.ready("named").get("reason") == "NameTaken", patience)
    transforms.delete("named")

    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    transforms.core.create_namespaced_resource_quota(transforms.namespace, quota)
    wait_for(lambda: transforms.core.read_namespaced_resource_quota("none", transforms.namespace).status.hard, patience)
    transforms.create("denied", SPEC)
    transforms.wait("denied", lambda s: "exceeded quota" in str(s), patience)
    transforms.delete("denied")
    transforms.core.delete_namespaced_resource_quota("none", transforms.namespace)

    kubelet.held.add("ranks")
    transforms.create("again", SPEC)
    transforms.wait("again", lambda s: s.get("ranks", {}).get("active") == s.get("ranks", {}).get("total", 0) > 0, patience)
    transforms.change("again", {"execution": {"attempt": 2}})
    transforms.wait("again", lambda s: s.get("attempt") == 2 and s.get("phase") == "Resharding", patience)
    ranks = next(name for name in transforms.jobs() if name.endswith("ranks-2"))
    wait_for(lambda: transforms.jobs()[ranks].status.ready, patience)
    time.sleep(6)  # it polls every 5 s until all run: from then on only its watch reports changes
    kubelet.held.clear()
    transforms.ended("again", seconds=patience)
    assert not [name for name in transforms.jobs() if name.endswith("ranks")]
    jobs = {name: job for name, job in transforms.jobs().items() if name.endswith("-2")}
    assert len(jobs) == 3
    wait_for(lambda: all(j.spec.ttl_seconds_after_finished == 3600 for n, j in transforms.jobs().items() if n in jobs), patience)

    def reasons() -> set[str]:
        return {event.reason for event in transforms.core.list_namespaced_event(transforms.namespace).items}

    wait_for(lambda: {"Planning", "Complete"} <= reasons(), patience)
    wait_for(lambda: lease().spec.renew_time > taken.spec.renew_time, patience)


def test_the_charts_rights_are_enough(transforms: Transforms, layout: Layout, tmp_path: Path) -> None:
    who = account(transforms.api, layout, transforms.namespace, tmp_path)
    with operator_process(who, tmp_path), PretendKubelet(transforms.api, transforms.namespace).running() as kubelet:
        everything(transforms, kubelet, _MUCH)
    used = {
        ("/".join(filter(None, (entry["objectRef"]["resource"], entry["objectRef"].get("subresource")))), entry["verb"])
        for entry in written(layout, transforms.namespace, who.name)
    }
    assert used == {right for right in RIGHTS if right != IMPLIED and right[1] not in {"get", "list", "watch"}}


@pytest.mark.parametrize("right", RIGHTS, ids="-".join)
def test_no_right_is_unused(transforms: Transforms, layout: Layout, tmp_path: Path, right: tuple[str, str]) -> None:
    who = account(transforms.api, layout, transforms.namespace, tmp_path, without=right)
    kubelet = PretendKubelet(transforms.api, transforms.namespace)
    with operator_process(who, tmp_path), kubelet.running(), pytest.raises(AssertionError):
        everything(transforms, kubelet, _LITTLE)
    kind, verb = right
    said = "cannot set blockOwnerDeletion" if right == IMPLIED else f'cannot {verb} resource "{kind}"'
    assert said in (tmp_path / "first.log").read_text()  # it was that, not a busy machine
