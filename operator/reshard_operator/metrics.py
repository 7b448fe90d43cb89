"""What is measured, for Prometheus. No label names an object: their number does not grow with the resources."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge, Histogram

from reshard_operator.status import STUCK, WAITING, Phase, waits_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reshard_operator.observation import Object

RECONCILE_SECONDS = Histogram("reshard_reconcile_seconds", "How long one look at a transform takes")
RECONCILE_ERRORS = Counter("reshard_reconcile_errors", "Looks at a transform that failed, and are repeated")
STATUS_WRITES = Counter("reshard_status_writes", "Statuses written")
TRANSITIONS = Counter("reshard_transitions", "Transforms that came into a phase", ["phase"])
BYTES_WRITTEN = Counter("reshard_bytes_written", "Bytes of the checkpoints that were completed")
TRANSFORMS = Gauge("reshard_transforms", "Transforms that there are, by phase", ["phase"])
TRANSFORMS_WAITING = Gauge("reshard_transforms_waiting", "Transforms that something outside holds up", ["reason"])
LEADING = Gauge("reshard_leading", "Whether this replica does the work")

# Series that are there from the start, at 0: Prometheus sees no increase in the first value of one that was not.
for _phase in Phase:
    TRANSITIONS.labels(_phase)
    TRANSFORMS.labels(_phase)
for _reason in (STUCK, *sorted(WAITING)):
    TRANSFORMS_WAITING.labels(_reason)


class Census:
    """Keeps the gauges: each transform counts once, however often it is looked at."""

    def __init__(self) -> None:
        self._gauges: dict[tuple[str, str], tuple[Gauge, ...]] = {}

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Those that are counted."""
        return iter(tuple(self._gauges))

    def count(self, key: tuple[str, str], status: Object | None) -> None:
        """A transform has this status now; None: it is gone."""
        for gauge in self._gauges.pop(key, ()):
            gauge.dec()
        if status is not None:
            reason = waits_for(status)
            self._gauges[key] = (TRANSFORMS.labels(status["phase"]), *([TRANSFORMS_WAITING.labels(reason)] if reason else ()))
            for gauge in self._gauges[key]:
                gauge.inc()
