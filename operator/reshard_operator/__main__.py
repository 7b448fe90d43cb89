"""Run the operator with `python -m reshard_operator`."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

import kopf
from prometheus_client import start_http_server

from reshard.errors import ReshardError
from reshard.telemetry import formatter
from reshard_operator import config as configuration
from reshard_operator.cluster import ApiError, Cluster
from reshard_operator.handlers import registry
from reshard_operator.lease import Lease, LostLeaseError
from reshard_operator.worker import Reconciler

_LOOK_FOR_CRD_SECONDS = 5.0

log = logging.getLogger("reshard_operator")


def main() -> int:
    """Run until a signal ends the process.

    Returns:
        The exit code.
    """
    try:
        config = configuration.load()
    except ReshardError as error:
        print(f"reshard-operator: {error}", file=sys.stderr)  # noqa: T201 - there is no log yet
        return error.exit_code
    _set_up_logging(config)
    if config.metrics_port:
        start_http_server(config.metrics_port, config.address)
    code = 0
    try:
        asyncio.run(_operate(config))
    except* LostLeaseError:
        log.error("another replica has taken over the lease; exiting")  # noqa: TRY400 - a traceback would not help
        code = 1
    return code


async def _operate(config: configuration.Config) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    cluster = await Cluster.connect()
    try:
        await _wait_for_crd(cluster, stop)
        lease = Lease(cluster, config)
        reconciler = Reconciler(cluster, config, lease.held)
        host = f"[{config.address}]" if ":" in config.address else config.address
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(lease.run()), group.create_task(reconciler.run())]
            # kopf takes over the signals, and returns when one has requested its end.
            await kopf.operator(
                registry=registry(config, reconciler, cluster.server),
                clusterwide=not config.namespaces,
                namespaces=config.namespaces,
                liveness_endpoint=f"http://{host}:{config.health_port}/healthz" if config.health_port else None,
                standalone=True,
                identity=config.identity,  # type: ignore[arg-type]  # a str whose own name kopf does not export
                stop_flag=stop,
            )
            for task in tasks:
                task.cancel()
        await lease.release()
    finally:
        await cluster.close()


async def _wait_for_crd(cluster: Cluster, stop: asyncio.Event) -> None:
    """Wait for the CRD. Kopf never watches a CRD that is created after its start."""
    while not stop.is_set():
        try:
            if await cluster.has_resource():
                return
            log.warning("waiting for the CRD checkpointtransforms.reshard.dev to be installed")
        except ApiError as error:
            log.warning("cannot reach the API server: %s", error)
        await asyncio.sleep(_LOOK_FOR_CRD_SECONDS)


def _set_up_logging(config: configuration.Config) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(config.log_format))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    log.setLevel(config.log_level.upper())
    for chatty in ("kopf", "aiohttp.access"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
