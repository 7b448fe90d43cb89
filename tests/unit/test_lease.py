"""The metric of the replica that holds the Lease."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from pretend_cluster import CONFIG
from prometheus_client import REGISTRY

from reshard_operator import lease
from reshard_operator.lease import Lease

if TYPE_CHECKING:
    import pytest

    from reshard_operator.cluster import Cluster


class Api:
    """An API server without a Lease, which accepts every Lease."""

    async def get_lease(self, *_: object) -> None:
        return None

    async def put_lease(self, _: str, found: dict[str, Any]) -> dict[str, Any]:
        return found


def test_a_replica_that_cannot_renew_its_lease_does_not_lead(monkeypatch: pytest.MonkeyPatch) -> None:
    """An alert relies on this if the API server cannot be reached."""
    now = [100.0]
    monkeypatch.setattr(lease, "time", SimpleNamespace(monotonic=lambda: now[0]))
    held = Lease(cast("Cluster", Api()), replace(CONFIG, lease="reshard"))

    async def story() -> None:
        running = asyncio.create_task(held.run())
        while not held.held():  # noqa: ASYNC110 - its first round is a few turns of the loop
            await asyncio.sleep(0)
        running.cancel()

    asyncio.run(story())
    found = []
    for now[0] in (101.0, 109.0, 111.0):
        found.append(REGISTRY.get_sample_value("reshard_leading"))
    assert found == [1.0, 1.0, 0.0]
