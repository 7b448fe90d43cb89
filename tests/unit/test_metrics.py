"""The operator's metrics of transforms, from the first observation until they are deleted."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pretend_cluster import COMMIT, CONFIG, PLAN, PretendCluster, older
from prometheus_client import REGISTRY

from reshard_operator.decision import Decision
from reshard_operator.metrics import PhaseGauge
from reshard_operator.status import WAITING, Phase
from reshard_operator.worker import Reconciler

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from reshard_operator.observation import Observation


def value(name: str, **labels: str) -> float:
    found = REGISTRY.get_sample_value(name, labels)
    assert found is not None, (name, labels)
    return found


def phases() -> dict[str, float]:
    return {phase: value("reshard_transforms", phase=phase) for phase in Phase}


def ended() -> dict[str, float]:
    """Return the metrics that are counted when a transform ends."""
    names = [
        "bytes_needed_total",
        "bytes_distinct_total",
        "bytes_fetched_total",
        "fetch_requests_total",
        "bytes_written_total",
        "rank_duration_seconds_count",
        "rank_duration_seconds_sum",
    ]
    found = {f"reshard_{name}": value(f"reshard_{name}") for name in names}
    for phase in ("Complete", "Failed"):
        for name in ("reshard_transform_duration_seconds_count", "reshard_transform_duration_seconds_sum"):
            found[f"{name} {phase}"] = value(name, phase=phase)
    for bound in ("2.5", "5.0", "3600.0", "+Inf"):
        found[f"reshard_rank_duration_seconds_bucket {bound}"] = value("reshard_rank_duration_seconds_bucket", le=bound)
    return found


class Watched:
    """A cluster as the worker sees it: one transform, which progresses with every observation, until no watch reports its end."""

    def __init__(self) -> None:
        self.pretend, self.gone = PretendCluster(), False
        self.events: list[str] = []

    async def transforms(self, _: Sequence[str]) -> AsyncIterator[dict[str, Any]]:
        if not self.gone:
            yield self.pretend.resource

    async def observe(self, *_: str) -> Observation | None:
        self.pretend.advance()
        return None if self.gone else self.pretend.see()

    async def act(self, _: object, action: Any) -> None:
        self.pretend.carry_out(Decision(actions=(action,)))

    async def write_status(self, _: object, status: dict[str, Any]) -> None:
        self.pretend.resource["status"] = status

    async def record_event(self, _: object, _kind: str, _reason: str, phase: str, _note: str) -> None:
        self.events.append(phase)


def test_a_transform_is_counted_in_its_phase_until_it_is_deleted() -> None:
    cluster, before, ended_before = Watched(), phases(), ended()
    started = value("reshard_transitions_total", phase="Planning")

    async def story() -> None:
        reconciler = Reconciler(cluster, dataclasses.replace(CONFIG, resync_seconds=0.05), lambda: True)
        working = asyncio.create_task(reconciler.run())

        async def until(seen: Callable[[], bool]) -> None:
            for _ in range(2000):
                if seen():
                    return
                await asyncio.sleep(0.01)
            raise AssertionError(phases())

        def get_on() -> bool:
            reconciler.enqueue("ns", "a.transform", 0)
            return phases() == before | {"Complete": before["Complete"] + 1}

        await until(get_on)
        for _ in range(10):  # more looks change nothing
            assert get_on()
            await asyncio.sleep(0.01)
        cluster.gone = True
        await until(lambda: phases() == before)
        working.cancel()

    asyncio.run(story())
    start, end = (datetime.fromisoformat(cluster.pretend.status[name]) for name in ("startTime", "completionTime"))
    assert (seconds := (end - start).total_seconds()) > 0
    assert {name: now - ended_before[name] for name, now in ended().items() if now != ended_before[name]} == {
        "reshard_bytes_needed_total": PLAN["bytesNeeded"],
        "reshard_bytes_distinct_total": PLAN["bytesDistinct"],
        "reshard_bytes_fetched_total": COMMIT["bytesFetched"],
        "reshard_fetch_requests_total": COMMIT["requests"],
        "reshard_bytes_written_total": COMMIT["bytesWritten"],
        "reshard_transform_duration_seconds_count Complete": 1,
        "reshard_transform_duration_seconds_sum Complete": seconds,
        "reshard_rank_duration_seconds_count": 6,
        "reshard_rank_duration_seconds_sum": 9016.5,
        "reshard_rank_duration_seconds_bucket 5.0": 4,
        "reshard_rank_duration_seconds_bucket 3600.0": 4,
        "reshard_rank_duration_seconds_bucket +Inf": 6,
    }
    assert value("reshard_transitions_total", phase="Planning") == started + 1
    assert cluster.events[-1] == "Complete"


def test_delayed_transforms_are_counted_by_reason() -> None:
    cluster, gauge = PretendCluster(others=list(older().jobs.values())), PhaseGauge()
    total, before = phases(), {reason: value("reshard_transforms_waiting", reason=reason) for reason in ("PodsStuck", *WAITING)}

    def held_up() -> dict[str, float]:
        cluster.work()
        gauge.count(("ns", "a.transform"), cluster.status)
        now = {reason: value("reshard_transforms_waiting", reason=reason) - count for reason, count in before.items()}
        return {reason: count for reason, count in now.items() if count}

    assert held_up() == {"TargetBusy": 1}
    assert held_up() == {"TargetBusy": 1}
    cluster.others.clear()
    assert held_up() == {}
    cluster.advance()
    cluster.pods[0]["status"] = {
        "phase": "Pending",
        "containerStatuses": [
            {"name": "reshard", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
        ],
    }
    assert held_up() == {"PodsStuck": 1}
    gauge.count(("ns", "a.transform"), None)
    assert (phases(), list(gauge)) == (total, [])
