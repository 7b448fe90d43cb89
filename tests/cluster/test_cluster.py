from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

from cluster.images import BASE
from cluster.layout import API_SERVICE, NODE, program
from kubernetes import client
from kubernetes_objects import USER, claim_folder, indexed_job, pod_spec, wait_for

from cluster import simulated

if TYPE_CHECKING:
    from pathlib import Path

ASK_THE_API = f"""
import json, ssl, urllib.request
authority = ssl.create_default_context(cafile="/var/run/secrets/kubernetes.io/serviceaccount/ca.crt")
print(json.load(urllib.request.urlopen("https://{API_SERVICE}/version", context=authority))["gitVersion"])
"""

WRITE_THE_INDEX = """
import os, pathlib
index = os.environ["JOB_COMPLETION_INDEX"]
pathlib.Path("/data", index).write_text(f"{index} of {os.getuid()}")
"""


def test_the_node_is_ready(api: client.ApiClient) -> None:
    conditions = client.CoreV1Api(api).read_node(NODE).status.conditions

    assert {condition.type: condition.status for condition in conditions}["Ready"] == "True"


def test_an_indexed_job_of_restricted_pods_writes_into_a_claim(api: client.ApiClient, namespace: str, tmp_path: Path) -> None:
    folder = tmp_path / "volume"
    folder.mkdir()
    folder.chmod(0o777)
    claim_folder(api, namespace, "checkpoints", folder)
    batch = client.BatchV1Api(api)

    pod = pod_spec(BASE, ["python3", "-c", WRITE_THE_INDEX], {"checkpoints": "/data"})
    batch.create_namespaced_job(namespace, indexed_job("ranks", 8, pod))

    wait_for(lambda: batch.read_namespaced_job("ranks", namespace).status.completion_time)
    assert batch.read_namespaced_job("ranks", namespace).status.completed_indexes == "0-7"
    assert sorted(path.read_text() for path in folder.iterdir()) == [f"{index} of {USER}" for index in range(8)]


def test_a_pod_reaches_the_api_at_its_service_s_address(api: client.ApiClient, namespace: str) -> None:
    core = client.CoreV1Api(api)
    core.create_namespaced_pod(namespace, {"metadata": {"name": "asks"}, "spec": pod_spec(BASE, ["python3", "-c", ASK_THE_API])})

    wait_for(lambda: core.read_namespaced_pod("asks", namespace).status.phase in {"Succeeded", "Failed"})

    client_version = subprocess.run([program("kubectl"), "version", "--client", "-o", "json"], capture_output=True, check=True)
    assert json.loads(client_version.stdout)["clientVersion"]["gitVersion"] in core.read_namespaced_pod_log("asks", namespace)


def test_kubectl_works() -> None:
    real = ("--selector", f"!{simulated.LABEL}")  # other tests simulate nodes meanwhile
    nodes = subprocess.run([program("kubectl"), "get", "nodes", *real, "-o", "json"], capture_output=True, check=True)

    assert [node["metadata"]["name"] for node in json.loads(nodes.stdout)["items"]] == [NODE]
