"""Training whose pods fetch their own slices at their start: the unchanged example, with and without the operator's index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import disk
import pytest
import yaml
from kubernetes_objects import claim_folder, wait_for
from rawfiles import read, same
from transforms_on_cluster import ROOT, Stage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

EXAMPLE = ROOT / "examples" / "online-load"
RANKS = 4


@pytest.fixture
def training(stage: Stage, tmp_path: Path) -> Callable[..., dict[int, Path]]:
    """Runs the example's Job on a checkpoint that becomes one of 4 ranks; gives the folder that each pod has fetched to."""
    disk.write(_folder(stage.source / "example"), disk.example(ranks=RANKS))
    for path in (stage.source / "example").rglob("*"):
        path.chmod(0o777 if path.is_dir() else 0o644)
    fetched = _folder(tmp_path / "fetched")
    claim_folder(stage.api, stage.namespace, "fetched", fetched)

    def run(*options: str) -> dict[int, Path]:
        job: dict[str, Any] = yaml.safe_load((EXAMPLE / "training.yaml").read_text())
        pod = job["spec"]["template"]["spec"]
        for container in (*pod["initContainers"], *pod["containers"]):
            container |= {"image": "localhost/reshard-converter:tests", "imagePullPolicy": "Never"}
            # To be looked at afterwards; of each pod a folder of its own, as an emptyDir is.
            mount = next(mount for mount in container["volumeMounts"] if mount["name"] == "model")
            mount["subPathExpr"] = "$(JOB_COMPLETION_INDEX)"
        init = pod["initContainers"][0]
        init["args"] = [_here(argument) for argument in init["args"] if not (options and "-strategy=" in argument)]
        init["args"] += options
        init["resources"] = {"requests": {"cpu": "20m"}}
        pod["volumes"][1] = {"name": "model", "persistentVolumeClaim": {"claimName": "fetched"}}
        if options:
            pod["volumes"].append({"name": "results", "persistentVolumeClaim": {"claimName": "results", "readOnly": True}})
            init["volumeMounts"].append({"name": "results", "mountPath": "/results", "readOnly": True})
        for number in range(RANKS):
            _folder(fetched / str(number))
        stage.batch.create_namespaced_job(stage.namespace, job)
        name = job["metadata"]["name"]
        status = wait_for(lambda: _ended(stage.batch.read_namespaced_job(name, stage.namespace).status))
        assert status.succeeded == RANKS, stage.kubectl("logs", f"job/{name}", "--all-containers")
        return {number: fetched / str(number) for number in range(RANKS)}

    return run


def _folder(path: Path) -> Path:
    path.mkdir()
    path.chmod(0o777)
    return path


def _here(argument: str) -> str:
    """The example's places, in this checkpoint."""
    names = {"src_checkpoints": "src", "src_strategy.ckpt": "source.ckpt", "dst_strategy_4.ckpt": "target.ckpt"}
    option, separator, place = argument.partition("=/checkpoints/")
    return f"{option}{separator}example/{names[place]}" if separator else argument


def _ended(status: Any) -> Any:
    return status if any(c.type in {"Complete", "Failed"} for c in status.conditions or ()) else None


def check(folders: dict[int, Path]) -> None:
    """Each pod has the slices of its rank, and nothing else."""
    model = disk.example(ranks=RANKS)
    for rank, folder in folders.items():
        assert [path.name for path in folder.glob("rank_*")] == [f"rank_{rank}"]
        assert same(read("ckpt", (folder / f"rank_{rank}" / f"checkpoint_{rank}.ckpt").read_bytes()), model.target(rank))


def test_pods_fetch_their_own_slices(training: Callable[..., dict[int, Path]]) -> None:
    check(training())


def test_pods_fetch_by_an_index(stage: Stage, training: Callable[..., dict[int, Path]]) -> None:
    spec = yaml.safe_load((EXAMPLE / "index.yaml").read_text())["spec"]
    spec["source"]["storage"]["persistentVolumeClaim"]["path"] = "example/src"
    spec["source"]["strategy"]["path"] = "example/source.ckpt"
    spec["target"]["strategy"]["path"] = "example/target.ckpt"
    stage.create("index-for-4", spec)
    status = stage.ended("index-for-4")
    assert (status["progress"], status["plan"]["targetRanks"]) == ("0/0", RANKS)
    assert sorted(path.name for path in (stage.results / "index_for_4").glob("*.json")) == [
        "reshard-index.json",
        "reshard-manifest.json",
    ]
    assert stage.pods("ranks") == []
    check(training("--index=/results/index_for_4"))
