"""`reshard inspect` of checkpoints that state their shards, and their refusal where files are selected."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from torch_files import DATA

from reshard.cli import main
from reshard.layout import Layout
from reshard.strategy import StrategyFile, dump

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def lines(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[list[str]]:
    """Standard output of `inspect`, split where there are two spaces or more."""
    assert main(["inspect", *arguments]) == 0
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in capsys.readouterr().out.splitlines()]


def test_a_distributed_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    found = lines(capsys, str(DATA / "placements"))
    for line in (
        ["format", "torch-dcp"],
        ["version", "1.0.0"],
        ["files", "4"],
        ["tensors", "15"],
        ["shard0", "Float32", "8x6", "4 x 1", "4 files"],
        ["shard1", "BFloat16", "4x8", "1 x 4", "4 files"],
        ["uneven", "Float32", "10x3", "4 x 1, uneven", "4 files"],
        ["nothing", "Float32", "0x4", "whole"],
    ):
        assert line in found
    assert ["scalar", "Int64", "scalar", "whole"] in [line[:4] for line in found]


def test_a_selection_of_tensors_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = lines(capsys, str(DATA / "fsdp2"), "--parameter", "model.a.*")
    assert [line[0] for line in found if line and line[0].startswith("model")] == ["model.a.weight", "model.a.bias"]
    assert main(["inspect", str(DATA / "per_rank"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["format"], document["version"], document["objects"]) == ("torch-dcp", "1.0.0", ["rank_local"])
    (replicated,) = (tensor for tensor in document["tensors"] if tensor["name"] == "replicated")
    (shard,) = replicated["shards"]
    assert (shard["start"], shard["shape"], len(shard["places"])) == ([0, 0], [3, 3], 4)


def test_a_file_of_torch_save(capsys: pytest.CaptureFixture[str]) -> None:
    found = lines(capsys, str(DATA / "files" / "shared.pt"))
    for line in (
        ["format", "torch-save"],
        ["other values", "6"],
        ["model.w", "Float32", "6x4", "0, shared"],
        ["model.column", "Float32", "6", "0, shared, not row-major"],
    ):
        assert line in found
    assert main(["inspect", str(DATA / "files" / "types.pt"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {"name": "float8_e8m0fnu", "dtype": "F8_E8M0", "shape": [2, 3], "bytes": 6, "files": ["types.pt"]} in document[
        "tensors"
    ]


@pytest.mark.parametrize(
    ("path", "name", "line"),
    [
        (DATA / "megatron", "megatron", ["embedding.word_embeddings.weight", "Float32", "8x6", "2 x 1", "2 files"]),
        (DATA.parent / "hyper_parallel" / "common", "hyper-parallel", ["rows", "Float32", "8x3", "2 x 1", "2 files"]),
        (DATA.parent / "hyper_parallel" / "per_rank", "hyper-parallel", ["replicated", "Float32", "3", "whole", "4 files"]),
    ],
)
def test_other_formats(path: Path, name: str, line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found = lines(capsys, str(path))
    assert ["format", name] in found
    assert line in found


def test_the_folder_of_a_step_is_suggested(tmp_path: Path, refused: Callable[..., str]) -> None:
    shutil.copytree(DATA / "placements", tmp_path / "run" / "iter_10")
    assert "run/iter_10" in refused(66, "SourceMissing", "inspect", str(tmp_path / "run"))


def test_a_format_that_cannot_be_read(tmp_path: Path, refused: Callable[..., str]) -> None:
    source = tmp_path / "step"
    source.mkdir()
    (source / "zero_to_fp32.py").write_bytes(b"")
    for command in (["inspect", str(source)], ["transform", "--source", str(source), "--target", str(tmp_path / "target")]):
        assert "--safe_serialization" in refused(78, "UnsupportedSource", *command)


def test_commands_that_select_other_files_refuse_torch_files_by_name(tmp_path: Path, refused: Callable[..., str]) -> None:
    path, target = str(DATA / "files"), str(tmp_path / "target")
    for command in (["convert", path, target, "--format", "safetensors"], ["inspect", path, "--step", "3"]):
        said = refused(78, "UnsupportedSource", *command)
        assert "reshard transform" in said


@pytest.mark.parametrize(
    ("option", "value", "reason"), [("--strategy", "s.ckpt", "SourceIsUnified"), ("--files", "*", "UnsupportedSource")]
)
def test_an_option_that_does_not_apply_is_named_in_the_remedy(
    option: str, value: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.ckpt").write_bytes(dump(StrategyFile("s", {0: {"w": Layout((2,), ((0,), ()))}}), "protobuf"))
    said = refused(78, reason, "inspect", str(DATA / "fsdp2"), option, value)
    assert option in said.rpartition(";")[2]


def test_missing_metadata_of_a_rank_is_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    shutil.copytree(DATA / "per_rank", tmp_path / "step")
    (tmp_path / "step" / "__1.metadata").unlink()
    assert "the metadata of rank 1 does not exist" in refused(66, "FileMissing", "inspect", str(tmp_path / "step"))


def test_a_folder_with_a_missing_file_is_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    folder = tmp_path / "step"
    shutil.copytree(DATA / "placements", folder)
    (folder / "__2_0.distcp").unlink()
    assert "__2_0.distcp" in refused(66, "FileMissing", "inspect", str(folder))


@pytest.mark.parametrize("kind", ["torch-dcp", "torch-safetensors"])
def test_a_checkpoint_that_reshard_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    options = ["--format", kind, "--target-ranks", "3", "--include", "model.a.*"]
    assert main(["transform", "--source", str(DATA / "fsdp2"), "--target", str(tmp_path / "t"), *options]) == 0
    capsys.readouterr()
    found = lines(capsys, str(tmp_path / "t"))
    for line in (
        ["format", kind],
        ["tensors", "2"],
        ["complete", f"ranks 0-2 of 3, from {DATA / 'fsdp2'}"],
        ["model.a.weight", "Float32", "10x6", "3 x 1, uneven", "3 files"],
    ):
        assert line in found
    assert main(["inspect", str(tmp_path / "t"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["complete"]


def test_one_file_of_shards_is_not_shown_as_whole_tensors(refused: Callable[..., str]) -> None:
    path = DATA / "2.15.0" / "huggingface" / "shard-00001-model-00001-of-00002.safetensors"
    assert str(path.parent) in refused(78, "OneRankOfSeveral", "inspect", str(path))
