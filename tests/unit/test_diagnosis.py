"""Diagnosis of pods that do not progress, and its consequences."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime, timedelta

import pytest
from pretend_cluster import PretendCluster, conditions, ready, resource

from reshard_operator.cluster import _of_response
from reshard_operator.objects import CONTAINER, Event
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


@pytest.mark.parametrize("reason", ["FailedMount", "FailedCreatePodSandBox"])
def test_a_volume_or_a_sandbox_that_is_not_there_counts_as_not_starting(reason: str) -> None:
    cluster = PretendCluster()
    stuck_pod(cluster, {"reason": "ContainerCreating"})
    cluster.events = [Event(cluster.pods[0]["metadata"]["uid"], reason, "no such device or handler", cluster.now)]
    cluster.work()
    assert (ready(cluster)["reason"], conditions(cluster)["PodsStuck"]) == (reason, "True")


@pytest.mark.parametrize("reason", ["ImagePullBackOff", "SignatureValidationFailed", "ReasonOfALaterKubernetes"])
@pytest.mark.parametrize("kind", ["initContainerStatuses", "containerStatuses"])
def test_a_container_that_a_webhook_added_cannot_start(kind: str, reason: str) -> None:
    cluster = PretendCluster()
    stuck_pod(cluster, {"reason": "PodInitializing"})
    cluster.pods[0]["status"].setdefault(kind, []).append({"name": "added", "state": {"waiting": {"reason": reason}}})
    cluster.work()
    assert (ready(cluster)["reason"], conditions(cluster)["PodsStuck"]) == (reason, "True")
    assert ready(cluster)["message"].endswith(f"container added: {reason}")


def test_a_mount_failure_that_is_over_does_not_count() -> None:
    """The kubelet repeats a warning while its cause exists, every five minutes at the latest. The image may still be pulled."""
    cluster = PretendCluster()
    stuck_pod(cluster, {"reason": "ContainerCreating"})
    cluster.events = [Event(cluster.pods[0]["metadata"]["uid"], "FailedMount", "failed to sync a cache", cluster.now)]
    cluster.work()
    assert ready(cluster)["reason"] == "FailedMount"
    cluster.pods[0]["status"]["conditions"].append({"type": "PodReadyToStartContainers", "status": "True"})
    cluster.work()
    assert (ready(cluster)["reason"], "PodsStuck" in conditions(cluster)) == ("Planning", False)


def test_the_newest_mount_failure_is_reported_with_the_missing_object() -> None:
    cluster = PretendCluster()
    stuck_pod(cluster, {"reason": "ContainerCreating"})
    keys, strategies = {"secret": {"secretName": "keys"}}, {"configMap": {"name": "strategies"}}
    claim = {"persistentVolumeClaim": {"claimName": "claim"}}
    volumes = [{"name": f"volume-{i}"} | volume for i, volume in enumerate((claim, keys, strategies))]
    cluster.pods[0]["spec"] = {"volumes": volumes}

    def message_of(*messages: str) -> str:
        """Return the condition's message after these warnings, newest first."""
        uid = cluster.pods[0]["metadata"]["uid"]
        cluster.events = [Event(uid, "FailedMount", m, cluster.now - timedelta(seconds=i)) for i, m in enumerate(messages)]
        cluster.work()
        return str(ready(cluster)["message"]).partition(": ")[2]

    missing = 'SetUp failed for volume "volume-1" : secret "keys" not found'
    entry = 'SetUp failed for volume "volume-1" : references non-existent secret key: a'
    assert message_of(missing) == f"{missing} (Secret keys)"
    assert message_of(entry, missing) == f"{entry} (Secret keys)"
    assert message_of('for volume "volume-2" : no', entry) == 'for volume "volume-2" : no (ConfigMap strategies)'
    assert message_of('for volume "pv-1" : no such device') == 'for volume "pv-1" : no such device'


def test_a_warning_is_as_old_as_its_last_repetition() -> None:
    first, last = "2026-01-01T00:00:00.250000Z", "2026-01-01T00:01:00Z"
    raw = {"involvedObject": {"uid": "a"}, "reason": "FailedMount", "message": "no", "metadata": {"creationTimestamp": first}}
    whens: list[dict[str, object]] = [
        {"lastTimestamp": last, "eventTime": None},
        {"series": {"lastObservedTime": last}, "eventTime": first},
        {"eventTime": last, "lastTimestamp": None},
        {"metadata": {"creationTimestamp": last}},
    ]
    for when in whens:
        assert Event.parse(raw | when) == Event("a", "FailedMount", "no", datetime(2026, 1, 1, 0, 1, tzinfo=UTC))


def test_waiting_for_a_node_is_never_given_up() -> None:
    cluster = PretendCluster(resource(execution={"startupDeadlineSeconds": 0}))
    stuck_pod(cluster, {})
    cluster.pods[0]["status"]["conditions"] = [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}]
    cluster.now += cluster.now.resolution * 10**12
    cluster.work()
    assert (cluster.status["phase"], ready(cluster)["reason"]) == ("Planning", "Unschedulable")
    assert "0/3 nodes" in ready(cluster)["message"]


def test_pods_that_cannot_start_are_given_up_although_newer_ones_have_no_node() -> None:
    """They occupy what the others wait for."""
    cluster = PretendCluster(resource(execution={"startupDeadlineSeconds": 60}))
    stuck_pod(cluster, {"reason": "ImagePullBackOff", "message": "no such image"})
    newer = copy.deepcopy(cluster.pods[0])
    newer["metadata"] |= {"name": "newer", "uid": "newer", "creationTimestamp": "2026-02-01T00:00:00Z"}
    newer["status"] = {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False"}]}
    cluster.pods.append(newer)
    cluster.work()
    assert ready(cluster)["reason"] == "ImagePullBackOff"
    cluster.now += timedelta(seconds=61)
    cluster.work()
    assert ready(cluster)["reason"] == "PodsNotStarting"


def test_a_lost_node_is_named_while_others_progress() -> None:
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


def test_a_lost_node_is_named_while_the_transform_is_being_suspended() -> None:
    cluster = PretendCluster()
    stuck_pod(cluster, {})
    cluster.pods[0]["spec"] = {"nodeName": "node-7"}
    cluster.pods[0]["status"] = {
        "phase": "Running",
        "containerStatuses": [{"name": CONTAINER, "state": {"running": {}}}],
        "conditions": [{"type": "Ready", "status": "False"}],
    }
    next(iter(cluster.jobs.values()))["status"] |= {"active": 0, "ready": 0, "terminating": 1}
    cluster.change(suspend=True)
    cluster.work()
    assert ready(cluster)["reason"] == "NodeLost"


def test_pods_that_run_one_after_the_other_are_not_unschedulable() -> None:
    """Between the end of one and the start of the next, none is ready."""
    cluster = PretendCluster()
    while not any("ranks" in name for name in cluster.jobs):
        cluster.work()
        cluster.advance()
    cluster.work()
    job = next(job for name, job in cluster.jobs.items() if "ranks" in name)
    status = {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False"}]}
    for pod in cluster.pods[1:]:
        pod["status"] = status
    job["status"] = {"active": 5, "ready": 0, "completedIndexes": "0", "startTime": cluster.now.isoformat()}
    cluster.work()
    assert ready(cluster)["reason"] == "Resharding"
    cluster.work()  # nothing has ended since
    assert ready(cluster)["reason"] == "Unschedulable"
    cluster.pods[1]["status"] = {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]}
    cluster.work()
    assert ready(cluster)["reason"] == "Resharding"


def test_pods_that_the_api_server_refuses() -> None:
    cluster = PretendCluster()
    cluster.work()
    job = next(iter(cluster.jobs.values()))
    cluster.events = [Event(job["metadata"]["uid"], "FailedCreate", "exceeded quota", cluster.now)]
    cluster.work()
    assert (cluster.status["phase"], ready(cluster)["reason"]) == ("Planning", "PodsDenied")
    cluster.now += timedelta(minutes=6)  # it is repeated every five minutes
    cluster.work()
    assert ready(cluster)["reason"] == "PodsDenied"
    cluster.now += timedelta(minutes=5)
    cluster.work()
    assert ready(cluster)["reason"] == "Planning"
    cluster.settle()
    assert cluster.status["phase"] == "Complete"


@pytest.mark.parametrize(("for_good", "phase"), [(True, "Failed"), (False, "Planning")])
def test_jobs_that_the_api_server_refuses(*, for_good: bool, phase: str) -> None:
    cluster = PretendCluster()
    decision = refused(cluster.see(), cluster.decide(), "JobDenied", "quota", for_good=for_good)
    assert decision.status is not None
    assert decision.status["phase"] == phase


@pytest.mark.parametrize(
    ("status", "reason", "message", "field", "invalid"),
    [
        (422, "Invalid", "Job is invalid", "spec.template.spec.tolerations[0].key", True),
        (400, "BadRequest", 'strict decoding error: unknown field "a"', "", True),
        (413, "RequestEntityTooLarge", "too large", "", True),
        (400, "", 'admission webhook "a.example" denied the request: not now', "", False),
        (400, "BadRequest", 'admission webhook "a.example" denied the request: not now', "", False),
        (403, "Forbidden", "exceeded quota", "", False),
        (422, "Invalid", 'admission webhook "a.example" denied the request', "spec.template", False),
        (413, "", 'admission webhook "a.example" denied the request', "", False),
    ],
)
def test_only_an_invalid_job_is_refused_for_good(status: int, reason: str, message: str, field: str, *, invalid: bool) -> None:
    """A webhook that denies without a code gets status 400 (`ToStatusErr` in apiserver's admission plugin)."""
    answer = {"reason": reason, "message": message, "details": {"causes": [{"field": field}] if field else []}}
    assert _of_response(status, json.dumps(answer)).invalid == invalid
