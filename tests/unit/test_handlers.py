"""How kopf runs the handlers of the operator."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, cast

from pretend_cluster import CONFIG

from reshard_operator.handlers import registry
from reshard_operator.worker import Reconciler

if TYPE_CHECKING:
    from reshard_operator.cluster import Cluster


def test_events_are_handled_in_the_thread_of_the_queue() -> None:
    """Kopf runs only coroutines there."""
    reconciler = Reconciler(cast("Cluster", None), CONFIG, lambda: True)
    found = vars(registry(CONFIG, reconciler, "https://server"))["_watching"].get_all_handlers()
    assert len(found) == 2
    for handler in found:
        assert inspect.iscoroutinefunction(handler.fn)
        asyncio.run(handler.fn(namespace="ns", name="a", annotations={"reshard.dev/transform": "a"}))
