from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from cluster.layout import program
from kubernetes_access import api, layout, namespace
from kubernetes_objects import wait_for
from transforms_on_cluster import GROUP, PLURAL, ROOT, Transforms

if TYPE_CHECKING:
    from kubernetes import client

__all__ = ["api", "layout", "namespace"]


@pytest.fixture(scope="session")
def crd() -> None:
    """The CRD, applied as users do, from every process of pytest: a second time changes nothing."""
    apply = [program("kubectl"), "apply", "--server-side", "--filename", str(ROOT / "crds")]
    subprocess.run(apply, check=True, capture_output=True)
    established = [program("kubectl"), "wait", "--for=condition=Established", f"crd/{PLURAL}.{GROUP}", "--timeout=30s"]
    # kubectl fails on one that is so new that it has no condition yet.
    wait_for(lambda: subprocess.run(established, check=False, capture_output=True).returncode == 0)


@pytest.fixture
def transforms(api: client.ApiClient, namespace: str, crd: None) -> Transforms:  # noqa: ARG001 - it has to be there
    """The transforms of the test's namespace."""
    return Transforms(api, namespace)
