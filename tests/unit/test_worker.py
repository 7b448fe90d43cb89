"""The order in which the operator observes transforms."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest
from pretend_cluster import CONFIG, PretendCluster

from reshard_operator import worker
from reshard_operator.cluster import ApiError
from reshard_operator.decision import Decision
from reshard_operator.observation import is_settled
from reshard_operator.worker import Reconciler, requeue_delay

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from reshard_operator.cluster import Cluster
    from reshard_operator.observation import Observation


class Counted:
    """A cluster in which nothing happens. It counts observations, each of which takes some seconds."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds
        self.resources = list[dict[str, Any]]()
        self.observations = 0
        self.observed = asyncio.Event()
        self._pretend = PretendCluster()
        self._pretend.settle()
        self.seen: Callable[[str], Observation] = lambda _: self._pretend.see()

    async def transforms(self, *_: object) -> AsyncIterator[dict[str, Any]]:
        for resource in self.resources:
            yield resource

    async def write_status(self, *_: object) -> None: ...

    async def act(self, *_: object) -> None: ...

    async def record_event(self, *_: object) -> None: ...

    async def observe(self, _: str, name: str) -> Observation:
        self.observations += 1
        self.observed.set()
        await asyncio.sleep(self._seconds)
        return self.seen(name)


def test_the_first_event_of_a_burst_is_not_delayed_and_the_others_cause_one_observation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_SETTLE_SECONDS", 2.0)
    cluster, counts = Counted(), list[int]()

    async def story() -> None:
        reconciler = Reconciler(cast("Cluster", cluster), CONFIG, lambda: True)
        working = asyncio.create_task(reconciler.run())
        reconciler.enqueue("ns", "a.transform")
        await cluster.observed.wait()
        cluster.observed.clear()
        for _ in range(5):
            reconciler.enqueue("ns", "a.transform")
            await asyncio.sleep(0.01)
        counts.append(cluster.observations)
        await cluster.observed.wait()
        await asyncio.sleep(0.1)
        counts.append(cluster.observations)
        working.cancel()

    asyncio.run(asyncio.wait_for(story(), 60))
    assert counts == [1, 2]


def seconds_between_observations(cluster: Counted) -> float:
    """Return the time between two observations, if an event follows the start of the first one."""
    due = list[float]()

    async def story() -> None:
        reconciler = Reconciler(cast("Cluster", cluster), CONFIG, lambda: True)
        working = asyncio.create_task(reconciler.run())
        for _ in range(2):
            reconciler.enqueue("ns", "a.transform")
            await cluster.observed.wait()
            cluster.observed.clear()
            due.append(time.monotonic())
        working.cancel()

    asyncio.run(asyncio.wait_for(story(), 60))
    return due[1] - due[0]


def test_slow_observations_do_not_follow_each_other_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_SETTLE_SECONDS", 0.0)
    assert seconds_between_observations(Counted(0.5)) >= 1.0


@pytest.mark.parametrize(("transforms", "seconds"), [(1, 0.5), (10, 0.5), (200, 10.0)])
def test_many_transforms_are_looked_at_less_often(transforms: int, seconds: float) -> None:
    assert requeue_delay(0.5, transforms) == seconds


def test_only_transforms_that_are_looked_at_again_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events may come for any number of transforms that need no look."""
    counts, counted = list[int](), asyncio.Event()

    def count(_: float, transforms: int) -> float:
        counts.append(transforms)
        if len(counts) == 2:
            counted.set()
        return 60.0

    monkeypatch.setattr(worker, "requeue_delay", count)
    cluster, ended = Counted(), PretendCluster()
    ended.settle()
    busy = PretendCluster()
    cluster.seen = lambda name: (busy if name.startswith("busy") else ended).see()

    async def story() -> None:
        reconciler = Reconciler(cast("Cluster", cluster), CONFIG, lambda: True)
        working = asyncio.create_task(reconciler.run())
        for name in ("busy-1", "ended-1", "ended-2", "busy-2"):
            reconciler.enqueue("ns", name)
        await counted.wait()
        working.cancel()

    asyncio.run(asyncio.wait_for(story(), 60))
    assert counts == [1, 2]


def test_a_resync_looks_at_ended_transforms_only_once() -> None:
    """Their number grows for as long as nobody deletes them."""
    cluster, ended, unfinished = Counted(), PretendCluster(), PretendCluster()
    ended.settle()
    assert is_settled(ended.resource)
    unfinished.work()
    unfinished.resource["metadata"]["name"] = "unfinished"
    cluster.resources = [ended.resource, unfinished.resource]
    names, enough = list[str](), asyncio.Event()

    def see(name: str) -> Observation:
        names.append(name)
        if names.count("unfinished") == 3:
            enough.set()
        return (unfinished if name == "unfinished" else ended).see()

    cluster.seen = see

    async def story() -> None:
        reconciler = Reconciler(cast("Cluster", cluster), replace(CONFIG, resync_seconds=0.3), lambda: True)
        working = asyncio.create_task(reconciler.run())
        await enough.wait()
        working.cancel()

    asyncio.run(asyncio.wait_for(story(), 60))
    assert names.count("a.transform") == 1
    ended.change(suspend=True)
    assert not is_settled(ended.resource)


def test_a_resync_looks_at_a_transform_that_still_had_actions() -> None:
    """An action may have been lost to a conflict, and its event as well."""
    cluster, ended = Counted(), PretendCluster()
    ended.settle()
    next(iter(ended.jobs.values()))["spec"].pop("ttlSecondsAfterFinished")
    cluster.resources, cluster.seen = [ended.resource], lambda _: ended.see()
    reconciler = Reconciler(cast("Cluster", cluster), CONFIG, lambda: True)
    asyncio.run(reconciler._reconcile("ns", "a.transform"))  # noqa: SLF001 - without its queue
    assert not reconciler.rests(ended.resource)
    ended.work()
    asyncio.run(reconciler._reconcile("ns", "a.transform"))  # noqa: SLF001 - without its queue
    assert reconciler.rests(ended.resource)
    ended.change(execution={"attempt": 2})
    assert not reconciler.rests(ended.resource)


def test_a_resync_looks_at_transforms_that_are_gone() -> None:
    """The watch may have missed their deletion, and they would be counted for ever."""
    cluster, enough = Counted(), asyncio.Event()
    pretend = PretendCluster()
    pretend.settle()

    def see(_: str) -> Observation:
        if cluster.observations == 2:
            enough.set()
        return pretend.see()

    cluster.seen = see

    async def story() -> None:
        reconciler = Reconciler(cast("Cluster", cluster), replace(CONFIG, resync_seconds=0.3), lambda: True)
        working = asyncio.create_task(reconciler.run())
        reconciler.enqueue("ns", "a.transform")
        await enough.wait()
        working.cancel()

    asyncio.run(asyncio.wait_for(story(), 60))


def test_the_worker_waits_as_long_as_the_decision_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(worker, "reconcile", lambda *_: Decision(settle_seconds=1.0))
    assert seconds_between_observations(Counted()) >= 1.0


def test_a_job_with_many_pods_is_looked_at_less_often() -> None:
    cluster = PretendCluster()
    while not (jobs := [job for name, job in cluster.jobs.items() if name.endswith("ranks")]):
        cluster.work()
        cluster.advance()
    (job,) = jobs
    job["status"] |= {"active": 6, "ready": 6}
    waits = []
    for count in (10_000, 1_000, 200, 6):
        job["spec"]["completions"] = count
        waits.append(cluster.decide().settle_seconds)
    assert waits == [5.0, 5.0, 1.0, 0.03]


def test_a_replica_without_the_lease_remembers_no_transforms_and_lists_all_when_it_gets_it() -> None:
    cluster, pretend, leads = Counted(), PretendCluster(), [False]
    pretend.settle()
    cluster.resources, cluster.seen = [pretend.resource], lambda _: pretend.see()

    async def story() -> None:
        reconciler = Reconciler(cast("Cluster", cluster), replace(CONFIG, resync_seconds=60), lambda: leads[0])
        working = asyncio.create_task(reconciler.run())
        for number in range(1000):
            reconciler.enqueue("ns", f"gone-{number}")
        await asyncio.sleep(0.6)
        assert cluster.observations == 0
        for _ in range(2):  # also if it gets it again between two looks
            cluster.observed.clear()
            leads[0] = False
            reconciler.enqueue("ns", "ignored")
            leads[0] = True
            await cluster.observed.wait()
            pretend.change(suspend=True)
        working.cancel()

    asyncio.run(asyncio.wait_for(story(), 60))
    assert cluster.observations == 2


@pytest.mark.parametrize("status", [500, 403])
def test_a_job_that_a_webhook_denies_is_reported(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    """The API server answers with 500 if it cannot reach a webhook."""
    cluster, written = Counted(), list[str]()

    async def act(*_: object) -> None:
        raise ApiError(status, "InternalError", "failed calling webhook")

    async def write(_: object, status: dict[str, Any]) -> None:
        written.append(status["conditions"][0]["reason"])

    monkeypatch.setattr(cluster, "act", act)
    monkeypatch.setattr(cluster, "write_status", write)
    cluster.seen = lambda _: PretendCluster().see()
    reconciler = Reconciler(cast("Cluster", cluster), CONFIG, lambda: True)
    asyncio.run(reconciler._reconcile("ns", "a.transform"))  # noqa: SLF001 - without its queue
    assert written == ["JobDenied"]
