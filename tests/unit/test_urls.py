"""URLs: unsupported schemes are refused in every place, and never become local folders."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import disk
import pytest

import reshard
from reshard import mindspore
from reshard.cli import main
from reshard.errors import RequestError, UsageError
from reshard.spec.resource import check_relative
from reshard.spec.urls import local_path, normalized
from reshard.storage import open_store, parent_and_name, root_and_path

if TYPE_CHECKING:
    from collections.abc import Callable

UNSUPPORTED = ["obs://b/x", "gs://b/x", "S3A://b/x", "hdfs://n/x", "hdfs:/x", "s3:/b/x", "s3:b/x", "new+1://b"]

RESOURCE = """
apiVersion: reshard.dev/v1alpha1
kind: CheckpointTransform
spec:
  source: {storage: {persistentVolumeClaim: {claimName: checkpoints, path: a}}}
  target: {storage: {persistentVolumeClaim: {claimName: checkpoints, path: b}}}
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> disk.Checkpoint:
    return disk.write(tmp_path / "in", disk.example())


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to an empty folder, and check that nothing was created in it."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("url", UNSUPPORTED)
def test_an_unsupported_scheme_is_refused_by_every_function_of_the_stores(url: str) -> None:
    for take in (normalized, local_path, open_store, parent_and_name, root_and_path):
        with pytest.raises(RequestError, match="UnsupportedScheme") as refusal:
            take(url)
        assert refusal.value.where == url
        assert refusal.value.fix


@pytest.mark.parametrize("url", ["file://", "file:x", "file://host/x", "file:///%ff", "file:///a%00b", "a\0b", "s3://b/a\0b"])
def test_a_url_that_names_no_file_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="InvalidAddress"):
        normalized(url)


def test_paths_of_folders_and_buckets_are_accepted() -> None:
    for url, path in {
        "file:///a%20b": "/a b",
        "file://localhost/a": "/a",
        "FILE:/a": "/a",
        "S3://Bucket/X": "s3://Bucket/X",
        "./s3:/a": "./s3:/a",
        "step:10/a": "step:10/a",
        "/data/obs://x": "/data/obs://x",
    }.items():
        assert normalized(url) == path
        assert normalized(normalized(url)) == path


def test_the_message_gives_the_correct_form() -> None:
    def fix(url: str) -> str:
        with pytest.raises(RequestError) as refusal:
            normalized(url)
        return str(refusal.value)

    assert "s3://bucket/run-1 and set the OBS endpoint" in fix("obs://bucket/run-1")
    assert "pass s3://bucket/run-1 as a str" in fix("s3:/bucket/run-1")
    assert "specify the folder's path" in fix("hdfs://name/run-1")


@pytest.mark.parametrize(
    "command",
    [
        "transform --target obs://b/x",
        "transform --source obs://b/x --target out",
        "transform --source-strategy obs://b/x --target out",
        "transform --target-strategy obs://b/x --target out",
        "transform --rename-file obs://b/x --target out",
        "transform --decryption-key-file obs://b/x --target out",
        "transform --decryption-key-file s3://b/x --target out",
        "plan --svg obs://b/x.svg --target out",
        "fetch --rank 0 --target obs://b/x",
        "convert obs://b/x out --format safetensors",
        "convert {source} obs://b/x --format safetensors",
        "inspect obs://b/x",
        "inspect {source} --strategy obs://b/x",
        "verify obs://b/x",
        "commit obs://b/x",
        "run obs://b/x.yaml",
        "run {resource} --volume checkpoints=obs://b/x",
        "run {resource} --volume checkpoints=s3://b/x",
        "strategy show obs://b/x",
        "strategy merge obs://b/x out",
        "layout show obs://b/x",
        "layout check obs://b/x --checkpoint {source}",
        "layout export obs://b/x --checkpoint {source} -o out",
        "layout infer obs://b/x --mesh dp=2 -o out.yaml",
        "layout derive {strategies} --mesh dp=2 --source-mesh dp=2 --checkpoint obs://b/x -o out.yaml",
        "strategy merge {strategies} obs://b/x",
    ],
)
def test_no_command_writes_to_or_reads_from_a_folder_named_like_a_scheme(
    command: str, checkpoint: disk.Checkpoint, tmp_path: Path, working_folder: Path, refused: Callable[..., str]
) -> None:
    resource = tmp_path / "resource.yaml"
    resource.write_text(RESOURCE)
    strategies = tmp_path / "strategies"
    strategies.mkdir()
    (strategies / "s.ckpt").write_bytes(checkpoint.source_strategy.read_bytes())
    (working_folder / "obs:").symlink_to(checkpoint.source)
    words = shlex.split(command.format(source=checkpoint.source, resource=resource, strategies=strategies))
    if words[0] in ("transform", "plan", "fetch"):
        words = [words[0], *checkpoint.arguments(tmp_path / "out")[1:5], *words[1:]]
        words = [*words, "--target-strategy", str(checkpoint.target_strategy)] if "--target-strategy" not in words else words
    refused(78, "UnsupportedScheme", *words)
    assert [path.name for path in working_folder.iterdir()] == ["obs:"]


def test_a_request_and_the_functions_of_mindspore_refuse_them(checkpoint: disk.Checkpoint, working_folder: Path) -> None:
    for arguments in (
        {"source": "obs://b/x", "target": "out"},
        {"source": "x", "target": Path("s3://b/x")},
        {"source": "x", "target": "out", "index": "gs://b/x"},
    ):
        with pytest.raises(RequestError, match="UnsupportedScheme"):
            reshard.Request(**arguments)
    strategies = str(checkpoint.source_strategy), str(checkpoint.target_strategy)
    with pytest.raises(RequestError, match="UnsupportedScheme"):
        mindspore.transform_checkpoints(str(checkpoint.source), "obs://b/x", "net", *strategies)
    with pytest.raises(RequestError, match="UnsupportedScheme"):
        mindspore.merge_pipeline_strategys("obs://b/x", "merged.ckpt")
    with pytest.raises(RequestError, match="UnsupportedScheme"):
        mindspore.ckpt_to_safetensors(str(checkpoint.source), "obs://b/x")
    with pytest.raises(RequestError, match="UnsupportedScheme"):
        reshard.load("obs://b/x")
    assert list(working_folder.iterdir()) == []


def test_a_path_in_a_resource_is_not_a_url() -> None:
    for path in ("obs://b/x", "s3://b/x", "s3:/b/x", "file:/x"):
        with pytest.raises(RequestError, match="UnsupportedScheme"):
            check_relative(path, "spec.source.storage.persistentVolumeClaim.path")
    check_relative("run:42/x", "spec.source.storage.persistentVolumeClaim.path")


def test_a_file_url_is_its_folder_in_every_check(
    checkpoint: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str]
) -> None:
    target = tmp_path / "a b"
    arguments = ["--source", checkpoint.source.as_uri(), "--source-strategy", checkpoint.source_strategy.as_uri()]
    refused(78, "TargetOverlapsSource", "transform", *arguments, "--target", (checkpoint.source / "x").as_uri())
    assert main(["transform", *arguments, "--target", target.as_uri()]) == 0
    assert (target / "reshard-manifest.json").exists()
    assert main(["verify", target.as_uri()]) == 0
