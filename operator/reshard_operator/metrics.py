"""What is measured, for Prometheus. No label names an object: their number does not grow with the resources."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

RECONCILE_SECONDS = Histogram("reshard_reconcile_seconds", "How long one look at a transform takes")
RECONCILE_ERRORS = Counter("reshard_reconcile_errors", "Looks at a transform that failed, and are repeated")
STATUS_WRITES = Counter("reshard_status_writes", "Statuses written")
TRANSITIONS = Counter("reshard_transitions", "Transforms that came into a phase", ["phase"])
LEADING = Gauge("reshard_leading", "Whether this replica does the work")
