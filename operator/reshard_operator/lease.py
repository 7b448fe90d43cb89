"""Leader election: only the replica that holds the Lease reconciles.

Leader election only avoids duplicate work. Deterministic names, preconditions and resource versions make writes safe.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING

from reshard_operator import metrics
from reshard_operator.cluster import ApiError

if TYPE_CHECKING:
    from reshard_operator.cluster import Cluster
    from reshard_operator.config import Config
    from reshard_operator.objects import Object

DURATION_SECONDS = 15
_RENEW_SECONDS = 5.0
# Writing stops well before others may take over.
_SURELY_HELD_SECONDS = 10.0

log = logging.getLogger(__name__)


class LostLeaseError(Exception):
    """Another replica holds the Lease. The process exits, so that no partial work continues."""


class Lease:
    """The Lease that replicas compete for. Without a name in the configuration, this replica always holds it."""

    def __init__(self, cluster: Cluster, config: Config) -> None:
        self._cluster, self._config = cluster, config
        self._held_since: float | None = None
        self._renewed = 0.0
        # Another holder's last renewal, and the time when this replica observed it: clocks of others are not trusted.
        self._other: tuple[str, str] | None = None
        self._other_seen = 0.0

    def held(self) -> bool:
        """Return whether this replica may write."""
        return not self._config.lease or (
            self._held_since is not None and time.monotonic() - self._renewed < _SURELY_HELD_SECONDS
        )

    async def run(self) -> None:
        """Acquire the Lease and renew it.

        Raises:
            LostLeaseError: another replica has taken over the Lease.
        """
        metrics.LEADING.set_function(lambda: float(self.held()))
        while self._config.lease:
            try:
                await self._round()
            except ApiError as error:
                log.warning("renewing the lease failed: %s", error)  # nothing is written until it is held, as `held` ensures
            await asyncio.sleep(_RENEW_SECONDS if self._held_since is not None else random.uniform(1, 3))

    async def release(self) -> None:
        """Release the Lease on a normal exit, so that the next replica does not have to wait until it expires."""
        if not self._config.lease or self._held_since is None:
            return
        self._held_since = None
        try:
            lease = await self._cluster.get_lease(self._config.own_namespace, self._config.lease)
            if lease is not None and (lease.get("spec") or {}).get("holderIdentity") == self._config.identity:
                nobody = lease["spec"] | {"holderIdentity": ""}
                await self._cluster.put_lease(self._config.own_namespace, lease | {"spec": nobody})
        except ApiError as error:
            log.warning("releasing the lease failed; it will expire: %s", error)

    async def _round(self) -> None:
        began = time.monotonic()
        lease = await self._cluster.get_lease(self._config.own_namespace, self._config.lease)
        if lease is None:
            await self._take(self._new({}), began)
            return
        spec = lease.get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        if holder == self._config.identity:
            await self._take(lease | {"spec": spec | {"renewTime": _now()}}, began)
            return
        if self._held_since is not None:
            raise LostLeaseError(holder)
        sign = (holder, str(spec.get("renewTime")))
        if sign != self._other:
            self._other, self._other_seen = sign, began
        if not holder or began - self._other_seen > DURATION_SECONDS:
            await self._take(lease | {"spec": self._new(spec)["spec"]}, began)

    async def _take(self, lease: Object, began: float) -> None:
        try:
            await self._cluster.put_lease(self._config.own_namespace, lease)
        except ApiError as error:
            if error.status != HTTPStatus.CONFLICT:
                raise
            return  # another replica was quicker; the next round shows which
        if self._held_since is None:
            log.info("this replica holds the lease")
            self._held_since = began
        self._renewed = began

    def _new(self, last: Object) -> Object:
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._config.lease, "namespace": self._config.own_namespace},
            "spec": {
                "holderIdentity": self._config.identity,
                "leaseDurationSeconds": DURATION_SECONDS,
                "acquireTime": _now(),
                "renewTime": _now(),
                "leaseTransitions": int(last.get("leaseTransitions") or 0) + (1 if last else 0),
            },
        }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
