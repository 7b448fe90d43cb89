"""The chart: a real API server accepts the combinations of values, and unknown values are refused."""

from __future__ import annotations

import itertools
import subprocess
from typing import TYPE_CHECKING

import pytest
import yaml
from cluster.layout import program
from operator_process import rendered
from transforms_on_cluster import ROOT

if TYPE_CHECKING:
    from pathlib import Path

CHART = str(ROOT / "helm" / "reshard")
MONITORING = {"ServiceMonitor", "PrometheusRule"}  # kinds of an operator that is not here
SWITCHES = (
    "metrics.enabled",
    "metrics.serviceMonitor.enabled",
    "metrics.prometheusRule.enabled",
    "networkPolicy.enabled",
    "podDisruptionBudget.enabled",
    "crds.keep",
)


def test_helm_lint_has_no_findings() -> None:
    done = subprocess.run([program("helm"), "lint", "--strict", CHART], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("namespaces", [False, True], ids=["everywhere", "namespaced"])
def test_every_combination_of_three_switches_is_accepted(namespace: str, tmp_path: Path, *, namespaces: bool) -> None:
    documents = set()
    # Any three of these six have all eight combinations. A template depends on two switches at most.
    for a, b, c, d in itertools.product((False, True), repeat=4):
        states = (a, b, c, d, a ^ b ^ c, b ^ c ^ d)
        values = [f"{switch}={str(state).lower()}" for switch, state in zip(SWITCHES, states, strict=True)]
        if namespaces:
            values.append(f"watchNamespaces={{{namespace}}}")
        found = [each for each in rendered(*values, namespace=namespace) if each["kind"] not in MONITORING]
        assert ("ClusterRole" in {each["kind"] for each in found}) != namespaces
        documents |= set(map(yaml.safe_dump, found))
    for number, document in enumerate(documents):
        (tmp_path / f"{number}.yaml").write_text(document)
    command = [program("kubectl"), "apply", "--dry-run=server", "--validate=strict", "--filename", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "value",
    [
        "operator.sauce=1",
        "operator.replicas=-1",
        "operator.tolerations[0].sauce=1",
        "operator.resources.requests.memory=much",
        "converter.resources.requests.cpu=-1",
        "operator.podLabels.team=a b",
        "operator.podLabels.app\\.kubernetes\\.io/name=x",
        "converter.image.digest=abc",
        "metrics.port=80",
        "metrics.port=8080",
        "podDisruptionBudget.maxUnavailable=half",
        "networkPolicy.apiServerPorts={0}",
    ],
)
def test_unknown_and_wrong_values_are_refused(value: str) -> None:
    done = subprocess.run([program("helm"), "template", "r", CHART, "--set", value], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert value.split("=", maxsplit=1)[0].rsplit(".", maxsplit=1)[-1] in done.stderr


def test_an_existing_service_account_has_a_name() -> None:
    values = ["serviceAccount.create=false", "serviceAccount.name=mine"]
    arguments = [program("helm"), "template", "r", CHART, "--set"]
    done = subprocess.run([*arguments, values[0]], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "serviceAccount" in done.stderr
    pod = next(d for d in rendered(*values) if d["kind"] == "Deployment")["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "mine"


def test_names_that_are_numbers_remain_text() -> None:
    for each in rendered("podDisruptionBudget.enabled=true", "operator.podLabels.a=b", release="7", namespace="2024"):
        texts = [each["metadata"].get("namespace", ""), *each["metadata"]["labels"].values()]
        assert all(isinstance(text, str) for text in texts), each


def test_values_that_are_removed_have_a_default() -> None:
    values = ["operator.podLabels=null", "converter.resources=null"]
    spec = next(d for d in rendered(*values) if d["kind"] == "Deployment")["spec"]
    variables = {each["name"]: each.get("value") for each in spec["template"]["spec"]["containers"][0]["env"]}
    assert variables["RESHARD_CONVERTER_RESOURCES"] == "{}"


def test_the_ports_of_the_api_server_are_allowed() -> None:
    for values, ports in (([], [443, 6443]), (["networkPolicy.apiServerPorts={8443}"], [8443])):
        (found,) = (d for d in rendered("networkPolicy.enabled=true", *values) if d["kind"] == "NetworkPolicy")
        assert [port["port"] for port in found["spec"]["egress"][0]["ports"]] == [*ports, 53, 53]


def test_values_that_are_left_free_are_accepted() -> None:
    tolerations = "operator.tolerations[0].operator=Exists,operator.tolerations[0].effect=NoSchedule"
    affinity = (
        "operator.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchFields=null"
    )
    resources = "converter.resources.limits.memory=1.5Gi,converter.resources.limits.cpu=2"
    assert rendered(tolerations, affinity, resources, "podDisruptionBudget.maxUnavailable=50%", "global.any=1")


def test_the_dashboard_is_for_grafanas_sidecar() -> None:
    (found,) = (d for d in rendered("metrics.dashboard.enabled=true") if d["kind"] == "ConfigMap")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert found["data"] == {"reshard.json": (ROOT / "helm" / "reshard" / "dashboards" / "reshard.json").read_text()}


def test_an_image_by_digest() -> None:
    digest = "sha256:" + "0" * 64
    deployment = next(d for d in rendered(f"operator.image.digest={digest}") if d["kind"] == "Deployment")
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == f"reshard-operator@{digest}"


def test_the_operators_pod_is_restricted() -> None:
    pod = next(d for d in rendered() if d["kind"] == "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True


def test_the_chart_grants_exactly_the_rights_that_the_operator_uses() -> None:
    """The minimal rights; an additional right must be added here too."""
    rules = next(d for d in rendered() if d["kind"] == "ClusterRole")["rules"]
    assert {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]} == {
        *(("checkpointtransforms", verb) for verb in ("get", "list", "watch")),
        ("checkpointtransforms/status", "patch"),
        ("checkpointtransforms/finalizers", "update"),
        ("configmaps", "create"),
        *(("jobs", verb) for verb in ("get", "list", "watch", "create", "patch", "delete")),
        ("pods", "list"),
        *(("events", verb) for verb in ("list", "create")),
    }
