"""Prometheus metrics. Labels never contain the names of resources, so the number of series is limited."""

from __future__ import annotations

from datetime import datetime
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, Info
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from reshard.spec.messages import RANK_SECONDS_BUCKETS, RankSeconds
from reshard.version import __version__, build
from reshard_operator.status import STUCK, WAITING, Phase, waits_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reshard_operator.objects import Object
    from reshard_operator.observation import Observation

_TRANSFORM_SECONDS_BUCKETS = (5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 28800)

BUILD = Info("reshard_build", "Version and commit of the operator")
RECONCILE_SECONDS = Histogram("reshard_reconcile_duration_seconds", "Duration of a reconciliation")
TRANSFORM_SECONDS = Histogram(
    "reshard_transform_duration_seconds",
    "Duration of a transform from start to end, by final phase",
    ["phase"],
    buckets=_TRANSFORM_SECONDS_BUCKETS,
)
BYTES_NEEDED = Counter("reshard_bytes_needed", "Bytes of sources that the ranks of completed checkpoints require")
BYTES_DISTINCT = Counter("reshard_bytes_distinct", "The same bytes, each counted once for each checkpoint")
BYTES_FETCHED = Counter("reshard_bytes_fetched", "Bytes of sources fetched for completed checkpoints")
FETCH_REQUESTS = Counter("reshard_fetch_requests", "Requests that fetched bytes of sources for completed checkpoints")
RECONCILE_ERRORS = Counter("reshard_reconcile_errors", "Failed reconciliations, which are retried")
STATUS_WRITES = Counter("reshard_status_writes", "Written status updates")
TRANSITIONS = Counter("reshard_transitions", "Phase transitions of transforms", ["phase"])
BYTES_WRITTEN = Counter("reshard_bytes_written", "Bytes of completed checkpoints")
TRANSFORMS = Gauge("reshard_transforms", "Transforms by phase", ["phase"])
TRANSFORMS_WAITING = Gauge("reshard_transforms_waiting", "Transforms that wait for an external condition", ["reason"])
LEADING = Gauge("reshard_leading", "1 if this replica holds the lease, otherwise 0")


class RankDurations(Collector):
    """Histogram of the durations of ranks. Each commit reports the counts of all its ranks."""

    def __init__(self) -> None:
        self._counts = [0] * (len(RANK_SECONDS_BUCKETS) + 1)
        self._sum = 0.0

    def add(self, ranks: RankSeconds) -> None:
        """Add the ranks of a completed checkpoint."""
        self._counts = [known + new for known, new in zip(self._counts, ranks.counts, strict=True)]
        self._sum += ranks.sum

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Yield the histogram."""
        bounds = (*map(str, RANK_SECONDS_BUCKETS), "+Inf")
        yield HistogramMetricFamily(
            "reshard_rank_duration_seconds",
            "Duration of writing and verifying one target rank of a completed checkpoint",
            buckets=list(zip(bounds, accumulate(self._counts), strict=True)),
            sum_value=self._sum,
        )


RANK_SECONDS = RankDurations()
REGISTRY.register(RANK_SECONDS)
BUILD.info({"version": __version__, "commit": build()[0]})

# Start these series at 0, because Prometheus sees no increase in the first value of a new series.
for _phase in Phase:
    TRANSITIONS.labels(_phase)
    TRANSFORMS.labels(_phase)
    if _phase.terminal:
        TRANSFORM_SECONDS.labels(_phase)
for _reason in (STUCK, *sorted(WAITING)):
    TRANSFORMS_WAITING.labels(_reason)


class PhaseGauge:
    """Updates the gauges. Each transform is counted once."""

    def __init__(self) -> None:
        self._gauges: dict[tuple[str, str], tuple[Gauge, ...]] = {}

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Yield the transforms that are counted."""
        return iter(tuple(self._gauges))

    def count(self, key: tuple[str, str], status: Object | None) -> None:
        """Count a transform with this status, or remove it if the status is None."""
        for gauge in self._gauges.pop(key, ()):
            gauge.dec()
        if status is not None:
            reason = waits_for(status)
            self._gauges[key] = (TRANSFORMS.labels(status["phase"]), *([TRANSFORMS_WAITING.labels(reason)] if reason else ()))
            for gauge in self._gauges[key]:
                gauge.inc()


def count_end(seen: Observation, status: Object) -> None:
    """Count a transform that has just ended with this status."""
    seconds = datetime.fromisoformat(status["completionTime"]) - datetime.fromisoformat(status["startTime"])
    TRANSFORM_SECONDS.labels(status["phase"]).observe(seconds.total_seconds())
    if status["phase"] == Phase.COMPLETE:
        if "bytesFetched" in status:
            BYTES_NEEDED.inc(status["plan"]["bytesNeeded"])
            BYTES_DISTINCT.inc(status["plan"]["bytesDistinct"])
            BYTES_FETCHED.inc(status["bytesFetched"])
            FETCH_REQUESTS.inc(status["requests"])
            BYTES_WRITTEN.inc(status["bytesWritten"])
        if (committed := seen.committed()) is not None:
            RANK_SECONDS.add(committed.rank_seconds)
