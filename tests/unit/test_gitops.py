"""Health that GitOps tools derive from the statuses that the operator writes in every phase."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import celpy
import lupa
import pytest
import yaml
from celpy.adapter import json_to_cel
from pretend_cluster import PretendCluster, resource

EXAMPLES = Path(__file__).parents[2] / "examples"
FAILING = {"reason": "Truncated", "message": "rank_3 ends early", "exitCode": 65}


def running() -> PretendCluster:
    cluster = PretendCluster()
    cluster.work()
    return cluster


def settled(cluster: PretendCluster) -> PretendCluster:
    cluster.settle()
    return cluster


def retried() -> PretendCluster:
    """Return a failed transform whose next attempt is requested, which the operator has not seen yet."""
    cluster = settled(PretendCluster(outcome=lambda *_: (65, FAILING)))
    cluster.change(execution={"attempt": 2})
    return cluster


def fresh() -> PretendCluster:
    cluster = PretendCluster()
    cluster.resource["status"] = {"observedGeneration": -1}
    return cluster


PHASES = {
    "fresh": (fresh, "Progressing", "inProgress"),
    "running": (running, "Progressing", "inProgress"),
    "suspended": (lambda: settled(PretendCluster(resource(suspend=True))), "Suspended", "inProgress"),
    "complete": (lambda: settled(PretendCluster()), "Healthy", "current"),
    "failed": (lambda: settled(PretendCluster(outcome=lambda *_: (65, FAILING))), "Degraded", "failed"),
    "tried again": (retried, "Progressing", "inProgress"),
}


@pytest.mark.parametrize("phase", PHASES)
def test_argo_cd_reports_the_health(phase: str) -> None:
    make, health, _ = PHASES[phase]
    text = yaml.safe_load((EXAMPLES / "gitops" / "argocd-cm.yaml").read_text())["data"]
    script = text["resource.customizations.health.reshard.dev_CheckpointTransform"]
    lua = lupa.LuaRuntime()
    judge = lua.eval(f"function(obj) {script} end")
    found = judge(lua.table_from(copy.deepcopy(make().resource), recursive=True))
    assert found["status"] == health
    if health == "Degraded":
        assert found["message"] == FAILING["message"]


@pytest.mark.parametrize("phase", PHASES)
def test_flux_reports_the_health(phase: str) -> None:
    make, _, state = PHASES[phase]
    flux = yaml.safe_load((EXAMPLES / "gitops" / "flux-kustomization.yaml").read_text())
    expressions = flux["spec"]["healthCheckExprs"][0]
    values = {name: json_to_cel(part) for name, part in make().resource.items() if name in {"metadata", "status"}}
    environment = celpy.Environment()
    holds = []
    for name in ("current", "failed", "inProgress"):
        program = environment.program(environment.compile(expressions[name]))
        try:
            outcome: Any = program.evaluate(values)
        except celpy.CELEvalError:  # a field is not there yet: the expression does not hold
            outcome = False
        holds += [name] if outcome else []
    assert holds == [state]


def test_the_pipelines_wait_for_either_end() -> None:
    workflow = yaml.safe_load((EXAMPLES / "pipelines" / "argo-workflow.yaml").read_text())
    step = next(t["resource"] for t in workflow["spec"]["templates"] if "resource" in t)
    assert (step["successCondition"], step["failureCondition"]) == ("status.phase == Complete", "status.phase == Failed")
    task = yaml.safe_load((EXAMPLES / "pipelines" / "tekton-task.yaml").read_text())
    assert ".status.completionTime" in task["spec"]["steps"][0]["script"]
