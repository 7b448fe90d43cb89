"""Tests of the requests by which the operator finds the report of a commit, with an API server in memory."""

from __future__ import annotations

import asyncio
import copy
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest
from pretend_cluster import CONFIG, PretendCluster, committing, resource

from reshard.spec.messages import PlanMessage
from reshard_operator.cluster import Cluster
from reshard_operator.objects import Pod
from reshard_operator.reconcile import reconcile

if TYPE_CHECKING:
    from kubernetes.aio import client

    from reshard_operator.observation import Observation


class Server(Cluster):
    """Answers from a pretended cluster, in pages, and records the numbers of pods that it was asked for."""

    def __init__(self, pretend: PretendCluster) -> None:
        super().__init__(cast("client.ApiClient", None))
        self.pretend = pretend
        self.read: list[int] = []
        self.events_read = 0

    async def _call(self, method: str, path: str, query: dict[str, str] | None = None, *_: Any, **__: Any) -> dict[str, Any]:
        assert method == "GET"
        query = query or {}
        if "/checkpointtransforms/" in path:
            return copy.deepcopy(self.pretend.resource)
        if path.endswith("/jobs"):
            return {"items": list(self.pretend.jobs.values()), "metadata": {}}
        if not path.endswith("/pods"):
            self.events_read += path.endswith("/events")
            return {"items": [], "metadata": {}}
        phase = query.get("fieldSelector", "").removeprefix("status.phase=")
        steps = re.split(r"\W+", query["labelSelector"].partition("reshard.dev/step")[2])
        found = [pod for pod in self.pretend.pods if phase in {"", pod["status"]["phase"]}]
        if of_jobs := re.search(r"controller-uid(?:=| in \()([-\w,]+)", query["labelSelector"]):
            items = [pod for pod in found if Pod(pod).owner in of_jobs[1].split(",")]
        else:
            items = [pod for pod in found if pod["metadata"]["labels"]["reshard.dev/step"] in steps]
        if among := re.search(r"job-completion-index in \(([0-9,]*)\)", query["labelSelector"]):
            items = [pod for pod in items if str(Pod(pod).index) in among[1].split(",")]
        begin, limit = int(query.get("continue", 0)), int(query["limit"])
        page = items[begin : begin + limit]
        self.read.append(len(page))
        more = {"continue": str(begin + limit)} if begin + limit < len(items) else {}
        return {"items": page, "metadata": more}

    def see(self) -> Observation:
        self.read.clear()
        self.events_read = 0
        seen = asyncio.run(self.observe("ns", "a.transform"))
        assert seen is not None
        return seen


@pytest.fixture
def server() -> Server:
    """A server whose Job of six ranks has not noticed the end of the last two containers. One of them has committed."""
    cluster = PretendCluster(outcome=committing, lags=True)
    while not any(name.endswith("ranks") for name in cluster.jobs):
        cluster.work()
        cluster.advance()
    cluster.work()
    cluster.advance()
    cluster.advance()
    job = ranks_job(cluster)
    job["status"] |= {"active": 2, "ready": 0, "completedIndexes": "0-3", "conditions": []}
    for pod in cluster.pods[-2:]:
        pod["status"]["phase"] = "Running"
    return Server(cluster)


def ranks_job(cluster: PretendCluster) -> Any:
    return next(job for name, job in cluster.jobs.items() if name.endswith("ranks"))


def test_the_report_is_found_before_the_job_ends(server: Server) -> None:
    seen = server.see()
    assert seen.jobs["ranks"].ends
    assert seen.committed() is not None


def test_not_all_pods_are_read_while_a_node_is_lost(server: Server) -> None:
    """Its pod is not ready, and remains the last one until the node returns."""
    server.pretend.pods[-1]["status"]["containerStatuses"][0]["state"] = {"running": {}}
    server.pretend.pods[-2]["status"]["phase"] = "Succeeded"
    seen = server.see()
    assert seen.jobs["ranks"].ends
    assert sum(server.read) == 1


def test_a_lost_node_is_found_although_another_of_its_pods_has_not_started(server: Server) -> None:
    runs, waits = server.pretend.pods[-2:]
    for pod in (runs, waits):
        pod["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
        pod["spec"] = {"nodeName": "gone"}
    runs["status"] = {"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}]}
    runs["status"]["containerStatuses"] = [{"name": "reshard", "state": {"running": {}}}]
    scheduled = {"type": "PodScheduled", "status": "True"}
    waits["status"] = {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False"}]}
    assert reason(server) == "NodeLost"  # which may be why nothing else can be scheduled
    waits["status"] = {"phase": "Pending", "conditions": [scheduled]}
    assert reason(server) == "NodeLost"
    runs["status"]["phase"] = "Succeeded"
    assert reason(server) == "Resharding"  # nothing shows it yet
    waits["status"]["conditions"].append({"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"})
    assert reason(server) == "NodeLost"


def test_a_lost_node_is_found_while_other_pods_run(server: Server) -> None:
    """After five minutes, its pods are deleted, and no longer active."""
    runs, lost = server.pretend.pods[-2:]
    for pod, is_ready in ((runs, "True"), (lost, "False")):
        pod["status"] = {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": is_ready}],
            "containerStatuses": [{"name": "reshard", "state": {"running": {}}}],
        }
    job = ranks_job(server.pretend)
    job["status"] |= {"active": 2, "ready": 1}
    assert reason(server) == "NodeLost"
    job["status"] |= {"active": 1, "ready": 1, "terminating": 1}
    assert reason(server) == "NodeLost"


def test_pods_that_run_or_were_replaced_are_not_read(server: Server) -> None:
    """There may be thousands of them."""
    job = ranks_job(server.pretend)
    job["status"] |= {"active": 2, "ready": 2, "failed": 300}
    server.see()
    assert server.read == []
    server.pretend.pods[-1]["status"] = {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False"}]}
    job["status"] |= {"ready": 1}
    server.see()
    assert server.read == [1]


def test_the_failures_of_indexes_are_read_and_no_others(server: Server) -> None:
    job, pods = ranks_job(server.pretend), server.pretend.pods[-6:]
    for pod in pods:
        pod["status"] |= {"phase": "Failed"}
    job["status"] |= {"active": 2, "ready": 2, "failed": 6, "failedIndexes": "5", "completedIndexes": ""}
    assert [pod.index for pod in server.see().pods if pod.phase == "Failed"] == [5]


def reason(server: Server) -> str:
    decision = reconcile(server.see(), CONFIG)
    assert decision.status is not None
    return str(decision.status["conditions"][0]["reason"])


def test_pods_are_not_read_again_for_a_known_commit(server: Server) -> None:
    while server.pretend.work().status["phase"] != "Complete":
        pass
    assert server.see().jobs["ranks"].ends
    assert server.read == []


def test_a_checkpoint_that_was_committed_before_the_job_failed_is_complete(server: Server) -> None:
    """The deadline may pass before Kubernetes has noticed that the pods have ended."""
    failed = {"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}
    ranks_job(server.pretend)["status"] |= {"active": 0, "failed": 1, "conditions": [failed]}
    server.pretend.pods[0]["status"]["phase"] = "Failed"
    decision = reconcile(server.see(), CONFIG)
    assert decision.status is not None
    assert (decision.status["phase"], decision.status["progress"]) == ("Complete", "6/6")


@pytest.mark.parametrize("reads", [0, 2])
def test_the_report_is_looked_for_once_after_a_failure(server: Server, reads: int) -> None:
    ranks_job(server.pretend)["status"] |= {"conditions": [{"type": "Failed", "status": "True"}]}
    if not reads:
        server.pretend.carry_out(reconcile(replace(server.see(), pods=()), CONFIG))
        assert server.pretend.status["phase"] == "Failed"
    server.see()
    assert len(server.read) == reads


def test_the_report_of_an_earlier_attempt_is_not_taken_for_that_of_this_one(server: Server) -> None:
    earlier = copy.deepcopy(server.pretend.pods[-2])
    earlier["metadata"] |= {"name": "a", "ownerReferences": [{"uid": "job-of-attempt-1", "controller": True}]}
    earlier["status"]["phase"] = "Succeeded"
    server.pretend.pods.insert(0, earlier)
    assert server.see().committed() is not None
    ranks_job(server.pretend)["status"]["conditions"] = [{"type": "Complete", "status": "True"}]
    assert server.see().committed() is not None


def test_large_pods_are_read_a_few_at_a_time_and_no_more_than_needed(server: Server) -> None:
    """Users can give each pod variables and an affinity of more than a megabyte."""
    job = ranks_job(server.pretend)
    job["spec"]["template"]["spec"]["containers"][0]["env"].append({"name": "LARGE", "value": "x" * (3 << 19)})
    job["status"] |= {"active": 0, "conditions": [{"type": "Failed", "status": "True"}]}
    for pod in server.pretend.pods:
        pod["spec"] = {"containers": [{"name": "reshard", "env": [{"name": "LARGE", "value": "x" * 1000}]}]}
        pod["metadata"]["managedFields"] = [{"manager": "kubelet"}]
    seen = server.see()
    assert seen.committed() is not None
    assert max(server.read) == 2
    assert "LARGE" not in str(seen.pods)
    assert "managedFields" not in str(seen.pods)


def test_the_result_of_a_plan_is_found_after_many_evictions() -> None:
    server = Server(PretendCluster(lags=True))
    server.pretend.work()
    server.pretend.advance()
    server.pretend.advance()
    (pod,) = server.pretend.pods
    evicted = copy.deepcopy(pod) | {"status": {"phase": "Failed", "reason": "Evicted"}}
    server.pretend.pods[:0] = [copy.deepcopy(evicted) for _ in range(60)]
    assert server.see().result("plan", PlanMessage) is not None


@pytest.mark.parametrize("mode", ["Chained", "SinglePod"])
def test_others_that_write_are_looked_for_only_before_a_job_is_created(mode: str) -> None:
    """The Job of a single pod is looked at often."""
    server = Server(PretendCluster(resource(execution={"mode": mode}), lags=True))
    server.see()
    assert len(server.read) == 2
    server.pretend.work()
    for _ in range(2):
        server.see()
        assert len(server.read) == 1
        server.pretend.advance()
    server.see()
    assert len(server.read) == 3


@pytest.mark.parametrize(("active", "age", "reads"), [(1, 4, 0), (1, 6, 1), (1000, 50, 0), (1000, 60, 1)])
def test_warnings_are_read_only_for_pods_that_start_more_slowly_than_usual(
    server: Server, active: int, age: int, reads: int
) -> None:
    """Many pods need more time to start."""
    ranks_job(server.pretend)["status"] |= {"active": active}
    now = datetime.now(UTC).replace(microsecond=0)  # Kubernetes states whole seconds, as the operator observes
    for pod in server.pretend.pods:
        pod["metadata"]["creationTimestamp"] = (now - timedelta(seconds=age)).isoformat()
        pod["status"] = {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]}
    server.see()
    assert server.events_read == reads
