"""Checkpoints that the real MindSpore has saved, from `kubectl apply` to the last byte."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from disk import contents
from kubernetes_objects import claim_folder
from transforms_on_cluster import ROOT, without_a_cluster

if TYPE_CHECKING:
    from pathlib import Path

    from transforms_on_cluster import Stage

CORPUS = ROOT / "tests" / "conformance" / "corpus"


def example(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "examples" / f"{name}.yaml").read_text())["spec"]
    return found


def of_corpus(name: str) -> dict[str, Any]:
    """One of the small networks, with a pipeline's strategies as a folder."""
    claim = {"persistentVolumeClaim": {"claimName": "checkpoints"}}
    source = {"persistentVolumeClaim": {"claimName": "checkpoints", "path": f"{name}/src"}}
    target = {"persistentVolumeClaim": {"claimName": "results", "path": name}}
    return {
        "source": {"storage": source, "strategy": {"path": f"{name}/src_strategy"}},
        "target": {"storage": target, "strategy": {"path": f"{name}/dst_strategy.ckpt", "storage": claim}},
        "verification": "Full",
    }


SPECS = {
    "8-to-4-ckpt": (example("retrain-on-4"), 8, 4),
    "8-to-2-safetensors": (example("serve-on-2"), 8, 2),
    "experts-8-to-4": (of_corpus("experts"), 8, 4),
    "pipeline-2x4-to-4": (of_corpus("pipeline"), 8, 4),
}


@pytest.mark.parametrize("name", SPECS)
def test_examples_write_the_bytes_of_a_run_without_a_cluster(stage: Stage, tmp_path: Path, name: str) -> None:
    spec, sources, ranks = SPECS[name]
    claim_folder(stage.api, stage.namespace, "corpus", CORPUS)
    stage.create(name, json.loads(json.dumps(spec).replace('"claimName": "checkpoints"', '"claimName": "corpus"')))
    status = stage.ended(name)

    assert (status["progress"], status["percentage"]) == (f"{ranks}/{ranks}", 100)
    assert (status["plan"]["sourceRanks"], status["plan"]["targetRanks"]) == (sources, ranks)
    if spec.get("execution", {}).get("mode") == "SinglePod":
        assert len(stage.pods("transform")) == 1
    else:  # no two ranks need the same bytes
        pods = [pod.metadata.annotations["batch.kubernetes.io/job-completion-index"] for pod in stage.pods("ranks")]
        assert sorted(pods) == [str(rank) for rank in range(ranks)]
    alone = tmp_path / "alone"
    alone.mkdir()
    without_a_cluster(spec, tmp_path, checkpoints=CORPUS, results=alone)
    folder = spec["target"]["storage"]["persistentVolumeClaim"]["path"]
    assert contents(stage.results / folder) == contents(alone / folder)
    assert len(contents(alone / folder)) == ranks
    assert status["bytesWritten"] == sum(map(len, contents(alone / folder).values()))


def test_strategies_in_a_config_map(stage: Stage) -> None:
    """Next to the resource, as in GitOps folders."""
    made = stage.made
    command = [
        "create",
        "configmap",
        "strategies",
        f"--from-file=src={made.source_strategy}",
        f"--from-file=dst={made.target_strategy}",
    ]
    stage.kubectl(*command)
    spec = stage.spec()
    for side, key in (("source", "src"), ("target", "dst")):
        spec[side]["strategy"] = {"configMapKeyRef": {"name": "strategies", "key": key}}
    stage.create("from-config-map", spec)
    stage.ended("from-config-map")
    assert stage.differences() == []
