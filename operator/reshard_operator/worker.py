"""Reconcile transforms that may have changed. One worker at a time reconciles a transform, and retries until it succeeds."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from http import HTTPStatus
from typing import TYPE_CHECKING

from reshard_operator import metrics
from reshard_operator.cluster import ApiError, NameTakenError
from reshard_operator.decision import Create
from reshard_operator.observation import is_settled
from reshard_operator.reconcile import reconcile, refused
from reshard_operator.status import event, only_counts_differ
from reshard_operator.workqueue import WorkQueue

if TYPE_CHECKING:
    from collections.abc import Callable

    from reshard_operator.cluster import Cluster
    from reshard_operator.config import Config
    from reshard_operator.decision import Decision
    from reshard_operator.objects import Object
    from reshard_operator.observation import Observation

Key = tuple[str, str]

_WORKERS = 8
# Events come in bursts. The first causes a reconcile at once, and those until at least this time after its end cause another.
_SETTLE_SECONDS = 0.2
# Transforms are looked at without an event at most this often, all together: 10 of them every 0.5 s, or 200 every 10 s.
_MOST_REQUEUES_PER_SECOND = 20.0
_COUNTS_EVERY_SECONDS = 5.0
_LOOK_FOR_LEASE_SECONDS = 0.5
_FIRST_RETRY_SECONDS = 0.5
_LONGEST_RETRY_SECONDS = 60.0

log = logging.getLogger(__name__)


def requeue_delay(wanted: float, transforms: int) -> float:
    """Return the seconds until a transform is looked at again, if this many transforms are looked at without events."""
    return max(wanted, transforms / _MOST_REQUEUES_PER_SECOND)


class Reconciler:
    """Reconciles the transforms that are enqueued."""

    def __init__(self, cluster: Cluster, config: Config, may_write: Callable[[], bool]) -> None:
        self._cluster = cluster
        self._config = config
        self._may_write = may_write
        self._queue: WorkQueue[Key] = WorkQueue()
        self._failures: dict[Key, int] = {}
        self._requeued: set[Key] = set()  # transforms that are to be looked at again without an event
        self._counted: dict[Key, float] = {}
        self._resting: set[Key] = set()
        self._ignored = False  # whether this replica did not hold the Lease when a transform was to be enqueued
        self._phases = metrics.PhaseGauge()
        self._changed = asyncio.Event()
        self.last_resync = time.monotonic()

    def enqueue(self, namespace: str, name: str, after: float = 0.0) -> None:
        """Enqueue a transform. A replica without the Lease ignores it, and lists all transforms once it holds the Lease."""
        if not self._may_write():
            self._ignored = True
            return
        self._queue.add((namespace, name), time.monotonic() + after)
        self._changed.set()

    def rests(self, resource: Object) -> bool:
        """Return whether a transform has ended, and nothing was left to do when it was last looked at."""
        return (resource["metadata"]["namespace"], resource["metadata"]["name"]) in self._resting and is_settled(resource)

    async def run(self) -> None:
        """Run the workers and the resync until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(_WORKERS):
                group.create_task(self._work())
            group.create_task(self._resync())

    async def _resync(self) -> None:
        """Enqueue every transform when this replica gets the Lease, and periodically, in case a watch missed a change."""
        due = 0.0
        while True:
            if not self._may_write():
                self.last_resync, due = time.monotonic(), 0.0
            elif self._ignored or time.monotonic() >= due:
                self._ignored = False
                try:
                    await self._enqueue_all()
                    due = self.last_resync + self._config.resync_seconds
                except ApiError as error:
                    log.warning("resync failed: %s", error)
                    due = time.monotonic() + random.uniform(1, 5)
            await asyncio.sleep(_LOOK_FOR_LEASE_SECONDS)

    async def _enqueue_all(self) -> None:
        gone = {*self._phases}
        async for resource in self._cluster.transforms(self._config.namespaces):
            namespace, name = resource["metadata"]["namespace"], resource["metadata"]["name"]
            if not self.rests(resource):
                self.enqueue(namespace, name, random.uniform(0, 1))
            gone.discard((namespace, name))
        for namespace, name in gone:  # no watch has reported their deletion
            self.enqueue(namespace, name, random.uniform(0, 1))
        self.last_resync = time.monotonic()

    async def _work(self) -> None:
        while True:
            key = await self._next()
            started, settle = time.monotonic(), _SETTLE_SECONDS
            try:
                with metrics.RECONCILE_SECONDS.time():
                    again, wanted = await self._reconcile(*key)
                settle = max(settle, wanted)
                self._failures.pop(key, None)
                self._requeue_after(key, again)
            except ApiError as error:
                metrics.RECONCILE_ERRORS.inc()
                self._retry(key, quiet=error.status == HTTPStatus.CONFLICT, error=error)
            except Exception as error:
                metrics.RECONCILE_ERRORS.inc()
                log.exception("reconcile failed", extra={"transform": "/".join(key)})
                self._retry(key, quiet=True, error=error)
            finally:
                # Slow reconciles of one transform occupy a worker at most half of the time.
                pause = max(settle, time.monotonic() - started)
                asyncio.get_running_loop().call_later(pause, self._free, key)

    def _free(self, key: Key) -> None:
        """Allow the next reconcile of a transform."""
        self._queue.done(key)
        self._changed.set()

    def _requeue_after(self, key: Key, after: float | None) -> None:
        """Enqueue a transform after at least this many seconds, or never."""
        if after is None:
            self._requeued.discard(key)
            return
        self._requeued.add(key)
        self.enqueue(*key, requeue_delay(after, len(self._requeued)))

    def _retry(self, key: Key, *, quiet: bool, error: Exception) -> None:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay = min(_LONGEST_RETRY_SECONDS, _FIRST_RETRY_SECONDS * 2 ** min(failures, 10)) * random.uniform(0.5, 1)
        if not quiet:
            log.warning("reconcile failed, retrying in %.1f s: %s", delay, error, extra={"transform": "/".join(key)})
        self.enqueue(*key, delay)

    async def _next(self) -> Key:
        """Return the next transform that is due and that no worker processes."""
        while True:
            self._changed.clear()
            now, wait = time.monotonic(), 1.0
            if self._may_write():
                if (key := self._queue.pop(now)) is not None:
                    return key
                if (due := self._queue.next_due()) is not None:
                    wait = due - now
            try:
                await asyncio.wait_for(self._changed.wait(), wait)
            except TimeoutError:
                continue

    async def _reconcile(self, namespace: str, name: str) -> tuple[float | None, float]:
        """Reconcile a transform.

        Returns:
            The seconds until the next reconciliation, unless an event occurs earlier, and the least number of them.
        """
        self._resting.discard((namespace, name))
        seen = await self._cluster.observe(namespace, name)
        if seen is None:
            self._phases.count((namespace, name), None)
            self._counted.pop((namespace, name), None)
            return None, 0.0
        decision = reconcile(seen, self._config)
        for action in decision.actions:
            if not self._may_write():
                return 1.0, 0.0
            try:
                await self._cluster.act(seen.transform, action)
                log.info("%s", type(action).__name__, extra={"transform": f"{namespace}/{name}", "object": action.name})
            except NameTakenError as error:
                decision = refused(seen, decision, "NameTaken", str(error), for_good=False)
                break
            except ApiError as error:
                if not isinstance(action, Create) or not error.refuses:
                    raise
                decision = refused(
                    seen, decision, "InvalidPod" if error.invalid else "JobDenied", str(error), for_good=error.invalid
                )
                break
        after = await self._set_status(seen, decision)
        if not decision.actions and after is None and seen.transform.ended:
            self._resting.add((namespace, name))
        return after, decision.settle_seconds

    async def _set_status(self, seen: Observation, decision: Decision) -> float | None:
        transform, status = seen.transform, decision.status
        key = (transform.namespace, transform.name)
        if (known := status or transform.status).get("phase"):
            self._phases.count(key, known)
        if status is None or status == transform.status:
            return decision.requeue_after_seconds
        if only_counts_differ(transform.status, status):
            wait = self._counted.get(key, 0.0) + _COUNTS_EVERY_SECONDS - time.monotonic()
            if wait > 0:
                return wait
        if not self._may_write():
            return 1.0
        await self._cluster.write_status(transform, status)
        self._counted[key] = time.monotonic()
        metrics.STATUS_WRITES.inc()
        await self._announce(seen, status)
        return decision.requeue_after_seconds

    async def _announce(self, seen: Observation, status: Object) -> None:
        """Record an Event for each new phase and each new reason."""
        transform = seen.transform
        ready, before = status["conditions"][0], (transform.status.get("conditions") or [{}])[0]
        if (status["phase"], ready["reason"]) == (transform.status.get("phase"), before.get("reason")):
            return
        if status["phase"] != transform.status.get("phase"):
            metrics.TRANSITIONS.labels(status["phase"]).inc()
            if "completionTime" in status:
                metrics.count_end(seen, status)
        kind, note = event(status)
        log.info(
            "%s: %s: %s",
            status["phase"],
            ready["reason"],
            ready["message"],
            extra={"transform": f"{transform.namespace}/{transform.name}"},
        )
        try:
            await self._cluster.record_event(transform, kind, ready["reason"], status["phase"], note)
        except ApiError as error:  # the status already reports it
            log.warning("recording an Event failed: %s", error)
