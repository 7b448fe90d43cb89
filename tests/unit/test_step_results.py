"""Results that pods of a step leave, in a fake cluster: none, an unreadable one, or another version's."""

from __future__ import annotations

import json

import pytest
from pretend_cluster import COMMIT, PLAN, PretendCluster, failing, ready


def test_a_step_whose_pod_was_deleted_runs_again() -> None:
    cluster = PretendCluster()
    cluster.work()
    for _ in range(3):
        cluster.advance()
    cluster.pods.clear()  # garbage collected before anybody read it
    cluster.work()
    assert "run 2 of at most 3" in ready(cluster)["message"]
    cluster.settle()
    assert cluster.status["phase"] == "Complete"
    assert [name for name in cluster.created if "plan" in name] == [f"a-transform-11112222-plan{run}" for run in ("", "-r2")]
    assert all("ttlSecondsAfterFinished" in job["spec"] for job in cluster.jobs.values())


NEWER = "has version 2, but this operator reads version 1"
UNREADABLE = {
    "": "the container wrote no termination message",
    "sidecar: done": "not a step result",
    json.dumps({"version": 2, "rankMap": {}}): NEWER,
    json.dumps(PLAN | {"version": 2}): NEWER,
    json.dumps({key: value for key, value in PLAN.items() if key != "version"}): "missing required field `version`",
    json.dumps(COMMIT | {"version": 1, "digest": 3}): "not a step result",
}


@pytest.mark.parametrize("status_lost", [False, True], ids=["", "operator killed before each write"])
@pytest.mark.parametrize(("text", "said"), UNREADABLE.items(), ids=range(len(UNREADABLE)))
@pytest.mark.parametrize("step", ["plan", "commit"])
def test_an_unreadable_result_is_requested_three_times(step: str, text: str, said: str, *, status_lost: bool) -> None:
    usual = PretendCluster().outcome
    cluster = PretendCluster(outcome=lambda s, i: (0, text) if s == step else usual(s, i))
    if status_lost:
        for _ in range(40):
            cluster.work(status_lost=True)
            cluster.advance()
    cluster.settle(50)
    assert (cluster.status["phase"], ready(cluster)["reason"]) == ("Failed", "ResultMissing")
    assert said in ready(cluster)["message"]
    assert "same version of operator and converter images" in ready(cluster)["message"]
    names = [f"a-transform-11112222-{step}{run}" for run in ("", "-r2", "-r3")]
    assert [name for name in cluster.created if step in name] == names
    assert all("ttlSecondsAfterFinished" in job["spec"] for job in cluster.jobs.values())


def test_the_next_attempt_requests_three_times_again() -> None:
    cluster = PretendCluster(outcome=lambda *_: (0, ""))
    cluster.settle()
    cluster.change(execution={"attempt": 2})
    cluster.settle()
    assert [name.removeprefix("a-transform-11112222-plan") for name in cluster.created] == [
        "",
        "-r2",
        "-r3",
        "-2",
        "-2-r2",
        "-2-r3",
    ]
    cluster.outcome = PretendCluster().outcome
    cluster.change(execution={"attempt": 3})
    cluster.settle()
    assert cluster.status["phase"] == "Complete"


def test_fields_that_a_newer_converter_adds_are_ignored() -> None:
    usual = PretendCluster().outcome
    cluster = PretendCluster(outcome=lambda s, i: (0, {**usual(s, i)[1], "sauce": 1}))
    cluster.settle()
    assert (cluster.status["phase"], len(cluster.created)) == ("Complete", 3)


def test_a_newer_converters_failure_is_still_reported() -> None:
    said = {"version": 2, "reason": "SourceRankMissing", "message": "there is no rank 5", "exitCode": 66}
    cluster = PretendCluster(outcome=failing("plan", 66, said))
    cluster.settle()
    assert (ready(cluster)["reason"], ready(cluster)["message"]) == (said["reason"], said["message"])


def test_a_deleted_plan_is_known_from_the_status() -> None:
    cluster = PretendCluster()
    while "ranks" not in "".join(cluster.created):
        cluster.work()
        cluster.advance()
    cluster.pods = [pod for pod in cluster.pods if pod["metadata"]["labels"]["reshard.dev/step"] != "plan"]
    cluster.settle()
    assert (cluster.status["phase"], len(cluster.created)) == ("Complete", 3)
