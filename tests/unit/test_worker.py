"""The order in which the operator observes transforms."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from pretend_cluster import CONFIG, PretendCluster

from reshard_operator import worker
from reshard_operator.worker import Reconciler

if TYPE_CHECKING:
    import pytest

    from reshard_operator.cluster import Cluster
    from reshard_operator.observation import Seen


class Counted:
    """A cluster in which nothing happens. It counts observations."""

    def __init__(self) -> None:
        self.observations = 0
        self.observed = asyncio.Event()
        self._pretend = PretendCluster()
        self._pretend.settle()

    async def transforms(self, *_: object) -> list[dict[str, Any]]:
        return []

    async def observe(self, *_: str) -> Seen:
        self.observations += 1
        self.observed.set()
        return self._pretend.see()


def test_the_first_event_of_a_burst_is_not_delayed_and_the_others_cause_one_observation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_SETTLE_SECONDS", 2.0)
    cluster, counts = Counted(), list[int]()

    async def story() -> None:
        reconciler = Reconciler(cast("Cluster", cluster), CONFIG, lambda: True)
        working = asyncio.create_task(reconciler.run())
        reconciler.mark("ns", "a.transform")
        await cluster.observed.wait()
        cluster.observed.clear()
        for _ in range(5):
            reconciler.mark("ns", "a.transform")
            await asyncio.sleep(0.01)
        counts.append(cluster.observations)
        await cluster.observed.wait()
        await asyncio.sleep(0.1)
        counts.append(cluster.observations)
        working.cancel()

    asyncio.run(asyncio.wait_for(story(), 60))
    assert counts == [1, 2]
