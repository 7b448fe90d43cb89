from __future__ import annotations

from typing import TYPE_CHECKING

from kubernetes import client
from kubernetes_objects import indexed_job, pod_spec, wait_for

from cluster import simulated

if TYPE_CHECKING:
    from cluster.layout import Layout


def test_an_indexed_job_of_hundreds_of_pods_completes_on_simulated_nodes(
    layout: Layout, api: client.ApiClient, namespace: str
) -> None:
    batch, core = client.BatchV1Api(api), client.CoreV1Api(api)
    with simulated.nodes(layout, 10) as placement:
        pod = {**pod_spec("localhost/none", ["none"]), **placement}
        batch.create_namespaced_job(namespace, indexed_job("ranks", 200, pod))

        wait_for(lambda: batch.read_namespaced_job("ranks", namespace).status.completion_time, 120)

        assert batch.read_namespaced_job("ranks", namespace).status.completed_indexes == "0-199"
        assert len({pod.spec.node_name for pod in core.list_namespaced_pod(namespace).items}) == 10
    wait_for(lambda: len(core.list_node().items) == 1)
