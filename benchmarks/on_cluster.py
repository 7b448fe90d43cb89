"""Overhead of the operator over the Jobs that it runs, and its own usage: inside the tests' cluster, as `make bench` runs it.

Compares a transform of 8 ranks with two bare Jobs of /bin/true, one after the other (1 and 8 pods), and the same transform in one
pod with one bare Job, in alternating rounds; and measures the idle operator. scale.py measures many ranks and many transforms.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.images import BASE
from cluster.layout import Layout
from kubernetes import client, config
from kubernetes_access import requests
from kubernetes_objects import indexed_job, pod_spec, wait_for
from rich.console import Console
from rich.table import Table
from simulated_transforms import usage
from transforms_on_cluster import RELEASE, SYSTEM, Stage, install

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 3
IDLE_SECONDS = 30


def bare_jobs(batch: client.BatchV1Api, namespace: str, pods: tuple[int, ...], pod: dict[str, Any]) -> float:
    """Run Jobs of so many pods, one after the other; how many seconds they take."""
    began = time.monotonic()
    for number in pods:
        name = f"bare-{uuid.uuid4().hex[:8]}"
        batch.create_namespaced_job(namespace, indexed_job(name, number, pod))
        wait_for(lambda name=name: batch.read_namespaced_job_status(name, namespace).status.completion_time, 300)
    return time.monotonic() - began


def transform(stage: Stage, **spec: object) -> float:
    """Run a transform from its creation to Complete; how many seconds it takes."""
    name = f"t-{uuid.uuid4().hex[:8]}"
    began = time.monotonic()
    stage.create(name, stage.spec(name, **spec))
    stage.ended(name, seconds=300)
    return time.monotonic() - began


def writes(layout: Layout) -> list[dict[str, Any]]:
    """Return the operator's writes to the API so far."""
    return requests(layout, SYSTEM, f"{RELEASE}-operator")


def eight_ranks(stage: Stage, table: Table) -> None:
    """Compare the durations of a transform in several pods and in one with those of bare Jobs."""
    pod = pod_spec(BASE, ["/bin/true"])
    cases: dict[str, Callable[[], float]] = {
        "two Jobs of /bin/true, 1 + 8 pods": lambda: bare_jobs(stage.batch, stage.namespace, (1, 8), pod),
        "a transform to 8 ranks, from apply to Complete": lambda: transform(stage),
        "one Job of /bin/true, 1 pod": lambda: bare_jobs(stage.batch, stage.namespace, (1,), pod),
        "the same transform with mode SinglePod": lambda: transform(stage, execution={"mode": "SinglePod"}),
    }
    rounds = [[measure() for measure in cases.values()] for _ in range(ROUNDS + 1)][1:]  # the first only warms up
    for number, name in enumerate(cases):
        table.add_row(name, f"{statistics.median(each[number] for each in rounds):.1f} s")
        if number % 2:
            more = statistics.median(each[number] - each[number - 1] for each in rounds)
            table.add_row("  more, median of the differences in a round", f"{more:.1f} s")


def idle(layout: Layout, table: Table) -> None:
    """Measure the idle operator."""
    time.sleep(10)
    before = len(writes(layout))
    time.sleep(IDLE_SECONDS)
    kinds = {entry["objectRef"]["resource"] for entry in writes(layout)[before:]}
    table.add_row("idle operator, resident", f"{usage().memory / 1e6:.0f} MB")
    table.add_row(f"  written in {IDLE_SECONDS} s", ", ".join(sorted(kinds)) or "nothing")


def main() -> None:
    """Measure, and print a table."""
    layout = Layout(Path(os.environ["RESHARD_CLUSTER"]))
    install()
    with config.new_client_from_config(str(layout.kubeconfig)) as api, tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        place.chmod(0o755)
        client.CoreV1Api(api).create_namespace({"metadata": {"name": "bench"}})
        stage = Stage(api, "bench", place, ranks=8)
        table = Table("on the tests' cluster", "", title=f"{os.cpu_count()} processors")
        idle(layout, table)
        eight_ranks(stage, table)
        Console(width=120).print(table)


if __name__ == "__main__":
    main()
