"""Why pods do not get on, and what is made of it."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pretend_cluster import PretendCluster, conditions, ready, resource

from reshard_operator.observation import CONTAINER, Event
from reshard_operator.reconcile import refused


def stuck_pod(cluster: PretendCluster, waiting: dict[str, str]) -> None:
    """The plan's pod cannot start."""
    cluster.work()
    cluster.advance()
    cluster.pods[0]["status"] = {
        "phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "True"}],
        "containerStatuses": [{"name": CONTAINER, "state": {"waiting": waiting}}],
    }
    next(iter(cluster.jobs.values()))["status"] |= {"ready": 0}


def test_pods_that_cannot_start_are_given_up_after_a_while() -> None:
    cluster = PretendCluster(resource(execution={"startupDeadlineSeconds": 60}))
    stuck_pod(cluster, {"reason": "ImagePullBackOff", "message": "no such image"})
    cluster.work()
    assert (ready(cluster)["reason"], conditions(cluster)["PodsStuck"]) == ("ImagePullBackOff", "True")
    cluster.now += cluster.now.resolution * 59_000_000
    cluster.work()
    assert cluster.status["phase"] == "Planning"
    cluster.now += cluster.now.resolution * 2_000_000
    cluster.work()
    assert (cluster.status["phase"], ready(cluster)["reason"]) == ("Failed", "PodsNotStarting")
    assert "no such image" in ready(cluster)["message"]
    cluster.work()
    assert cluster.jobs == {}


def test_a_volume_that_cannot_be_mounted_counts_as_not_starting() -> None:
    cluster = PretendCluster()
    stuck_pod(cluster, {"reason": "ContainerCreating"})
    cluster.events = [Event(cluster.pods[0]["metadata"]["uid"], "FailedMount", "no such device")]
    cluster.work()
    assert (ready(cluster)["reason"], conditions(cluster)["PodsStuck"]) == ("FailedMount", "True")


def test_waiting_for_a_node_is_never_given_up() -> None:
    cluster = PretendCluster(resource(execution={"startupDeadlineSeconds": 0}))
    stuck_pod(cluster, {})
    cluster.pods[0]["status"]["conditions"] = [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}]
    cluster.now += cluster.now.resolution * 10**12
    cluster.work()
    assert (cluster.status["phase"], ready(cluster)["reason"]) == ("Planning", "Unschedulable")
    assert "0/3 nodes" in ready(cluster)["message"]


def test_a_node_that_is_lost_is_named_also_while_others_get_on() -> None:
    cluster = PretendCluster(resource(execution={"startupDeadlineSeconds": 0}))
    stuck_pod(cluster, {})
    cluster.pods[0]["spec"] = {"nodeName": "node-7"}
    state = {
        "containerStatuses": [{"name": CONTAINER, "state": {"running": {}}}],
        "conditions": [{"type": "Ready", "status": "False"}],
    }
    cluster.pods[0]["status"] = {"phase": "Running"} | state
    next(iter(cluster.jobs.values()))["status"] |= {"active": 2, "ready": 1}
    cluster.now += timedelta(days=1)
    cluster.work()
    assert (cluster.status["phase"], ready(cluster)["reason"]) == ("Planning", "NodeLost")
    assert "node-7" in ready(cluster)["message"]
    assert conditions(cluster)["Reconciling"] == "True"


def test_pods_that_the_api_server_refuses() -> None:
    cluster = PretendCluster()
    cluster.work()
    job = next(iter(cluster.jobs.values()))
    cluster.events = [Event(job["metadata"]["uid"], "FailedCreate", "exceeded quota")]
    cluster.work()
    assert (cluster.status["phase"], ready(cluster)["reason"]) == ("Planning", "PodsDenied")
    cluster.settle()
    assert cluster.status["phase"] == "Complete"


@pytest.mark.parametrize(("for_good", "phase"), [(True, "Failed"), (False, "Planning")])
def test_jobs_that_the_api_server_refuses(*, for_good: bool, phase: str) -> None:
    cluster = PretendCluster()
    decision = refused(cluster.see(), cluster.decide(), "JobDenied", "quota", for_good=for_good)
    assert decision.status is not None
    assert decision.status["phase"] == phase
