from __future__ import annotations

import subprocess

import pytest
from cluster.layout import program
from kubernetes_access import api, layout, namespace
from transforms_on_cluster import GROUP, PLURAL, ROOT

__all__ = ["api", "layout", "namespace"]


@pytest.fixture(scope="session")
def crd() -> None:
    """The CRD, applied as users do; from every process of pytest, for a second time changes nothing."""
    apply = [program("kubectl"), "apply", "--server-side", "--filename", str(ROOT / "crds")]
    subprocess.run(apply, check=True, capture_output=True)
    established = [program("kubectl"), "wait", "--for=condition=Established", f"crd/{PLURAL}.{GROUP}", "--timeout=30s"]
    subprocess.run(established, check=True, capture_output=True)
