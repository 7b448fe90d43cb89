"""The operator goes on when the token of its service account changes, as Kubernetes does with every token."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cluster.certificates import AUTHORITY
from cluster.layout import SERVER
from kubernetes_objects import wait_for
from operator_process import account, operator_process
from pretend_cluster import resource
from pretend_kubelet import PretendKubelet

if TYPE_CHECKING:
    from pathlib import Path

    from cluster.layout import Layout
    from transforms_on_cluster import Transforms

# A mount namespace in which a folder of the host is the one in which pods find their token.
_IN_A_POD = """
set -eu
mount -t tmpfs none /run
mkdir -p /run/secrets/kubernetes.io /var/run/secrets/kubernetes.io
ln -s "$0" /var/run/secrets/kubernetes.io/serviceaccount
exec "$@"
"""


def test_a_token_that_changes(transforms: Transforms, layout: Layout, tmp_path: Path) -> None:
    who = account(transforms.api, layout, transforms.namespace, tmp_path)
    del who.environment["KUBECONFIG"]
    address = urlsplit(SERVER)
    who.environment.update({"KUBERNETES_SERVICE_HOST": str(address.hostname), "KUBERNETES_SERVICE_PORT": str(address.port)})
    folder = tmp_path / "serviceaccount"
    folder.mkdir()
    shutil.copy(f"{layout.certificates / AUTHORITY}.crt", folder / "ca.crt")
    (folder / "namespace").write_text(transforms.namespace)

    def put_token() -> None:
        request = {"spec": {"expirationSeconds": 600}}
        made = transforms.core.create_namespaced_service_account_token(who.name, transforms.namespace, request)
        (folder / "token").write_text(made.status.token)

    put_token()
    within = ["unshare", "--mount", "sh", "-c", _IN_A_POD, str(folder)]
    kubelet = PretendKubelet(transforms.api, transforms.namespace)
    with operator_process(who, tmp_path, within=within), kubelet.running():
        transforms.create("before", resource()["spec"])
        transforms.ended("before")
        # Tokens belong to one account, and not to another of its name.
        known = transforms.core.read_namespaced_service_account(who.name, transforms.namespace)
        transforms.core.delete_namespaced_service_account(who.name, transforms.namespace)
        transforms.core.create_namespaced_service_account(
            transforms.namespace, {"metadata": {"name": who.name, "labels": known.metadata.labels}}
        )
        log = tmp_path / "first.log"
        wait_for(lambda: "Unauthorized" in log.read_text() or "401" in log.read_text())
        put_token()
        spec = resource()["spec"]
        spec["target"]["storage"]["persistentVolumeClaim"]["path"] = "another"
        transforms.create("after", spec)
        transforms.ended("after")
