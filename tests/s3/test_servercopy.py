"""Server-side copies: exact, without a download."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import disk
import fault_proxy
import models
import pytest

from reshard.cli import main
from reshard.storage.s3 import client

if TYPE_CHECKING:
    from pathlib import Path

    import s3_server

ROWS = models.Cut((4,), ((0,), ()))
FEWER_ROWS = models.Cut((2,), ((0,), ()))


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_long_runs_are_copied_by_the_server(
    server: s3_server.Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    tensors = tuple(models.Tensor(f"w{i}", "Float32", (6144, 4096), ROWS, 0, FEWER_ROWS, 0) for i in range(2))
    model = models.Model(4, 1, 2, 1, tensors, 1, remove_redundancy=False)
    disk.write(tmp_path, model, kind)
    base = server.upload(bucket, tmp_path, "in")
    target, unread = f"s3://{bucket}/out", ["--verification", "none"]
    sides = ["--source", f"{base}/src", "--source-strategy", f"{base}/source.ckpt", "--target-strategy", f"{base}/target.ckpt"]
    plan = fault_proxy.Plan()
    with fault_proxy.between(server.endpoint, plan) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        client.client_of.cache_clear()
        assert main(["transform", *sides, "--target", target, "--copy-mode", "server", *unread]) == 0
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint)
    client.client_of.cache_clear()
    assert disk.differences(model, server.download(target, tmp_path / "out"), kind) == []
    manifest = json.loads((tmp_path / "out" / "reshard-manifest.json").read_text())
    assert all(file["digest"].startswith("etag:") for file in manifest["files"])
    assert sum(file["bytesFetched"] for file in manifest["files"]) < sum(file["size"] for file in manifest["files"]) / 4
    sent = sum(file["size"] - file["bytesCopied"] for file in manifest["files"])
    assert 0 < sent < sum(file["size"] for file in manifest["files"]) / 4
    assert main(["verify", target]) == 0
    assert main(["transform", *sides, "--target", target, "--copy-mode", "server", *unread]) == 0  # nothing to do


@pytest.mark.parametrize("verification", ["none", "sample", "full"])
def test_a_moved_copy_is_compared_by_its_content_or_not_at_all(
    server: s3_server.Server, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], verification: str
) -> None:
    def refused(code: int, reason: str, place: str) -> str:
        capsys.readouterr()
        assert main(["verify", place]) == code
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith(f"reshard: {reason}: ")
        return line

    tensor = models.Tensor("w", "Float32", (12288, 1024), ROWS, 0, FEWER_ROWS, 0)
    model = models.Model(4, 1, 2, 1, (tensor,), 1, remove_redundancy=False)
    disk.write(tmp_path, model, "safetensors")
    base, target = server.upload(bucket, tmp_path, "in"), f"s3://{bucket}/out"
    sides = ["--source", f"{base}/src", "--source-strategy", f"{base}/source.ckpt", "--target-strategy", f"{base}/target.ckpt"]
    copy = ["transform", *sides, "--target", target, "--copy-mode", "server", "--verification"]
    assert main([*copy, verification]) == 0
    assert main(["verify", target]) == 0
    local = server.download(target, tmp_path / "local")
    other = server.upload(bucket, local, "other")
    for place in (str(local), other):
        if verification == "none":
            line = refused(69, "DigestIncomparable", place)
            assert "rank_0/checkpoint_0.safetensors (and 1 more files) cannot be compared here" in line
            assert "--verification sample" in line
        else:
            assert main(["verify", place]) == 0
    if verification == "none":
        client, key = server.client(), "other/rank_0/checkpoint_0.safetensors"
        content = client.get_object(Bucket=bucket, Key=key)["Body"].read()
        client.put_object(Bucket=bucket, Key=key, Body=content[:-1] + b"x")
        assert "the content of " in refused(65, "ContentChanged", other)  # by the sample
        # As the line advises.
        assert main([*copy, "sample"]) == 0
        local = server.download(target, tmp_path / "local")
        assert main(["verify", str(local)]) == 0
    path = local / "rank_1" / "checkpoint_1.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert "rank_1" in refused(65, "ContentChanged", str(local))
    path.write_bytes(path.read_bytes() + b"x")
    assert "bytes instead of" in refused(65, "ContentChanged", str(local))


def test_server_side_copy_is_refused_if_unsupported(bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = disk.write(tmp_path, disk.example())
    sides = ["--source", str(made.source), "--source-strategy", str(made.source_strategy)]
    assert main(["transform", *sides, "--target", f"s3://{bucket}/out", "--copy-mode", "server"]) == 78
    assert "CannotCopy" in capsys.readouterr().err
