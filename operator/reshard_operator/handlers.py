"""Kopf handlers that enqueue transforms. They make no decisions and write nothing, so a missed event only delays a transform."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import time
from typing import TYPE_CHECKING, Any

import kopf

from reshard_operator.cluster import GROUP, PAGE, PLURAL, VERSION
from reshard_operator.labels import ANNOTATION_TRANSFORM, LABEL_MANAGED_BY, MANAGED_BY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reshard_operator.config import Config
    from reshard_operator.worker import Reconciler

_MISSED_RESYNCS = 3


class EndlessBackoffs:
    """Delays between attempts to reach the API server. They grow up to 15 s. Kopf starts a new iteration for each request."""

    def __iter__(self) -> Iterator[float]:
        """The delays in seconds."""
        delay = 0.5
        while True:
            yield delay * random.uniform(0.5, 1)
            delay = min(15.0, delay * 2)


def _watches(kind: str, expected: int) -> int:
    """Return the number of kopf tasks that watch a kind. Kopf does not restart a watch that has ended."""
    found = sum(task.get_name().startswith(f"watcher for {kind}.") for task in asyncio.all_tasks())
    if found < expected:
        raise kopf.PermanentError(f"{expected - found} of {expected} watches of {kind} have ended")
    return found


def registry(config: Config, reconciler: Reconciler, server: str) -> kopf.OperatorRegistry:
    """Return the handlers of one operator. `server` is the address of the API server."""
    handlers = kopf.OperatorRegistry()

    @kopf.on.startup(registry=handlers)
    def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.scanning.disabled = True
        settings.posting.enabled = False
        settings.networking.error_backoffs = EndlessBackoffs()
        settings.watching.server_timeout = 300
        settings.watching.chunk_size = PAGE
        settings.watching.label_selectors["jobs.v1.batch"] = f"{LABEL_MANAGED_BY}={MANAGED_BY}"

    @kopf.on.login(registry=handlers)
    def log_in(**known: Any) -> kopf.ConnectionInfo | None:
        account = kopf.login_with_service_account(**known)
        # By its address, like every other client: kopf would use the cluster's DNS, which may not exist, or not yet.
        return dataclasses.replace(account, server=server) if account is not None else kopf.login_with_kubeconfig(**known)

    # Handlers and probes are coroutines, because kopf runs plain functions in threads. The queue is not thread-safe, and a thread
    # has no loop whose tasks could be counted.
    @kopf.on.event(GROUP, VERSION, PLURAL, registry=handlers)
    async def transform_changed(namespace: str | None, name: str, **_: Any) -> None:
        reconciler.enqueue(namespace or "", name)

    @kopf.on.event("batch", "v1", "jobs", registry=handlers)
    async def job_changed(namespace: str | None, annotations: kopf.Annotations, **_: Any) -> None:
        name = annotations.get(ANNOTATION_TRANSFORM)
        if name:
            reconciler.enqueue(namespace or "", name)

    @kopf.on.probe(id="resync", registry=handlers, errors=kopf.ErrorsMode.PERMANENT)
    async def resynced_recently(**_: Any) -> str:
        age = time.monotonic() - reconciler.last_resync
        if age > _MISSED_RESYNCS * config.resync_seconds:
            raise kopf.PermanentError(f"the last resync was {age:.0f} s ago")
        return f"{age:.0f} s ago"

    @kopf.on.probe(id="watches", registry=handlers, errors=kopf.ErrorsMode.PERMANENT)
    async def watches_are_there(**_: Any) -> int:
        return min(_watches(kind, max(1, len(config.namespaces))) for kind in (PLURAL, "jobs"))

    return handlers
