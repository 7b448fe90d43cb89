"""Transforms of more ranks than this machine could run, on simulated nodes."""

from __future__ import annotations

import json
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING

from kubernetes import client
from kubernetes_access import written
from kubernetes_objects import indexed_job, pod_spec, wait_for
from pretend_cluster import LAST, PLAN
from transforms_on_cluster import RELEASE, SYSTEM

from cluster import simulated

if TYPE_CHECKING:
    from cluster.layout import Layout
    from transforms_on_cluster import Stage

RANKS = 300


def test_an_indexed_job_of_hundreds_of_pods_completes_on_simulated_nodes(
    layout: Layout, api: client.ApiClient, namespace: str
) -> None:
    batch, core = client.BatchV1Api(api), client.CoreV1Api(api)
    with simulated.nodes(layout, 10) as placement:
        pod = {**pod_spec("localhost/none", ["none"]), **placement}
        batch.create_namespaced_job(namespace, indexed_job("ranks", 200, pod))

        wait_for(lambda: batch.read_namespaced_job("ranks", namespace).status.completion_time)

        assert batch.read_namespaced_job("ranks", namespace).status.completed_indexes == "0-199"
        # How many of the nodes are used is the scheduler's choice: since 1.35 it places equal pods in batches.
        used = {pod.spec.node_name for pod in core.list_namespaced_pod(namespace).items}
        assert used <= {node.metadata.name for node in core.list_node(label_selector="reshard.dev/simulation").items}
    wait_for(lambda: not core.list_node(label_selector="reshard.dev/simulation").items)


def test_hundreds_of_ranks_cost_few_writes(stage: Stage, layout: Layout) -> None:
    messages = simulated.messages(plan=PLAN | {"targetRanks": RANKS}, ranks=LAST)
    with simulated.nodes(layout, 10) as placement:
        template = {"annotations": messages, "nodeSelector": placement["nodeSelector"], "tolerations": placement["tolerations"]}
        stage.create("many", stage.spec(execution={"parallelism": RANKS, "podTemplate": template}))
        status = stage.ended("many")
    assert status["progress"] == f"{RANKS}/{RANKS}"
    assert status["jobs"].keys() == {"plan", "ranks"}
    assert len(json.dumps(status)) < 10_000
    writes = [
        datetime.fromisoformat(entry["requestReceivedTimestamp"])
        for entry in written(layout, SYSTEM, f"{RELEASE}-operator")
        if entry["objectRef"].get("subresource") == "status" and entry["objectRef"]["namespace"] == stage.namespace
    ]
    # Each phase is reported at once, and counts in between at most every five seconds.
    seconds = (writes[-1] - writes[0]).total_seconds()
    assert len(writes) <= 6 + seconds / 5, [str(b - a) for a, b in pairwise(writes)]
