"""Checkpoints of PyTorch from a bucket to a bucket: in every format, with few requests, after an end at any moment."""

from __future__ import annotations

import json
import signal
import threading
from typing import TYPE_CHECKING, Any

import fault_proxy
import pytest
import rawfiles
import torch_checkpoints
from interrupted import ended_by
from local_folder import LocalFolder, content_of
from torch_files import DATA, sha256_of

from reshard.cli import main
from reshard.formats.registry import detect
from reshard.storage.s3 import client

if TYPE_CHECKING:
    from pathlib import Path

    import s3_server

RECORDED = DATA / "fsdp2"


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of each whole tensor of a target."""
    files = [path for path in folder.rglob("*") if path.suffix in {".ckpt", ".safetensors"}]
    found = detect([path.name for path in folder.iterdir()])
    if found is not None:
        checkpoint = found.read(LocalFolder(folder))
        return {each.name: sha256_of(content_of(folder, checkpoint, each)) for each in checkpoint.tensors}
    held: dict[str, str] = {}
    for path in files:
        arrays = rawfiles.read(path.suffix[1:], path.read_bytes())
        held |= {name: sha256_of(array.tobytes()) for name, array in arrays.items()}
    return held


def written(server: s3_server.Server, bucket: str, prefix: str) -> dict[str, Any]:
    """The times of the objects at a prefix."""
    listed = server.client().list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/").get("Contents", ())
    return {each["Key"]: (each["ETag"], each["LastModified"]) for each in listed}


@pytest.mark.parametrize(
    ("options", "objects"),
    [
        (["--format", "huggingface", "--max-file-size-bytes", "1024"], False),
        (["--format", "torch-dcp", "--target-ranks", "3"], True),
        (["--format", "torch-safetensors", "--target-ranks", "3"], False),
        (["--format", "safetensors"], False),
        (["--format", "ckpt"], False),
    ],
    ids=lambda value: value[1] if isinstance(value, list) else "",
)
def test_every_format_holds_what_torch_saved(
    server: s3_server.Server, bucket: str, tmp_path: Path, options: list[str], objects: bool
) -> None:
    expected = {name: each["sha256"] for name, each in json.loads((RECORDED / "expected.json").read_text()).items()}
    source, target = server.upload(bucket, RECORDED, "in"), f"s3://{bucket}/out"
    command = ["transform", "--source", source, "--target", target, *options, "--verification", "full"]
    assert main(command) == 0
    found = server.download(target, tmp_path / "found")
    assert digests(found) == expected
    manifest = json.loads((found / "reshard-manifest.json").read_text())
    others = torch_checkpoints.objects(RECORDED)
    if objects:
        assert torch_checkpoints.objects(found) == others
    else:
        assert set(manifest["objects"]) == others.keys()
    before = written(server, bucket, "out")
    assert main(command) == 0
    assert written(server, bucket, "out") == before
    assert server.uploads(bucket) == []


@pytest.mark.parametrize("output", ["torch-dcp", "huggingface"])
def test_a_killed_run_is_resumed(server: s3_server.Server, bucket: str, tmp_path: Path, output: str) -> None:
    torch_checkpoints.write(tmp_path / "large", 2, 6, rows=3000, columns=1152, others=torch_checkpoints.objects(RECORDED))
    source, target = server.upload(bucket, tmp_path / "large", "in"), f"s3://{bucket}/out"
    command = ["transform", "--source", source, "--target", target, "--format", output]
    command += ["--target-ranks", "3"] if output == "torch-dcp" else []
    code, said = ended_by(signal.SIGKILL, server, command)
    assert code == -signal.SIGKILL, said
    assert not any("manifest" in key for key in written(server, bucket, "out"))
    assert main(command) == 0
    assert digests(server.download(target, tmp_path / "out")) == torch_checkpoints.digests(tmp_path / "large")
    assert server.uploads(bucket) == []


def test_an_object_that_changes_after_the_metadata_was_read_is_refused(
    server: s3_server.Server, bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = server.upload(bucket, RECORDED, "in"), f"s3://{bucket}/out"
    plan, codes = fault_proxy.Plan(holds="task.json"), []
    command = ["transform", "--source", source, "--target", target, "--format", "torch-dcp", "--target-ranks", "2"]
    with fault_proxy.between(server.endpoint, plan) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        client.client_of.cache_clear()
        running = threading.Thread(target=lambda: codes.append(main(command)))
        running.start()
        assert plan.held.wait(120)
        content = (RECORDED / "__2_0.distcp").read_bytes()
        server.client().put_object(Bucket=bucket, Key="in/__2_0.distcp", Body=content[:-1] + b"x")
        plan.released.set()
        running.join()
    client.client_of.cache_clear()
    assert codes == [65]
    assert "SourceChanged: __2_0.distcp" in capsys.readouterr().err
    assert server.client().list_objects_v2(Bucket=bucket, Prefix="out/__")["KeyCount"] == 0


def test_a_plan_takes_a_few_requests_for_each_file(
    server: s3_server.Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_checkpoints.write(tmp_path / "many", 8, 164, rows=32, columns=64)
    source = server.upload(bucket, tmp_path / "many", "in")
    plan = fault_proxy.Plan()
    with fault_proxy.between(server.endpoint, plan) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        client.client_of.cache_clear()
        target = str(tmp_path / "out")
        assert main(["plan", "--source", source, "--target", target, "--format", "torch-dcp", "--target-ranks", "4"]) == 0
    client.client_of.cache_clear()
    assert len([target for _, target in plan.requests if ".distcp" in target]) <= 8 * 4
    assert len(plan.requests) <= 8 * 4 + 12
