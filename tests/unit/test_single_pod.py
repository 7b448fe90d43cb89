"""The operator's decisions for transforms with the mode SinglePod, in a fake cluster."""

from __future__ import annotations

from typing import Any

import pytest
from catalogue import CATALOGUE
from effort import examples
from hypothesis import given
from hypothesis import strategies as st
from pretend_cluster import PLAN, TRANSFORM, PretendCluster, conditions, failing, older, ready, resource

from reshard_operator.decision import Create

BASE = "a-transform-11112222-transform"
SINGLE = {"mode": "SinglePod"}


def single(**spec: Any) -> dict[str, Any]:
    return resource(execution=SINGLE | spec.pop("execution", {}), **spec)


def test_one_job_does_everything() -> None:
    cluster = PretendCluster(single())
    cluster.work()
    status = cluster.status
    assert (status["phase"], ready(cluster)["reason"], status["jobs"]) == ("Resharding", "Resharding", {"transform": BASE})
    assert ready(cluster)["message"] == f"Job {BASE} is running"
    cluster.settle()
    status = cluster.status
    assert cluster.created == [BASE]
    assert (status["phase"], status["progress"], status["percentage"]) == ("Complete", "6/6", 100)
    assert status["plan"].items() >= {k: v for k, v in PLAN.items() if k not in {"version", "finishedRanks", "complete"}}.items()
    assert (status["bytesFetched"], status["bytesWritten"], status["manifest"]) == (900, 1200, "reshard-manifest.json")
    assert ready(cluster)["message"] == "4 -> 6 ranks: all files are verified and recorded"
    assert conditions(cluster) == {"Ready": "True", "Complete": "True"}
    assert all(job["spec"]["ttlSecondsAfterFinished"] == 3600 for job in cluster.jobs.values())
    assert cluster.decide().actions == ()


@pytest.mark.parametrize(
    ("spec", "result", "reason"),
    [
        ({}, {"committed": None, "plan": PLAN | {"complete": True}}, "AlreadyComplete"),
        ({}, {"committed": TRANSFORM["committed"] | {"manifest": ""}}, "StageComplete"),
    ],
)
def test_other_ends(spec: dict[str, Any], result: dict[str, Any], reason: str) -> None:
    cluster = PretendCluster(single(**spec), outcome=lambda *_: (0, TRANSFORM | result))
    cluster.settle()
    assert (cluster.status["phase"], ready(cluster)["reason"], cluster.created) == ("Complete", reason, [BASE])


def test_a_dry_run_waits_for_no_queue_and_occupies_no_target() -> None:
    made = single(dryRun=True)
    made["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "gpus"}
    cluster = PretendCluster(made)
    cluster.work()
    other = PretendCluster(resource("00001111-bbbb"), others=list(cluster.jobs.values()))
    other.work()
    assert other.created
    cluster.settle()
    assert (cluster.status["phase"], ready(cluster)["reason"]) == ("Complete", "DryRun")
    assert cluster.created == ["a-transform-11112222-plan"]


@pytest.mark.parametrize(
    ("said", "reason"), [({"reason": "Truncated", "message": "m", "exitCode": 65}, "Truncated"), ({}, "TransformFailed")]
)
def test_a_failure_is_reported(said: dict[str, Any], reason: str) -> None:
    cluster = PretendCluster(single(), outcome=failing("transform", 65, said))
    cluster.settle()
    assert (cluster.status["phase"], ready(cluster)["reason"]) == ("Failed", reason)
    assert ready(cluster)["reason"] in CATALOGUE
    cluster.outcome = PretendCluster().outcome
    cluster.change(execution=SINGLE | {"attempt": 2})
    cluster.settle()
    assert (cluster.status["phase"], cluster.created) == ("Complete", [BASE, f"{BASE}-2"])


def test_the_deadline_is_that_of_the_pod() -> None:
    cluster = PretendCluster(single(execution={"activeDeadlineSeconds": 7}))
    cluster.work()
    (job,) = cluster.jobs.values()
    assert job["spec"]["activeDeadlineSeconds"] == 7
    job["status"] = {"conditions": [{"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}]}
    cluster.settle()
    assert (cluster.status["phase"], ready(cluster)["reason"]) == ("Failed", "DeadlineExceeded")
    assert ready(cluster)["message"] == "the pod took longer than spec.execution.activeDeadlineSeconds (7 s)"


def test_a_pod_that_succeeds_before_the_deadline_is_noticed_has_succeeded() -> None:
    cluster = PretendCluster(single(), lags=True)
    cluster.work()
    cluster.advance()
    cluster.advance()
    (job,) = cluster.jobs.values()
    job["status"] |= {"conditions": [{"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}]}
    cluster.work()
    assert (cluster.status["phase"], ready(cluster)["reason"]) == ("Complete", "Complete")


@pytest.mark.parametrize("outcome", [(0, ""), (0, TRANSFORM | {"committed": None})])
def test_a_result_that_is_missing_is_requested_three_times(outcome: tuple[int, object]) -> None:
    cluster = PretendCluster(single(), outcome=lambda *_: outcome)
    cluster.settle()
    assert (cluster.status["phase"], ready(cluster)["reason"]) == ("Failed", "ResultMissing")
    assert cluster.created == [BASE, f"{BASE}-r2", f"{BASE}-r3"]


def test_a_pod_that_was_deleted_runs_again() -> None:
    cluster = PretendCluster(single())
    cluster.work()
    cluster.advance()
    cluster.advance()
    cluster.pods.clear()
    cluster.settle()
    assert (cluster.status["phase"], cluster.created) == ("Complete", [BASE, f"{BASE}-r2"])


@pytest.mark.parametrize("mode", ["SinglePod", "Chained"])
def test_another_transform_with_the_same_target_is_waited_for(mode: str) -> None:
    other = older() if mode == "Chained" else PretendCluster(resource("00001111-bbbb", execution=SINGLE))
    other.work()
    cluster = PretendCluster(single(), others=list(other.jobs.values()))
    cluster.settle()
    assert (cluster.created, cluster.status["phase"], ready(cluster)["reason"]) == ([], "Pending", "TargetBusy")
    cluster.others.clear()
    cluster.settle()
    assert cluster.status["phase"] == "Complete"


def test_the_only_pod_occupies_the_target() -> None:
    cluster = PretendCluster(single())
    cluster.work()
    first = PretendCluster(resource("00001111-bbbb"), others=list(cluster.jobs.values()))
    first.resource["metadata"]["creationTimestamp"] = "2025-01-01T00:00:00Z"
    first.settle()
    assert (first.created, ready(first)["reason"]) == ([], "TargetBusy")


@pytest.mark.parametrize("mode", ["SinglePod", "Chained"])
def test_the_younger_of_two_that_started_together_is_stopped(mode: str) -> None:
    """Its pod would wait for the lock in vain."""
    first = PretendCluster(resource("00001111-bbbb", execution={"mode": mode}))
    second = PretendCluster(single())
    for cluster in (first, second):
        cluster.work()
    first.others, second.others = list(second.jobs.values()), list(first.jobs.values())
    for cluster in (first, second):
        cluster.advance()
        cluster.work()
    assert first.jobs
    assert (second.jobs, second.status["phase"], ready(second)["reason"]) == ({}, "Pending", "TargetBusy")
    assert first.created[0] in ready(second)["message"]
    first.others.clear()
    first.settle()
    assert first.status["phase"] == "Complete"
    second.others = list(first.jobs.values())
    second.settle()
    assert second.status["phase"] == "Complete"


def test_kueue_starts_the_pod() -> None:
    made = single()
    made["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "gpus"}
    cluster = PretendCluster(made)
    cluster.settle()
    assert (cluster.status["phase"], ready(cluster)["reason"]) == ("Resharding", "Queued")
    cluster.jobs[BASE]["spec"]["suspend"] = False  # admitted
    cluster.settle()
    assert cluster.status["phase"] == "Complete"


MOMENTS = ["work", "lost", "advance", "twice", "suspend", "resume", "attempt", "refuse"]


@examples(100)
@given(moments=st.lists(st.sampled_from(MOMENTS), max_size=40), fails=st.booleans(), lags=st.booleans())
def test_any_order_repetition_or_loss_ends_in_the_same_state(*, moments: list[str], fails: bool, lags: bool) -> None:
    said = {"reason": "Truncated", "message": "m", "exitCode": 65}
    outcome = failing("transform", 65, said) if fails else PretendCluster().outcome
    cluster, attempt = PretendCluster(single(), outcome=outcome, lags=lags), 1
    for moment in moments:
        if moment == "attempt":
            attempt += 1
            cluster.change(execution=SINGLE | {"attempt": attempt})
        else:
            cluster.meet(moment)
        assert len(cluster.working) <= 1
    cluster.change(suspend=False)
    cluster.settle(60)
    assert (cluster.status["phase"], cluster.status["attempt"]) == ("Failed" if fails else "Complete", attempt)
    assert cluster.created.count(f"{BASE}-{attempt}" if attempt > 1 else BASE) == 1
    assert not any(isinstance(action, Create) for action in cluster.decide().actions)


def test_the_memory_of_the_pod_can_be_requested() -> None:
    cluster = PretendCluster(single())
    cluster.work()
    container = cluster.jobs[BASE]["spec"]["template"]["spec"]["containers"][0]
    assert container["args"] == ["step", "transform"]
    assert container["resources"] == {"requests": {"memory": str(512 << 20)}}  # no limit, as the plan does not exist yet
    assert cluster.jobs[BASE]["spec"]["backoffLimit"] == 2
    template = {"resources": {"requests": {"memory": "2Gi"}}}
    *_, create = PretendCluster(single(execution={"podTemplate": template})).decide().actions
    assert isinstance(create, Create)
    assert create.manifest["spec"]["template"]["spec"]["containers"][0]["resources"] == template["resources"]
