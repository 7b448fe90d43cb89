"""Scale of the operator, inside the tests' cluster, as `make bench-scale` runs it.

Cases:
    ranks      a transform of many ranks on simulated nodes, and bare Jobs of as many pods, in alternating rounds: one of small
               pods, and one with the same spec as the Job of the transform
    at-once    200 transforms that are created together, on simulated nodes
    history    the operator's memory, descriptors and threads after each 200 of 1,000 finished transforms
    one-node   a transform of 64 real pods on one node, and a bare Job of as many pods
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any

from cluster.images import BASE
from cluster.layout import Layout
from kubernetes import client, config
from kubernetes_objects import indexed_spec, pod_spec, wait_for
from simulated_transforms import all_ended, execution, status_writes, usage
from transforms_on_cluster import Stage, install

from cluster import simulated
from reshard_operator.labels import LABEL_STEP

_PATIENCE = 3600.0
_NODES = 20
_AT_ONCE = 200
_HISTORY = 1000
_REAL_PODS = 64


def show(name: str, value: str) -> None:
    """Print a result at once, because a run can take hours."""
    print(f"{name:70}{value}", flush=True)


def bare_job(stage: Stage, spec: dict[str, Any]) -> float:
    """Run a Job; how many seconds it takes."""
    name = f"bare-{uuid.uuid4().hex[:8]}"
    began = time.monotonic()
    stage.batch.create_namespaced_job(stage.namespace, {"metadata": {"name": name}, "spec": spec})
    wait_for(lambda: stage.batch.read_namespaced_job_status(name, stage.namespace).status.completion_time, _PATIENCE)
    seconds = time.monotonic() - began
    stage.batch.delete_namespaced_job(name, stage.namespace, propagation_policy="Foreground")
    wait_for(lambda: name not in stage.jobs(), _PATIENCE)  # its pods would slow down what follows
    return seconds


def transform(stage: Stage, **spec: object) -> tuple[float, dict[str, Any], dict[str, Any]]:
    """Run a transform; how many seconds it takes, its last status, and the spec of its Job of the ranks."""
    name = f"t-{uuid.uuid4().hex[:8]}"
    began = time.monotonic()
    stage.create(name, stage.spec(name, **spec))
    status = stage.ended(name, seconds=_PATIENCE)
    seconds = time.monotonic() - began
    found = stage.batch.list_namespaced_job(stage.namespace, label_selector=f"{LABEL_STEP}=ranks").items
    job = next(stage.api.sanitize_for_serialization(each.spec) for each in found if each.metadata.name.startswith(name))
    job = {field: value for field, value in job.items() if field not in {"selector", "ttlSecondsAfterFinished"}}
    job["template"]["metadata"] = {"annotations": job["template"]["metadata"]["annotations"]}
    stage.delete(name, "Foreground")
    wait_for(lambda: not stage.custom.list_namespaced_custom_object(*stage.where)["items"], _PATIENCE)
    return seconds, status, job


def ranks(stage: Stage, layout: Layout, count: int, rounds: int) -> None:
    """Compare transforms of many ranks with bare Jobs of as many pods, in alternating rounds."""
    measured: list[tuple[float, float, float]] = []
    most = 0.0
    with simulated.nodes(layout, _NODES) as placement:
        pod = {**pod_spec("localhost/none", ["none"]), **placement}
        for _ in range(rounds):
            bare = bare_job(stage, indexed_spec(count, pod))
            before = len(status_writes(layout, stage.namespace))
            seconds, status, job = transform(stage, execution=execution(placement, count))
            written = [each["requestReceivedTimestamp"] for each in status_writes(layout, stage.namespace)[before:]]
            times = [datetime.fromisoformat(moment).timestamp() for moment in written]
            most = max(most, len(times) / max(5.0, times[-1] - times[0]) * 5)
            measured.append((bare, bare_job(stage, job), seconds))
    bare_seconds, equal_seconds, transform_seconds = (statistics.median(each) for each in zip(*measured, strict=True))
    show(f"a Job of {count:,} simulated pods, median of {rounds}", f"{bare_seconds:.1f} s")
    show("a Job with the spec of that of a transform", f"{equal_seconds:.1f} s")
    show(f"a transform to {count:,} ranks", f"{transform_seconds:.1f} s")
    show("  ratio to the first, median of the rounds", f"{statistics.median(t / b for b, _, t in measured):.2f}")
    show("  ratio to the second", f"{statistics.median(t / b for _, b, t in measured):.2f}")
    show("  status writes in 5 s, at most", f"{most:.1f}")
    show("  last status", f"{len(json.dumps(status)) / 1e3:.1f} kB")
    show("  operator, resident at most", f"{usage().highest_memory / 1e6:.0f} MB")


def batch(stage: Stage, layout: Layout, count: int, number: int) -> list[float]:
    """Run transforms that are created together; how many seconds each takes from its creation to its end."""
    with simulated.nodes(layout, _NODES) as placement:
        for each in range(count):
            name = f"b{number}-{each}"
            stage.create(name, stage.spec(name, execution=execution(placement, 1)))
        wait_for(lambda: all_ended(stage), _PATIENCE)
    items = stage.custom.list_namespaced_custom_object(*stage.where)["items"]
    mine = [item for item in items if item["metadata"]["name"].startswith(f"b{number}-")]
    return [
        (
            datetime.fromisoformat(item["status"]["completionTime"])
            - datetime.fromisoformat(item["metadata"]["creationTimestamp"])
        ).total_seconds()
        for item in mine
    ]


def at_once(stage: Stage, layout: Layout) -> None:
    """Measure transforms that are created together."""
    seconds = batch(stage, layout, _AT_ONCE, 0)
    show(f"{_AT_ONCE} transforms at once: median", f"{statistics.median(seconds):.0f} s")
    show("  from the fastest to the slowest", f"{min(seconds):.0f} to {max(seconds):.0f} s")
    show("  status writes for each", f"{len(status_writes(layout, stage.namespace)) / _AT_ONCE:.1f}")
    show("  operator, resident at most", f"{usage().highest_memory / 1e6:.0f} MB")


def history(stage: Stage, layout: Layout) -> None:
    """Measure the operator while finished transforms accumulate."""
    for number in range(1, _HISTORY // _AT_ONCE + 1):
        batch(stage, layout, _AT_ONCE, number)
        used = usage()
        show(
            f"after {number * _AT_ONCE:,} transforms",
            f"{used.memory / 1e6:.0f} MB, {used.descriptors} descriptors, {used.threads} threads",
        )


def one_node(stage: Stage, rounds: int) -> None:
    """Compare a transform of many real pods on one node with a bare Job of as many pods that only start Python."""
    pod = pod_spec(BASE, ["python3", "-c", "pass"])
    every = {"parallelism": _REAL_PODS, "ranksPerPod": 1}
    measured = [(bare_job(stage, indexed_spec(_REAL_PODS, pod)), transform(stage, execution=every)[0]) for _ in range(rounds)]
    bare, seconds = (statistics.median(each[side] for each in measured) for side in (0, 1))
    show(f"a Job of {_REAL_PODS} pods that start Python, median of {rounds}", f"{bare:.1f} s")
    show(f"a transform to {_REAL_PODS} ranks in as many pods", f"{seconds:.1f} s")


def main() -> None:
    """Measure, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cases = ("ranks", "at-once", "history", "one-node")
    parser.add_argument("cases", nargs="*", choices=cases, default=cases)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1000], help="numbers of ranks. Default: 1000")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each comparison. Default: 3")
    options = parser.parse_args()
    layout = Layout(Path(os.environ["RESHARD_CLUSTER"]))
    install()
    show("processors", str(os.cpu_count()))
    with config.new_client_from_config(str(layout.kubeconfig)) as api, tempfile.TemporaryDirectory() as folder:

        def stage(case: str, **model: int) -> Stage:
            place = Path(folder, case)
            place.mkdir()
            for path in (place.parent, place):
                path.chmod(0o755)
            namespace = f"{case}-{uuid.uuid4().hex[:8]}"
            client.CoreV1Api(api).create_namespace({"metadata": {"name": namespace}})
            return Stage(api, namespace, place, **model)

        for count in options.ranks if "ranks" in options.cases else ():
            ranks(stage(f"ranks-{count}"), layout, count, options.rounds)
        if "at-once" in options.cases:
            at_once(stage("at-once"), layout)
        if "history" in options.cases:
            history(stage("history"), layout)
        if "one-node" in options.cases:
            one_node(stage("one-node", ranks=_REAL_PODS, rows=256, columns=256), options.rounds)


if __name__ == "__main__":
    main()
