"""The operator's decisions, in a fake cluster: every phase, every failure, and any order of events."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from catalogue import CATALOGUE
from effort import examples
from hypothesis import given
from hypothesis import strategies as st
from pretend_cluster import COMMIT, CONFIG, PLAN, PretendCluster, committing, conditions, failing, older, ready, resource

from reshard.errors import documentation
from reshard_operator.decision import Create, Delete, Patch
from reshard_operator.labels import ANNOTATION_CREATED, LABEL_QUEUE
from reshard_operator.objects import CONTAINER, Job, Pod
from reshard_operator.observation import Transform
from reshard_operator.reconcile import reconcile, refused
from reshard_operator.rivals import holds_target
from reshard_operator.status import event, only_counts_differ, waits_for

if TYPE_CHECKING:
    from collections.abc import Callable

QUEUE = {"kueue.x-k8s.io/queue-name": "gpus"}


@pytest.mark.parametrize(
    ("outcome", "steps"), [(committing, ["plan", "ranks"]), (PretendCluster().outcome, ["plan", "ranks", "commit"])]
)
def test_from_plan_to_complete(outcome: Callable[[str, int], tuple[int, object]], steps: list[str]) -> None:
    cluster = PretendCluster(outcome=outcome)
    cluster.settle()
    assert [name.removeprefix("a-transform-11112222-") for name in cluster.created] == steps
    status = cluster.status
    assert (status["phase"], status["progress"], status["percentage"]) == ("Complete", "6/6", 100)
    expected = {k: v for k, v in PLAN.items() if k not in {"version", "finishedRanks", "complete"}} | {"pods": 6}
    assert status["plan"] == expected
    assert (status["bytesFetched"], status["bytesWritten"], status["manifest"]) == (900, 1200, "reshard-manifest.json")
    assert status["startTime"] <= status["completionTime"]
    assert conditions(cluster) == {"Ready": "True", "Complete": "True"}
    assert all(job["spec"]["ttlSecondsAfterFinished"] == 3600 for job in cluster.jobs.values())


def test_a_commit_whose_report_was_deleted_is_repeated() -> None:
    cluster = PretendCluster(outcome=committing)
    while not any(Pod(pod).committed for pod in cluster.pods):
        cluster.work()
        cluster.advance()
    assert cluster.status["phase"] == "Resharding"
    cluster.pods.clear()
    cluster.settle()
    assert cluster.status["phase"] == "Complete"
    assert [name.rpartition("-")[2] for name in cluster.created] == ["plan", "ranks", "commit"]


@pytest.mark.parametrize(
    ("outcome", "spec"), [(committing, {}), (PretendCluster().outcome, {"execution": {"mode": "SinglePod"}})]
)
def test_containers_end_before_their_jobs(outcome: Callable[[str, int], tuple[int, object]], spec: dict[str, Any]) -> None:
    """The operator does not wait for Jobs whose results it knows, and leaves them to end by themselves."""
    cluster = PretendCluster(resource(**spec), outcome=outcome, lags=True)
    while cluster.work().status["phase"] != "Complete":
        assert not any(Job(job).complete for job in list(cluster.jobs.values())[-1:])
        cluster.advance()
    assert not Job(list(cluster.jobs.values())[-1]).ended
    assert not any(isinstance(action, Delete) for action in cluster.decide().actions)
    names = set(cluster.jobs)
    cluster.settle()
    assert set(cluster.jobs) == names
    assert all(job["spec"]["ttlSecondsAfterFinished"] == 3600 for job in cluster.jobs.values())


def test_a_job_that_cannot_end_is_deleted_after_the_commit() -> None:
    cluster = PretendCluster(outcome=committing, lags=True)
    while cluster.work().status["phase"] != "Complete":
        cluster.advance()
    ranks = next(name for name in cluster.jobs if name.endswith("ranks"))
    cluster.jobs[ranks]["spec"]["suspend"] = True  # by Kueue
    cluster.settle()
    assert ranks not in cluster.jobs


def test_jobs_whose_pods_have_another_container_that_never_ends_are_deleted_after_the_commit() -> None:
    """They would occupy the target forever."""
    cluster = PretendCluster(outcome=committing, lags=True)
    while cluster.work().status["phase"] != "Complete":
        cluster.advance()
    running = {name for name, job in cluster.jobs.items() if not Job(job).ended}
    cluster.now += timedelta(seconds=50)
    decision = cluster.work()
    assert not any(isinstance(action, Delete) for action in decision.actions)
    assert decision.requeue_after_seconds == 10
    cluster.now += timedelta(seconds=10)
    assert {action.name for action in cluster.work().actions if isinstance(action, Delete)} == running
    assert cluster.status["phase"] == "Complete"


def test_a_short_plan_is_looked_at_often_and_a_long_one_rarely() -> None:
    cluster = PretendCluster()
    cluster.work()
    cluster.advance()
    assert cluster.work().requeue_after_seconds == 0.5
    cluster.now += timedelta(minutes=10)
    assert cluster.work().requeue_after_seconds == 75


def test_a_part_that_is_not_the_last() -> None:
    cluster = PretendCluster()
    usual = cluster.outcome
    cluster.outcome = lambda s, i: (0, COMMIT | {"manifest": ""}) if s == "commit" else usual(s, i)
    cluster.settle()
    assert (cluster.status["phase"], ready(cluster)["reason"], cluster.status["manifest"]) == ("Complete", "StageComplete", "")
    assert cluster.decide().actions == ()


INDEX = {"target": resource()["spec"]["target"] | {"output": "Index"}}


def test_an_index_needs_no_ranks() -> None:
    cluster = PretendCluster(resource(**INDEX))
    cluster.settle()
    assert [name.removeprefix("a-transform-11112222-") for name in cluster.created] == ["plan", "commit"]
    status = cluster.status
    assert (status["phase"], status["progress"], status["percentage"]) == ("Complete", "0/0", 100)
    assert (status["ranks"]["total"], status["manifest"]) == (0, "reshard-manifest.json")
    assert ready(cluster)["message"] == "4 -> 6 ranks: the source is indexed for loading"


def test_nothing_is_done_after_the_end() -> None:
    cluster = PretendCluster()
    cluster.settle()
    decision = cluster.decide()
    assert (decision.status, decision.actions) == (None, ())
    cluster.jobs.clear()  # their time is up
    cluster.pods.clear()
    assert (cluster.decide().status, cluster.decide().actions) == (None, ())


def test_a_dry_run_ends_with_the_plan() -> None:
    cluster = PretendCluster(resource(dryRun=True))
    cluster.settle()
    assert (cluster.status["phase"], ready(cluster)["reason"], len(cluster.created)) == ("Complete", "DryRun", 1)
    assert "progress" in cluster.status


def test_a_complete_target_needs_no_ranks() -> None:
    cluster = PretendCluster(outcome=lambda *_: (0, PLAN | {"complete": True}))
    cluster.settle()
    assert (cluster.status["phase"], ready(cluster)["reason"], len(cluster.created)) == ("Complete", "AlreadyComplete", 1)


def test_a_failed_plan_reports_the_pods_message() -> None:
    said = {"reason": "SourceRankMissing", "message": "SourceRankMissing: there is no rank 5", "exitCode": 66}
    cluster = PretendCluster(outcome=failing("plan", 66, said))
    cluster.settle()
    assert (cluster.status["phase"], ready(cluster)["reason"], ready(cluster)["message"]) == (
        "Failed",
        said["reason"],
        said["message"],
    )
    assert conditions(cluster) == {"Ready": "False", "Failed": "True", "Stalled": "True"}
    assert "completionTime" in cluster.status


def test_failed_ranks_are_named_as_ranks() -> None:
    said = {"reason": "Truncated", "message": "Truncated: rank_3/x.ckpt: ends early", "exitCode": 65}
    target = resource()["spec"]["target"] | {"onlyRanks": "1-4"}
    grouping = {"run": 1, "count": 2, "stride": 2}
    failed = failing("ranks", 65, said, (1,))
    outcome = {"plan": (0, PLAN | {"grouping": grouping})}
    cluster = PretendCluster(resource(target=target), outcome=lambda step, index: outcome.get(step) or failed(step, index))
    cluster.settle()
    ranks, plan = cluster.status["ranks"], cluster.status["plan"]
    assert (plan["grouping"], plan["pods"]) == (grouping, 2)
    assert (ranks["total"], ranks["succeeded"], ranks["failed"], ranks["failedRanks"]) == (4, 2, 2, "2,4")
    assert ranks["failures"] == [{"ranks": "2,4", "pod": "a-transform-11112222-ranks-1", **said}]
    assert ready(cluster)["message"] == f"rank 2,4 of 4 failed: {said['message']}"
    assert len(cluster.created) == 2


def test_a_pod_without_a_message_is_described() -> None:
    cluster = PretendCluster(outcome=failing("plan", 137, {}))
    cluster.settle()
    assert (ready(cluster)["reason"], cluster.status["phase"]) == ("PlanFailed", "Failed")
    assert ready(cluster)["reason"] in CATALOGUE


def test_the_next_attempt_runs_all_steps_again() -> None:
    cluster = PretendCluster(outcome=failing("ranks", 65, {"reason": "Truncated", "message": "m", "exitCode": 65}))
    cluster.settle()
    assert cluster.status["phase"] == "Failed"
    cluster.outcome = PretendCluster().outcome
    cluster.change(execution={"attempt": 2})
    cluster.settle()
    assert (cluster.status["phase"], cluster.status["attempt"]) == ("Complete", 2)
    assert [name[-7:] for name in cluster.created[2:]] == ["-plan-2", "ranks-2", "ommit-2"]
    assert "failures" not in cluster.status["ranks"]


@pytest.mark.parametrize("rounds", range(9))
def test_suspended_and_resumed_at_every_moment(rounds: int) -> None:
    cluster = PretendCluster()
    for _ in range(rounds):
        cluster.work()
        cluster.advance()
    cluster.change(suspend=True)
    cluster.settle()
    if cluster.status["phase"] == "Complete":  # the last pod had ended before
        assert rounds >= 6
        return
    assert (cluster.status["phase"], ready(cluster)["reason"]) == ("Suspended", "Suspended")
    assert conditions(cluster) == {"Ready": "False", "Reconciling": "False", "Suspended": "True"}
    cluster.change(suspend=False)
    cluster.settle()
    assert cluster.status["phase"] == "Complete"
    assert len(cluster.created) == 3


@pytest.mark.parametrize("ended", ["Complete", "Failed"])
def test_a_refused_next_attempt_is_not_final(ended: str) -> None:
    failed = failing("ranks", 65, {"reason": "Truncated", "message": "m", "exitCode": 65})
    cluster = PretendCluster() if ended == "Complete" else PretendCluster(outcome=failed)
    cluster.settle()
    assert cluster.status["phase"] == ended
    cluster.change(execution={"attempt": 2})
    cluster.carry_out(refused(cluster.see(), cluster.decide(), "JobDenied", "quota", for_good=False))
    assert (cluster.status["phase"], ready(cluster)["reason"]) == ("Planning", "JobDenied")
    cluster.outcome = PretendCluster().outcome
    cluster.settle()
    assert (cluster.status["phase"], cluster.status["attempt"]) == ("Complete", 2)


def test_a_failure_is_reported_with_the_message_of_the_failed_rank() -> None:
    cluster = PretendCluster(
        outcome=failing("ranks", 65, {"reason": "Truncated", "message": "rank_3 is short", "exitCode": 65}, (3,))
    )
    while not any("ranks" in name for name in cluster.jobs):
        cluster.work()
        cluster.advance()
    job = next(job for name, job in cluster.jobs.items() if "ranks" in name)
    template = job["spec"]["template"]["metadata"]
    evicted = {
        "name": "evicted",
        "uid": "evicted",
        "creationTimestamp": (cluster.now + timedelta(days=1)).isoformat(),
        "labels": template["labels"],
        "annotations": template["annotations"] | {"batch.kubernetes.io/job-completion-index": "0"},
        "ownerReferences": [{"uid": job["metadata"]["uid"], "controller": True}],
    }
    cluster.settle()
    cluster.resource["status"] = {}
    cluster.pods.append({"metadata": evicted, "status": {"phase": "Failed", "reason": "Evicted", "message": "low on memory"}})
    assert cluster.work().status["conditions"][0]["message"] == "rank 3 of 6 failed: rank_3 is short"


def test_the_holder_of_a_target() -> None:
    transform = Transform.parse(resource("99990000-bbbb"))
    cluster = PretendCluster(resource() | {"metadata": resource()["metadata"] | {"creationTimestamp": "2027-01-01T00:00:00Z"}})
    cluster.work()
    plan = Job(next(iter(cluster.jobs.values())))
    assert not holds_target(plan, transform, cluster.now)  # the other is younger, and only plans
    plan.raw["metadata"]["annotations"][ANNOTATION_CREATED] = ""
    assert holds_target(plan, transform, cluster.now)
    ended = {"completionTime": cluster.now.isoformat(), "conditions": [{"type": "Complete", "status": "True"}]}
    plan = Job(plan.raw | {"status": ended})
    assert holds_target(plan, transform, cluster.now + timedelta(seconds=29))  # the Job of its ranks is about to be created
    assert not holds_target(plan, transform, cluster.now + timedelta(seconds=31))  # it may be suspended
    while not any("ranks" in name for name in cluster.jobs):
        cluster.advance()
        cluster.work()
    raw = next(job for name, job in cluster.jobs.items() if "ranks" in name)
    raw["spec"]["suspend"] = True
    assert holds_target(Job(raw), transform, cluster.now)  # though it is suspended
    raw["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
    assert holds_target(Job(raw), transform, cluster.now)  # its commit is still to come
    raw["spec"]["ttlSecondsAfterFinished"] = 5
    assert not holds_target(Job(raw), transform, cluster.now)
    del raw["spec"]["ttlSecondsAfterFinished"], raw["metadata"]["ownerReferences"]
    assert not holds_target(Job(raw), transform, cluster.now)  # an orphan that has ended


def test_an_orphan_that_is_suspended_does_not_hold_the_target() -> None:
    """A soak found it: a transform that was suspended, deleted with its Jobs left, and created again waited for ever."""
    transform = Transform.parse(resource("99990000-bbbb"))
    cluster = PretendCluster()
    cluster.work()
    raw = next(iter(cluster.jobs.values()))
    raw["metadata"]["annotations"][ANNOTATION_CREATED] = ""  # older
    del raw["metadata"]["ownerReferences"]
    raw["status"] = {"active": 1}
    assert holds_target(Job(raw), transform, cluster.now)
    suspended = {"conditions": [{"type": "Suspended", "status": "True"}]}
    raw["status"] = suspended | {"terminating": 1}
    assert holds_target(Job(raw), transform, cluster.now)  # a pod may still write
    raw["status"] = suspended
    assert not holds_target(Job(raw), transform, cluster.now)
    raw["metadata"]["labels"][LABEL_QUEUE] = "gpus"
    assert holds_target(Job(raw), transform, cluster.now)  # Kueue may still admit it


def test_parallelism_is_passed_on() -> None:
    cluster = PretendCluster()
    while "ranks" not in "".join(cluster.created):
        cluster.work()
        cluster.advance()
    cluster.change(execution={"parallelism": 2})
    patches = [action.spec for action in cluster.decide().actions if isinstance(action, Patch)]
    assert patches == [{"maxFailedIndexes": 2, "parallelism": 2}]
    cluster.settle()
    assert cluster.status["phase"] == "Complete"


def test_a_lower_parallelism_does_not_fail_a_job_for_failures_that_were_accepted() -> None:
    cluster = PretendCluster(
        outcome=lambda step, index: (1, "no") if step == "ranks" and index < 3 else (0, {"plan": PLAN}[step])
    )
    while "ranks" not in "".join(cluster.created):
        cluster.work()
        cluster.advance()
    job = next(job for name, job in cluster.jobs.items() if "ranks" in name)
    job["status"] = {"active": 3, "ready": 3, "failedIndexes": "0-2", "startTime": cluster.now.isoformat()}
    cluster.change(execution={"parallelism": 2})
    patches = [action.spec for action in cluster.decide().actions if isinstance(action, Patch)]
    assert patches == [{"maxFailedIndexes": 3, "parallelism": 2}]


def test_a_dry_run_does_not_wait_for_its_target() -> None:
    other = PretendCluster(resource("99990000-bbbb"))
    while "ranks" not in "".join(other.created):
        other.work()
        other.advance()
    cluster = PretendCluster(resource(dryRun=True), others=list(other.jobs.values()))
    cluster.settle()
    assert (cluster.status["phase"], ready(cluster)["reason"]) == ("Complete", "DryRun")


def test_an_older_dry_run_does_not_stop_a_single_pod_that_writes() -> None:
    dry = PretendCluster(resource("99990000-bbbb", dryRun=True))
    dry.work()
    for job in dry.jobs.values():
        job["metadata"]["annotations"][ANNOTATION_CREATED] = ""  # older
    cluster = PretendCluster(resource(execution={"mode": "SinglePod"}))
    cluster.work()
    cluster.others = list(dry.jobs.values())
    assert not any(isinstance(action, Delete) for action in cluster.decide().actions)


@pytest.mark.parametrize(("parallelism", "failed"), [(1, 2), (2, 4), (4, 6), (8, 6)])
def test_the_other_ranks_are_stopped_if_more_pods_fail_than_run_at_the_same_time(parallelism: int, failed: int) -> None:
    def outcome(step: str, index: int) -> tuple[int, object]:
        said = {"reason": "Truncated", "message": "m", "exitCode": 65}
        return (65, said) if step == "ranks" else PretendCluster().outcome(step, index)

    cluster = PretendCluster(resource(execution={"parallelism": parallelism}), outcome=outcome)
    cluster.settle()
    assert cluster.status["ranks"]["failed"] == failed
    message = cluster.status["conditions"][0]["message"]
    assert ("the other ranks were stopped" in message) == (failed < 6), message
    assert cluster.status["conditions"][0]["reason"] == "Truncated"


def test_the_jobs_of_a_transform_are_named() -> None:
    cluster = PretendCluster()
    cluster.settle()
    assert sorted(cluster.status["jobs"].values()) == sorted(cluster.created)


def test_another_transform_with_the_same_target_is_waited_for() -> None:
    other = older()
    cluster = PretendCluster(others=list(other.jobs.values()))
    cluster.settle()
    assert (cluster.created, cluster.status["phase"], ready(cluster)["reason"]) == ([], "Pending", "TargetBusy")
    assert other.created[0] in ready(cluster)["message"]
    cluster.others.clear()
    cluster.settle()
    assert cluster.status["phase"] == "Complete"


def test_a_deleted_transform_is_left_alone() -> None:
    cluster = PretendCluster()
    cluster.work()
    cluster.resource["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert cluster.decide().actions == ()
    assert cluster.decide().status is None


def test_a_spec_changed_without_the_api_server() -> None:
    cluster = PretendCluster()
    cluster.work()
    cluster.change(verification="Full")
    cluster.settle()
    assert (cluster.status["phase"], ready(cluster)["reason"]) == ("Failed", "SpecChanged")


def test_a_spec_that_cannot_be_read_is_waited_for() -> None:
    cluster = PretendCluster(resource(sauce=1))
    cluster.settle()
    assert (cluster.status["phase"], ready(cluster)["reason"], cluster.created) == ("Pending", "InvalidSpec", [])


@pytest.mark.parametrize("rounds", range(0, 12, 2))
def test_a_newer_crd_disturbs_nothing(rounds: int) -> None:
    """An operator that is about to be replaced does not know the defaults of the newer CRD."""
    cluster = PretendCluster(resource(execution={"attempt": 2}))
    for _ in range(rounds):
        cluster.work()
        cluster.advance()
    running, phase = set(cluster.jobs), cluster.status.get("phase", "Pending")
    cluster.resource["spec"]["sauce"] = "new default"
    cluster.work()
    assert (set(cluster.jobs), cluster.status.get("phase")) == (running, phase)
    del cluster.resource["spec"]["sauce"]
    cluster.settle()
    assert (cluster.status["phase"], cluster.status["attempt"]) == ("Complete", 2)


def test_kueue_starts_the_ranks() -> None:
    made = resource()
    made["metadata"]["labels"] = QUEUE
    cluster = PretendCluster(made)
    cluster.settle()
    assert (cluster.status["phase"], ready(cluster)["reason"]) == ("Resharding", "Queued")
    job = next(job for name, job in cluster.jobs.items() if name.endswith("ranks"))
    job["spec"]["suspend"] = False  # admitted
    cluster.settle()
    assert cluster.status["phase"] == "Complete"


def test_a_queued_job_is_deleted_while_the_transform_is_suspended() -> None:
    """Kueue starts a Job of an admitted workload, whoever has suspended it."""
    made = resource()
    made["metadata"]["labels"] = QUEUE
    cluster = PretendCluster(made)
    cluster.settle()
    job = next(job for name, job in cluster.jobs.items() if name.endswith("ranks"))
    job["spec"]["suspend"] = False  # admitted
    cluster.advance()
    job["status"]["completedIndexes"] = "0-3"
    cluster.work()
    cluster.change(suspend=True)
    cluster.settle()
    assert cluster.status["phase"] == "Suspended"
    assert not any(name.endswith("ranks") for name in cluster.jobs)
    assert (cluster.status["progress"], cluster.status["ranks"]["active"]) == ("4/6", 0)
    cluster.change(suspend=False)
    cluster.settle()
    assert ready(cluster)["reason"] == "Queued"
    next(job for name, job in cluster.jobs.items() if name.endswith("ranks"))["spec"]["suspend"] = False
    cluster.settle()
    assert cluster.status["phase"] == "Complete"


def test_a_new_attempt_that_is_suspended_ends_the_earlier_one_first() -> None:
    cluster = PretendCluster()
    while "ranks" not in "".join(cluster.created):
        cluster.work()
        cluster.advance()
    pods = [pod for pod in cluster.pods if Pod(pod).alive]
    assert pods
    cluster.change(execution={"attempt": 2}, suspend=True)
    cluster.work()
    assert (cluster.status["phase"], ready(cluster)["reason"]) == ("Planning", "Suspending")
    assert not cluster.working
    cluster.pods += pods  # they end later
    cluster.work()
    assert ready(cluster)["reason"] == "Suspending"
    assert pods[0]["metadata"]["name"] in ready(cluster)["message"]
    cluster.pods.clear()
    cluster.work()
    assert (cluster.status["phase"], cluster.working) == ("Suspended", [])


def test_a_new_attempt_names_the_lost_node_that_it_waits_for() -> None:
    cluster = PretendCluster()
    cluster.work()
    cluster.advance()
    (pod,) = cluster.pods
    cluster.change(execution={"attempt": 2})
    cluster.work()
    pod["spec"] = {"nodeName": "node-7"}
    pod["status"] = {
        "phase": "Running",
        "containerStatuses": [{"name": CONTAINER, "state": {"running": {}}}],
        "conditions": [{"type": "Ready", "status": "False"}],
    }
    cluster.pods = [pod]
    decision = cluster.work()
    assert ready(cluster)["reason"] == waits_for(cluster.status) == "NodeLost"
    assert "node node-7 is not responding" in ready(cluster)["message"]
    assert decision.requeue_after_seconds == 5
    cluster.pods = []
    cluster.settle()
    assert cluster.status["phase"] == "Complete"


def test_nothing_is_expected_of_a_transform_that_has_failed() -> None:
    said = {"reason": "Truncated", "message": "m", "exitCode": 65}
    cluster = PretendCluster(resource(execution={"parallelism": 4}), outcome=failing("ranks", 65, said, tuple(range(6))))
    while "ranks" not in "".join(cluster.created):
        cluster.work()
        cluster.advance()
    job = next(job for name, job in cluster.jobs.items() if name.endswith("ranks"))
    cluster.resource["status"]["expectedCompletionTime"] = "2026-01-01T00:00:00Z"
    job["status"] = {"active": 4, "conditions": [{"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}]}
    cluster.work()
    assert (cluster.status["phase"], cluster.status["ranks"]["active"]) == ("Failed", 0)
    assert "expectedCompletionTime" not in cluster.status


def test_the_generation_is_kept_up_to_date_after_the_end() -> None:
    cluster = PretendCluster()
    cluster.settle()
    cluster.change(execution={"parallelism": 3})
    cluster.work()
    assert cluster.status["observedGeneration"] == 2
    assert cluster.status["phase"] == "Complete"


def test_only_counts_may_be_delayed() -> None:
    cluster = PretendCluster(resource(execution={"parallelism": 1}))
    statuses = []
    for _ in range(20):
        statuses.append(cluster.work().status or {})
        cluster.advance()
    steps = list(pairwise(statuses))
    waits = [(a["progress"], b["progress"]) for a, b in steps if a != b and only_counts_differ(a, b)]
    assert [each for each in waits if each[0] != each[1]] == [(f"{i}/6", f"{i + 1}/6") for i in range(5)]


MOMENTS = ["work", "lost", "advance", "twice", "suspend", "resume", "parallel", "attempt", "refuse", "newer CRD", "older CRD"]


@examples(300)
@given(
    moments=st.lists(st.sampled_from(MOMENTS), max_size=60),
    fails=st.booleans(),
    index=st.booleans(),
    last=st.booleans(),
    lags=st.booleans(),
)
def test_any_order_repetition_or_loss_ends_in_the_same_state(
    *, moments: list[str], fails: bool, index: bool, last: bool, lags: bool
) -> None:
    usual = committing if last else PretendCluster().outcome
    said = {"reason": "Truncated", "message": "m", "exitCode": 65}
    outcome = failing("commit", 65, said) if index else failing("ranks", 65, said, (2,))
    cluster = PretendCluster(resource(**(INDEX if index else {})), outcome=outcome if fails else usual, lags=lags)
    execution = {"parallelism": 8, "attempt": 1}
    for moment in moments:
        if moment == "parallel":
            execution["parallelism"] = 1 + len(cluster.created)
            cluster.change(execution=dict(execution))
        elif moment == "attempt":
            execution["attempt"] += 1
            cluster.change(execution=dict(execution))
        elif moment == "newer CRD":
            cluster.resource["spec"]["sauce"] = "a default that this operator does not know"
        elif moment == "older CRD":
            cluster.resource["spec"].pop("sauce", None)
        else:
            cluster.meet(moment)
        assert len(cluster.working) <= 1
        if moment == "work" and cluster.status["phase"] == "Suspended":
            assert not cluster.working
    cluster.resource["spec"].pop("sauce", None)
    cluster.change(suspend=False)
    cluster.settle(60)
    attempt = execution["attempt"]
    assert (cluster.status["phase"], cluster.status["attempt"]) == ("Failed" if fails else "Complete", attempt)
    ends = f"-{attempt}" if attempt > 1 else ("plan", "ranks", "commit")
    created = [name for name in cluster.created if name.endswith(ends)]
    assert len(created) == len(set(created)) == (2 if fails or index or last else 3)
    assert reconcile(cluster.see(), CONFIG).actions == ()
    assert not any(isinstance(action, Create) for action in cluster.decide().actions)


def test_the_event_of_a_failure_ends_with_its_documentation() -> None:
    status = {"phase": "Failed", "conditions": [{"type": "Ready", "reason": "SourceRankMissing", "message": "x" * 2000}]}
    kind, note = event(status)
    assert kind == "Warning"
    assert note.endswith(f"x. See {documentation('SourceRankMissing')}")
    assert len(note) < 1000
    assert event(status | {"phase": "Complete"}) == ("Normal", "x" * 2000)
    waiting = {"phase": "Planning", "conditions": [{"type": "Ready", "reason": "TargetBusy", "message": "waiting"}]}
    assert event(waiting) == ("Warning", "waiting")


def test_a_second_plan_does_not_change_the_ranks_of_a_running_job() -> None:
    """The operator and the pod of the plan may be lost after the Job of the ranks was created."""
    cluster = PretendCluster()
    while not any("ranks" in name for name in cluster.jobs):
        cluster.carry_out(cluster.decide(), status_lost=True)
        cluster.advance()
    cluster.pods = [pod for pod in cluster.pods if "plan" not in pod["metadata"]["name"]]
    usual = cluster.outcome
    pairs = PLAN | {"grouping": {"run": 2, "count": 1, "stride": 2}}
    cluster.outcome = lambda s, i: (0, pairs) if s == "plan" else usual(s, i)
    while "plan" not in cluster.status:
        cluster.work()
        cluster.advance()
    assert any(name.endswith("plan-r2") for name in cluster.created)
    assert (cluster.status["plan"]["grouping"]["run"], cluster.status["plan"]["pods"]) == (1, 6)
    cluster.settle()
    assert (cluster.status["phase"], cluster.status["progress"]) == ("Complete", "6/6")
