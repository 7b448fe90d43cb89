"""Unfinished uploads at the target: those of this transform's files are aborted, those of others are not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import disk
import pytest
import s3_server

from reshard.cli import main
from reshard.storage import open_store

if TYPE_CHECKING:
    from pathlib import Path

OURS = ("rank_1/checkpoint_1.ckpt", "reshard-manifest.json", "reshard-index.json", ".reshard/probe")
OTHERS = (
    "rank_1/checkpoint_1.ckpt.part",
    "rank_1/checkpoint_10.ckpt",
    "rank_7/checkpoint_7.ckpt",
    "rank_1/net-1_1.ckpt",
    "part0.safetensors",
    "parts.csv",
    "hyper_parameters.json",
    "reshard-manifest.json.bak",
    ".reshard/lock",
)


@pytest.mark.parametrize("server", s3_server.PROGRAMS, indirect=True)
def test_only_uploads_of_its_own_files_are_aborted(server: s3_server.Server, bucket: str, tmp_path: Path) -> None:
    made = disk.write(tmp_path, disk.example())
    for key in (*OURS, *OTHERS):
        created = server.client().create_multipart_upload(Bucket=bucket, Key=f"out/{key}")
        named = {"Bucket": bucket, "Key": f"out/{key}", "UploadId": created["UploadId"]}
        server.client().upload_part(**named, PartNumber=1, Body=b"1")
    assert main([*made.arguments(tmp_path), "--target", f"s3://{bucket}/out"]) == 0
    assert sorted(server.uploads(bucket)) == sorted(f"out/{key}" for key in OTHERS)
    assert disk.differences(made.model, server.download(f"s3://{bucket}/out", tmp_path / "out"), "ckpt") == []


@pytest.mark.parametrize("server", s3_server.PROGRAMS, indirect=True)
def test_uploads_of_many_files_are_distinguished_from_others(server: s3_server.Server, bucket: str) -> None:
    paths = [f"rank_{number}/x" for number in range(50)]
    for key in (paths[3], f"{paths[3]}.part", paths[49], "other"):
        server.client().create_multipart_upload(Bucket=bucket, Key=f"out/{key}")
    open_store(f"s3://{bucket}/out").abort_stale_uploads(paths, silent=60.0)
    assert len(server.uploads(bucket)) == 4
    open_store(f"s3://{bucket}/out").abort_stale_uploads(paths, silent=0.0)
    assert sorted(server.uploads(bucket)) == ["out/other", f"out/{paths[3]}.part"]


@pytest.mark.parametrize("server", ["minio"], indirect=True)
def test_a_versioned_bucket(server: s3_server.Server, bucket: str, tmp_path: Path) -> None:
    """Overwritten and deleted objects stay as older versions, and nothing reads them as current ones."""
    client, target = server.client(), f"s3://{bucket}/out"
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    for number, prefix in enumerate(("old_", "checkpoint_")):
        (tmp_path / prefix).mkdir()
        made = disk.write(tmp_path / prefix, disk.example(seed=number))
        arguments = [*made.arguments(tmp_path / prefix), "--target", target, "--overwrite"]
        assert main([*arguments, "--file-prefix", prefix]) == 0
        assert main(["verify", target]) == 0
        found = server.download(target, tmp_path / "out")
        assert disk.differences(made.model, found, "ckpt", prefix) == []
        assert {path.name.rpartition("_")[0] for path in found.rglob("*.ckpt")} == {prefix.rstrip("_")}
        assert [path.name for path in found.iterdir() if path.name == ".reshard"] == []
    listed = client.list_object_versions(Bucket=bucket, Prefix="out/")
    assert any("/old_" in each["Key"] for each in listed["Versions"])
    assert any("/old_" in each["Key"] for each in listed["DeleteMarkers"])
