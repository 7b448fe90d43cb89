"""Fixtures for the tests that run inside a cluster: the client, and a namespace for every test."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cluster.layout import Layout
from kubernetes import client, config

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def layout() -> Layout:
    """The cluster that the tests run in; never one from the machine's KUBECONFIG."""
    if "RESHARD_CLUSTER" not in os.environ:
        pytest.exit("these tests run inside a cluster: use make test TIER=apiserver or TIER=cluster", returncode=2)
    return Layout(Path(os.environ["RESHARD_CLUSTER"]))


@pytest.fixture(scope="session")
def api(layout: Layout) -> Iterator[client.ApiClient]:
    """The administrator's client."""
    with config.new_client_from_config(str(layout.kubeconfig)) as opened:
        yield opened


def requests(layout: Layout, namespace: str, account: str) -> list[dict[str, Any]]:
    """Return the requests of a service account to the API so far, as entries of the audit log.

    Requests that only read are logged for the accounts of tests, but not for the operator of the chart.
    """
    entries = map(json.loads, layout.audit_log.read_text().rpartition("\n")[0].splitlines())  # the last line may be incomplete
    return [entry for entry in entries if entry["user"]["username"] == f"system:serviceaccount:{namespace}:{account}"]


@pytest.fixture
def namespace(api: client.ApiClient) -> Iterator[str]:
    """A namespace where only restricted pods may run, as strict users have them."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    core = client.CoreV1Api(api)
    core.create_namespace({"metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}})
    yield name
    core.delete_namespace(name)
