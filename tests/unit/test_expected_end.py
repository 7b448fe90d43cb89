"""Expected end of a transform, in a fake cluster."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from pretend_cluster import PretendCluster, failing, ready, resource


def test_the_end_is_expected_at_the_rate_so_far() -> None:
    cluster = PretendCluster(resource(execution={"parallelism": 1}))
    cluster.work()
    while cluster.status.get("progress") != "2/6":
        cluster.advance(60)
        cluster.work()
    begun = datetime.fromisoformat(next(job for name, job in cluster.jobs.items() if "ranks" in name)["status"]["startTime"])
    expected = cluster.status["expectedCompletionTime"]
    assert datetime.fromisoformat(expected) - begun == 3 * (cluster.now - begun)  # two of six are written
    assert expected in ready(cluster)["message"]
    cluster.now += timedelta(seconds=30)
    assert cluster.decide().status == cluster.status
    cluster.settle()
    assert "expectedCompletionTime" not in cluster.status


def reach(cluster: PretendCluster, progress: str, seconds: float) -> None:
    """Run pods of this duration each until a number of ranks are written."""
    while cluster.status.get("progress") != progress:
        cluster.advance(seconds)
        cluster.work()


@pytest.mark.parametrize("keeps_start_time", [True, False], ids=["1.34", "1.37"])
def test_the_expected_end_counts_only_ranks_written_since_the_resume(*, keeps_start_time: bool) -> None:
    cluster = PretendCluster(resource(execution={"parallelism": 1}), keeps_start_time=keeps_start_time)
    cluster.work()
    reach(cluster, "2/6", 60)
    cluster.change(suspend=True)
    for _ in range(3):
        cluster.work()
        assert "expectedCompletionTime" not in cluster.status
        assert "expected" not in ready(cluster)["message"]
        cluster.advance()
    assert cluster.status["phase"] == "Suspended"
    cluster.advance(3600)
    cluster.change(suspend=False)
    cluster.work()
    cluster.advance(0)
    resumed = cluster.now
    for done, left in ((3, 3), (4, 2)):
        reach(cluster, f"{done}/6", 20)
        expected = datetime.fromisoformat(cluster.status["expectedCompletionTime"])
        assert expected == cluster.now + (cluster.now - resumed) * left / (done - 2)
    cluster.settle()
    assert "expectedCompletionTime" not in cluster.status


def test_the_next_attempt_expects_its_end_from_its_own_start() -> None:
    cluster = PretendCluster(resource(execution={"parallelism": 1}), outcome=failing("ranks", 65, {}, (3,)))
    cluster.settle()
    assert (cluster.status["phase"], cluster.status["ranks"]["succeeded"]) == ("Failed", 5)
    cluster.outcome = PretendCluster().outcome
    cluster.change(execution={"attempt": 2, "parallelism": 1})
    while not any(name.endswith("ranks-2") for name in cluster.jobs):
        cluster.work(status_lost=True)
        cluster.advance()
    cluster.advance(0)
    started = cluster.now
    reach(cluster, "2/6", 60)
    assert datetime.fromisoformat(cluster.status["expectedCompletionTime"]) == cluster.now + 2 * (cluster.now - started)
