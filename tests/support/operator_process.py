"""The operator as a process of its own on the test cluster's API, with exactly the rights that the chart gives it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml
from cluster.certificates import AUTHORITY
from cluster.layout import SERVER, program
from kubernetes import client, utils
from transforms_on_cluster import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from cluster.layout import Layout

_RIGHTS = {"ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}


def rendered(*values: str, release: str = "r", namespace: str = "default") -> list[dict[str, Any]]:
    """Render the chart with values."""
    command = [program("helm"), "template", release, str(ROOT / "helm" / "reshard"), "--namespace", namespace]
    done = subprocess.run(
        [*command, *(part for v in values for part in ("--set", v))], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [found for found in yaml.safe_load_all(done.stdout) if found]


@dataclass(frozen=True)
class Account:
    """A service account with the chart's rights, or with less.

    Attributes:
        environment: of an operator that has it.
        rights: what it may do, as (resource, verb).
    """

    name: str
    environment: dict[str, str]
    rights: frozenset[tuple[str, str]]


def account(
    api: client.ApiClient, layout: Layout, namespace: str, folder: Path, without: tuple[str, str] | None = None
) -> Account:
    """Give the chart's rights in one namespace to a new service account, but for one (resource, verb)."""
    documents = rendered(f"watchNamespaces={{{namespace}}}", namespace=namespace)
    found = [document for document in documents if document["kind"] in _RIGHTS]
    taken = 0
    rules = [rule for document in found for rule in document.get("rules", ())]
    for rule in rules:
        if without is not None and without[0] in rule["resources"] and without[1] in rule["verbs"]:
            rule["verbs"].remove(without[1])
            taken += 1
    assert taken == (without is not None)
    rights = frozenset((resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"])
    for document in found:
        document["rules"] = [rule for rule in document.get("rules", ()) if rule["verbs"]]
        utils.create_from_dict(api, {key: value for key, value in document.items() if key != "rules" or value})
    name = next(document["metadata"]["name"] for document in found if document["kind"] == "ServiceAccount")
    core = client.CoreV1Api(api)
    token = core.create_namespaced_service_account_token(name, namespace, {"spec": {"expirationSeconds": 3600}}).status.token
    path = folder / "operator.kubeconfig"
    cluster = {"server": SERVER, "certificate-authority": f"{layout.certificates / AUTHORITY}.crt"}
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": namespace}}],
        "current-context": "x",
    }
    path.write_text(json.dumps(kubeconfig))
    environment = {
        "KUBECONFIG": str(path),
        "POD_NAMESPACE": namespace,
        "RESHARD_NAMESPACES": namespace,
        "RESHARD_LEASE": "r-operator",
        "RESHARD_CONVERTER_IMAGE": "localhost/none",
        "RESHARD_RESYNC_SECONDS": "3600",  # so that only changes that watches report are seen
        "RESHARD_LOG_FORMAT": "text",
    }
    return Account(name, environment, rights)


@contextmanager
def operator_process(
    account: Account, folder: Path, identity: str = "first", within: Sequence[str] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Run an operator, killed at the end of the context; its log is in a file named after its identity.

    `within` is the command that runs the operator's.
    """
    environment = {**os.environ, **account.environment, "POD_NAME": identity, "PYTHONPATH": ""}
    with (folder / f"{identity}.log").open("wb") as log:
        command = [*within, sys.executable, "-m", "reshard_operator"]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()
