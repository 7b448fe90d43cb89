"""Tools that apply a resource repeatedly see no difference in any phase; pipelines end when the transform does."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from cluster.layout import program, search_path
from transforms_on_cluster import ROOT

if TYPE_CHECKING:
    from transforms_on_cluster import Stage


@pytest.mark.parametrize("server_side", [[], ["--server-side"]], ids=["client-side", "server-side"])
def test_applying_again_changes_nothing_in_any_phase(stage: Stage, tmp_path: Path, server_side: list[str]) -> None:
    path = tmp_path / "transform.yaml"
    kind = {"apiVersion": "reshard.dev/v1alpha1", "kind": "CheckpointTransform"}

    def write(**spec: object) -> None:
        path.write_text(yaml.safe_dump(kind | {"metadata": {"name": "watched"}, "spec": stage.spec(**spec)}))

    def is_unchanged() -> None:
        before = stage.custom.get_namespaced_custom_object(*stage.where, "watched")["metadata"]["generation"]
        stage.kubectl("diff", *server_side, "--filename", str(path))
        stage.kubectl("apply", *server_side, "--filename", str(path))
        assert stage.custom.get_namespaced_custom_object(*stage.where, "watched")["metadata"]["generation"] == before

    one = {"parallelism": 1, "ranksPerPod": 1}
    write(suspend=True, execution=one)
    stage.kubectl("apply", *server_side, "--filename", str(path))
    stage.wait("watched", lambda s: s.get("phase") == "Suspended")
    is_unchanged()
    write(execution=one)
    stage.kubectl("apply", *server_side, "--filename", str(path))
    for phase in ("Planning", "Resharding", "Complete"):
        stage.wait("watched", lambda s, phase=phase: s.get("phase") == phase)
        is_unchanged()
    write(execution=one | {"attempt": 2})
    stage.kubectl("apply", *server_side, "--filename", str(path))
    stage.wait("watched", lambda s: s.get("attempt") == 2)
    stage.ended("watched")
    is_unchanged()


@pytest.mark.parametrize(
    ("strategy", "code", "said"), [("target.ckpt", 0, "Complete: "), ("none.ckpt", 1, "Failed: StrategyMissing")]
)
def test_the_pipelines_step_ends_with_the_transform(stage: Stage, tmp_path: Path, strategy: str, code: int, said: str) -> None:
    task = yaml.safe_load((ROOT / "examples" / "pipelines" / "tekton-task.yaml").read_text())
    script = task["spec"]["steps"][0]["script"]
    spec = stage.spec()
    spec["target"]["strategy"] |= {"path": strategy}
    resource = {"apiVersion": "reshard.dev/v1alpha1", "kind": "CheckpointTransform", "metadata": {"name": "step"}, "spec": spec}
    access = json.loads(Path(os.environ["KUBECONFIG"]).read_text())
    access["contexts"][0]["context"]["namespace"] = stage.namespace
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(json.dumps(access))
    environment = {"NAME": "step", "MANIFEST": yaml.safe_dump(resource), "TIMEOUT": "2m", "KUBECONFIG": str(kubeconfig)}
    done = subprocess.run(
        [program("sh"), "-c", script],
        env={**os.environ, **environment, "PATH": search_path()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert said in done.stdout
