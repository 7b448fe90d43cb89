"""Checkpoints of PyTorch by pods: to files of Hugging Face in a bucket, and to other numbers of ranks on a claim."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import s3_server
from cluster.layout import NODE_ADDRESS
from kubernetes_objects import claim_folder, wait_for
from local_folder import LocalFolder
from safetensors import deserialize
from torch_checkpoints import digests, objects, write
from torch_files import DATA, sha256_of

from reshard.formats.registry import source_format

if TYPE_CHECKING:
    from pathlib import Path

    from transforms_on_cluster import Stage

RECORDED = DATA / "fsdp2"
RANKS = 6


def bucket(stage: Stage, server: s3_server.Server) -> dict[str, Any]:
    """A new bucket, and a Secret with its keys."""
    stage.secret("keys", {"accessKeyId": server.key.encode(), "secretAccessKey": server.secret.encode()})
    found = {"bucket": server.bucket(), "prefix": "model", "endpoint": server.endpoint, "addressingStyle": "Path"}
    return {"s3": found | {"region": "us-east-1", "credentialsSecretRef": {"name": "keys"}}}


def claim(name: str, path: str = "") -> dict[str, Any]:
    return {"persistentVolumeClaim": {"claimName": name, "path": path}}


def columns(stage: Stage, name: str) -> list[str]:
    """What `kubectl get` shows of a transform, without what depends on time."""
    return stage.kubectl("get", "ckt", name, "--no-headers").split()[:4]


def conditions(stage: Stage, name: str) -> dict[str, tuple[str, str]]:
    return {each["type"]: (each["status"], each["reason"]) for each in stage.status(name)["conditions"]}


def test_from_a_claim_to_files_of_hugging_face_in_a_bucket_and_back(stage: Stage, tmp_path: Path) -> None:
    expected = {name: each["sha256"] for name, each in json.loads((RECORDED / "expected.json").read_text()).items()}
    nbytes = sum(each.shards.lengths.sum() for each in source_format("torch-dcp").read(LocalFolder(RECORDED)).tensors)
    claim_folder(stage.api, stage.namespace, "torch", RECORDED)
    with s3_server.running(tmp_path / "s3", NODE_ADDRESS) as server:
        there = bucket(stage, server)
        target = {"storage": there, "format": "HuggingFace", "maxFileSizeBytes": 1024}
        stage.create("to-bucket", {"source": {"storage": claim("torch")}, "target": target, "verification": "Full"})
        status = stage.ended("to-bucket")
        found = server.download(f"s3://{there['s3']['bucket']}/model", tmp_path / "found")
        files = sorted(path.name for path in found.glob("*.safetensors"))
        held = {
            name: sha256_of(bytes(tensor["data"])) for file in files for name, tensor in deserialize((found / file).read_bytes())
        }
        assert held == expected
        total = len(files)
        assert files == [f"model-{number:05d}-of-{total:05d}.safetensors" for number in range(1, total + 1)]
        assert json.loads((found / "model.safetensors.index.json").read_text())["weight_map"].keys() == expected.keys()

        pods = [pod.metadata.annotations["batch.kubernetes.io/job-completion-index"] for pod in stage.pods("ranks")]
        assert total > 1
        assert sorted(pods, key=int) == [str(rank) for rank in range(total)]
        plan = status["plan"]
        assert [plan[key] for key in ("sourceRanks", "targetRanks", "parameters")] == [4, total, len(expected)]
        assert plan["bytesNeeded"] == plan["bytesDistinct"] == nbytes
        assert any(f"omits {len(objects(RECORDED))} other values: optim.param_groups" in note for note in plan["notes"])
        assert columns(stage, "to-bucket") == ["to-bucket", "Complete", f"{total}/{total}", "100"]
        assert conditions(stage, "to-bucket") == {"Ready": ("True", "Complete"), "Complete": ("True", "Complete")}

        back = {"storage": claim("results", "back"), "format": "TorchDcp", "ranks": RANKS}
        stage.create("back", {"source": {"storage": there}, "target": back, "verification": "Full"})
        plan = stage.ended("back")["plan"]
        assert [plan[key] for key in ("sourceRanks", "targetRanks", "parameters")] == [total, RANKS, len(expected)]
    assert digests(stage.results / "back") == expected
    assert columns(stage, "back") == ["back", "Complete", f"{RANKS}/{RANKS}", "100"]


def test_a_killed_pod_does_not_repeat_finished_ranks(stage: Stage, tmp_path: Path) -> None:
    nbytes = write(tmp_path / "large", 2, 12, rows=1500, columns=1152, others=objects(RECORDED))
    with s3_server.running(tmp_path / "s3", NODE_ADDRESS) as server:
        there = bucket(stage, server)
        server.upload(there["s3"]["bucket"], tmp_path / "large", "model")
        target = {"storage": claim("results", "out"), "format": "TorchDcp", "ranks": RANKS}
        execution = {"parallelism": 1, "ranksPerPod": 1}
        spec = {"source": {"storage": there, "format": "torch-dcp"}, "target": target, "execution": execution}
        stage.create("killed", spec)
        # The pods, because the status may be seconds late, and a rank takes about a second.
        wait_for(lambda: any(pod.status.phase == "Succeeded" for pod in stage.pods("ranks")))
        finished = {path.name: path.stat().st_mtime_ns for path in stage.results.rglob("*.distcp")}
        killed = wait_for(lambda: [each.metadata for each in stage.pods("ranks") if each.status.phase in {"Pending", "Running"}])
        for pod in killed:
            stage.core.delete_namespaced_pod(pod.name, stage.namespace, grace_period_seconds=0)
        plan = stage.ended("killed")["plan"]
    assert [plan[key] for key in ("sourceRanks", "targetRanks", "parameters", "bytesNeeded")] == [2, RANKS, 24, nbytes]
    assert finished.items() <= {path.name: path.stat().st_mtime_ns for path in (stage.results / "out").glob("*.distcp")}.items()
    assert digests(stage.results / "out") == digests(tmp_path / "large")
    assert objects(stage.results / "out") == objects(tmp_path / "large")
    assert columns(stage, "killed") == ["killed", "Complete", f"{RANKS}/{RANKS}", "100"]
    assert conditions(stage, "killed")["Ready"] == ("True", "Complete")
