"""Unified safetensors by pods: one for each part, and ranks of another layout from the parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from disk import contents
from kubernetes_objects import claim_folder
from transforms_on_cluster import ROOT, without_a_cluster

if TYPE_CHECKING:
    from pathlib import Path

    from transforms_on_cluster import Stage

CORPUS = ROOT / "tests" / "conformance" / "corpus"


def claim(name: str, path: str) -> dict[str, Any]:
    return {"persistentVolumeClaim": {"claimName": name, "path": path}}


UNIFY = {
    "source": {"storage": claim("corpus", "experts/src"), "strategy": {"path": "experts/src_strategy"}},
    "target": {"storage": claim("results", "unified"), "output": "Unified", "maxFileSizeBytes": 1024},
    "verification": "Full",
}
CUT = {
    "source": {"storage": claim("results", "unified")},
    "target": {
        "storage": claim("results", "ranks"),
        "strategy": {"path": "experts/dst_strategy.ckpt", "storage": claim("corpus", "")},
    },
    "verification": "Full",
}
STRAIGHT = {
    "source": UNIFY["source"],
    "target": CUT["target"] | {"storage": claim("results", "straight")},
}


def test_one_pod_for_each_part_and_ranks_of_another_layout_from_them(stage: Stage, tmp_path: Path) -> None:
    claim_folder(stage.api, stage.namespace, "corpus", CORPUS)
    alone = tmp_path / "alone"
    alone.mkdir()
    for spec in (UNIFY, STRAIGHT):
        without_a_cluster(spec, tmp_path, corpus=CORPUS, results=alone)
    parts = contents(alone / "unified", "*.safetensors")
    assert len(parts) > 2

    stage.create("unify", UNIFY)
    status = stage.ended("unify")
    assert (status["progress"], status["plan"]["targetRanks"]) == (f"{len(parts)}/{len(parts)}", len(parts))
    pods = [pod.metadata.annotations["batch.kubernetes.io/job-completion-index"] for pod in stage.pods("ranks")]
    assert sorted(pods, key=int) == [str(part) for part in range(len(parts))]
    assert contents(stage.results / "unified", "*.safetensors") == parts
    assert contents(stage.results / "unified", "param_name_map.json") == contents(alone / "unified", "param_name_map.json")

    stage.create("cut", CUT)
    assert stage.ended("cut")["progress"] == "4/4"
    assert contents(stage.results / "ranks") == contents(alone / "straight")
