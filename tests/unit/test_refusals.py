"""Refusals by `reshard`: in one line, with an exit code for the reason, and with nothing written."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import tempfile
from typing import TYPE_CHECKING

import disk
import numpy as np
import pytest
import rawfiles

import reshard
from reshard.cli import main
from reshard.errors import ReshardError
from reshard.layout import Layout
from reshard.strategy import StrategyFile, dump

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def checkpoint(tmp_path: Path) -> disk.Checkpoint:
    return disk.write(tmp_path / "in", disk.example())


@pytest.mark.parametrize(
    ("value", "reason"),
    [("", "VariableMissing"), ("-1", "InvalidVariable"), ("\u0663", "InvalidVariable"), ("9" * 5000, "InvalidVariable")],
)
def test_a_variable_without_a_rank_is_refused(
    checkpoint: disk.Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
    value: str,
    reason: str,
) -> None:
    monkeypatch.setenv("MY_RANK", value)
    refused(2, reason, *checkpoint.arguments(tmp_path / "out", "--rank-from", "MY_RANK"))
    refused(2, "RanksConflict", *checkpoint.arguments(tmp_path / "out", "--rank-from", "MY_RANK", "--only-ranks", "0"))
    assert not (tmp_path / "out").exists()


def test_the_target_may_not_be_the_source(checkpoint: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str]) -> None:
    for target in (checkpoint.source, checkpoint.source / "below", tmp_path, tmp_path / "in" / "x" / ".." / "src"):
        refused(78, "TargetOverlapsSource", *checkpoint.arguments(target))
    link = tmp_path / "link"
    link.symlink_to(checkpoint.source)
    refused(78, "TargetOverlapsSource", *checkpoint.arguments(link / "x"))


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["--format", "zip"], 2, "Usage"),
        (["--only-ranks", "x"], 2, "InvalidRanks"),
        (["--only-ranks", "3-1"], 2, "InvalidRanks"),
        (["--only-ranks", "6"], 78, "NoSuchRank"),
        (["--file-prefix", "a/b"], 2, "InvalidPrefix"),
        (["--file-mode", "9"], 2, "InvalidMode"),
        (["--file-mode", "0300"], 2, "InvalidMode"),
        (["--file-mode", "7777"], 2, "InvalidMode"),
        (["--source", "x" * 300], 2, "InvalidPath"),
        (["--workers", "0"], 2, "Usage"),
        (["--step", "99"], 66, "StepMissing"),
        (["--files", "nothing*"], 66, "SourceRankMissing"),
        (["--source", "/nowhere"], 66, "SourceMissing"),
        (["--source-strategy", "/nowhere"], 66, "StrategyMissing"),
        (["--no-such-option"], 2, "Usage"),
    ],
)
def test_errors_are_reported_in_one_line(
    checkpoint: disk.Checkpoint,
    tmp_path: Path,
    refused: Callable[..., str],
    arguments: list[str],
    code: int,
    reason: str,
) -> None:
    refused(code, reason, *checkpoint.arguments(tmp_path / "out", *arguments))
    assert not (tmp_path / "out").exists()


def test_a_truncated_source_is_named(checkpoint: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str]) -> None:
    path = checkpoint.source / "rank_2" / "net-1_100.ckpt"
    path.write_bytes(path.read_bytes()[:-1])
    assert "rank_2/net-1_100.ckpt" in refused(65, "Truncated", *checkpoint.arguments(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_missing_rank_is_named(checkpoint: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str]) -> None:
    (checkpoint.source / "rank_2" / "net-1_100.ckpt").unlink()
    (checkpoint.source / "rank_2").rmdir()
    assert "rank 2" in refused(66, "SourceRankMissing", *checkpoint.arguments(tmp_path / "out"))


def test_a_single_rank_of_many_needs_a_strategy(checkpoint: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str]) -> None:
    for rank in range(3):
        shutil.rmtree(checkpoint.source / f"rank_{rank}")
    line = refused(
        78, "SourceStrategyMissing", "transform", "--source", str(checkpoint.source), "--target", str(tmp_path / "out")
    )
    assert "only rank 3" in line


def parts(checkpoint: disk.Checkpoint, tmp_path: Path, part: str) -> Path:
    """Write a part of a checkpoint. Returns the source."""
    made, source = tmp_path / "made", str(checkpoint.source)
    if part == "file of a rank":
        assert main(["convert", f"{source}/rank_0", str(made), "--format", "safetensors"]) == 0
    elif part == "copy of a part":
        assert main(["convert", source, str(tmp_path / "part"), "--format", "ckpt", "--only-ranks", "0"]) == 0
        assert main(["convert", str(tmp_path / "part"), str(made), "--format", "safetensors"]) == 0
    elif part == "converted":
        assert main(["convert", source, str(made), "--format", "safetensors", "--only-ranks", "0"]) == 0
    elif part == "without redundancy":
        assert main([*checkpoint.arguments(made), "--only-ranks", "0", "--remove-redundancy"]) == 0
    else:
        assert main([*checkpoint.arguments(made), "--only-ranks", "0"]) == 0
    return made / {"folder written alone": "rank_0", "file written alone": "rank_0/checkpoint_0.ckpt"}.get(part, "")


@pytest.mark.parametrize(
    ("part", "command"),
    [
        (part, "plan")
        for part in ("file of a rank", "copy of a part", "without redundancy", "folder written alone", "file written alone")
    ]
    + [("converted", command) for command in ("transform", "unify", "load", "index", "plan")],
)
def test_a_part_of_a_written_checkpoint_is_not_a_whole_one(
    checkpoint: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str], part: str, command: str
) -> None:
    source, target = parts(checkpoint, tmp_path, part), ["--target", str(tmp_path / "out")]
    if command == "load":
        with pytest.raises(ReshardError, match="OneRankOfSeveral"):
            reshard.load(str(source))
        return
    output = {"unify": ["--output", "unified"], "index": ["--output", "index"]}.get(command, [])
    name = "plan" if command == "plan" else "transform"
    refused(78, "OneRankOfSeveral", name, "--source", str(source), *target, *output)
    assert main(["convert", str(source), str(tmp_path / "copy"), "--format", "ckpt"]) == 0


def test_the_first_ranks_of_a_written_checkpoint_are_not_those_of_a_smaller_one(
    checkpoint: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str]
) -> None:
    made, two = tmp_path / "made", tmp_path / "two.ckpt"
    assert main(["convert", str(checkpoint.source), str(made), "--format", "safetensors", "--only-ranks", "0-1"]) == 0
    two.write_bytes(dump(StrategyFile("two", {0: {"w": Layout((2,), ((0,), ()))}}), "protobuf"))
    command = ["transform", "--source", str(made), "--source-strategy", str(two), "--target", str(tmp_path / "out")]
    assert "lists ranks 0-1 of 4, but the source strategy describes 2" in refused(65, "SourceRanksMismatch", *command)
    assert main(["convert", str(made), str(tmp_path / "copy"), "--format", "ckpt"]) == 0
    command[2] = str(tmp_path / "copy")
    refused(65, "SourceRanksMismatch", *command)


def test_one_rank_of_a_data_parallel_checkpoint_is_read_on_request(tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "whole.ckpt").write_bytes(rawfiles.ckpt({"w": np.arange(4, dtype=np.float32)}))
    (tmp_path / "two.ckpt").write_bytes(dump(StrategyFile("two", {0: {"w": Layout((2,), ((),))}}), "protobuf"))
    command = ["transform", "--source", str(tmp_path / "whole.ckpt"), "--target-strategy", str(tmp_path / "two.ckpt")]
    assert main([*command, "--target", str(tmp_path / "made")]) == 0
    for inner in ("made/rank_1", "made/rank_1/checkpoint_1.ckpt"):
        again = ["transform", "--source", str(tmp_path / inner), "--target", str(tmp_path / inner.replace("/", "-"))]
        refused(78, "OneRankOfSeveral", *again)
        assert main([*again, "--allow-single-rank"]) == 0


def test_a_strategy_of_another_model_is_named(checkpoint: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str]) -> None:
    swapped = ["--source-strategy", str(checkpoint.target_strategy)]
    refused(66, "SourceRankMissing", *checkpoint.arguments(tmp_path / "out", *swapped))
    no_strategy = ["--target-strategy", str(checkpoint.source / "rank_0" / "net-1_100.ckpt")]
    refused(65, "StrategyInvalid", *checkpoint.arguments(tmp_path / "out", *no_strategy))


def test_damage_found_by_a_crc_stops_a_full_run(checkpoint: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str]) -> None:
    for rank, tensors in enumerate(checkpoint.model.source()):
        content = bytearray(rawfiles.ckpt(tensors, crc=True))
        content[-18] ^= rank == 3
        (checkpoint.source / f"rank_{rank}" / "net-1_100.ckpt").write_bytes(content)
    assert "rank_3" in refused(65, "CrcMismatch", *checkpoint.arguments(tmp_path / "out", "--verification", "full"))
    assert not (tmp_path / "out").exists()


def test_a_rank_without_parameters_cannot_be_written_as_a_ckpt(tmp_path: Path, refused: Callable[..., str]) -> None:
    source, strategy, out = tmp_path / "a.ckpt", tmp_path / "target.ckpt", tmp_path / "out"
    source.write_bytes(rawfiles.ckpt({"a": np.zeros(4, np.float32)}))
    stages = {0: {"a": Layout((2,), ((0,),))}, 1: {"b": Layout((2,), ((0,),))}}
    strategy.write_bytes(dump(StrategyFile("x", stages), "protobuf"))
    arguments = ["--source", str(source), "--target-strategy", str(strategy), "--allow-missing", "--target", str(out)]
    for command in ("plan", "transform"):
        line = refused(78, "NothingToWrite", command, *arguments)
        assert "rank_2/checkpoint_2.ckpt" in line
        assert "safetensors" in line
    assert not out.exists()
    assert main(["plan", *arguments, "--only-ranks", "0-1", "--write"]) == 0
    refused(78, "NothingToWrite", "transform", *arguments, "--no-commit")
    assert main(["transform", *arguments, "--only-ranks", "0-1", "--no-commit"]) == 0
    arguments[-1] = str(out := tmp_path / "other")
    assert main(["transform", *arguments, "--format", "safetensors", "--verification", "full"]) == 0
    assert rawfiles.read_safetensors((out / "rank_3" / "checkpoint_3.safetensors").read_bytes()) == {}
    assert main(["inspect", str(out)]) == 0


def test_a_ckpt_of_tensors_that_it_cannot_hold_is_not_written(tmp_path: Path, refused: Callable[..., str]) -> None:
    source = tmp_path / "a.safetensors"
    source.write_bytes(rawfiles.safetensors({"a": np.zeros((0,), np.float32)}))
    arguments = ["transform", "--source", str(source), "--target", str(tmp_path / "out")]
    refused(78, "NothingToWrite", *arguments, "--format", "ckpt")
    assert not (tmp_path / "out").exists()
    assert main(arguments) == 0


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("__metadata__", "Float32"), ("crc_num", "Float32"), ("crc_num", "Int4"), ("format", "Int4"), ("reshard.str", "Int4")],
)
def test_names_that_safetensors_uses_itself_are_refused(
    tmp_path: Path, refused: Callable[..., str], name: str, dtype: str
) -> None:
    source, out = tmp_path / "a.ckpt", tmp_path / "out"
    shape = [4] if dtype == "Int4" else [1]
    source.write_bytes(rawfiles.message("w", [1], "Float32", b"abcd") + rawfiles.message(name, shape, dtype, bytes(4)))
    arguments = ["transform", "--source", str(source), "--target", str(out)]
    line = refused(65, "ReservedName", *arguments, "--format", "safetensors", "--crc")
    assert f"parameter {name}" in line
    assert "write .ckpt" in line
    assert not out.exists()
    assert main(arguments) == 0


def test_nothing_of_a_resource_is_ignored(tmp_path: Path, refused: Callable[..., str]) -> None:
    resource = tmp_path / "transform.yaml"
    resource.write_text("apiVersion: reshard.dev/v1alpha1\nkind: CheckpointTransform\nspec: {sourc: {}}\n")
    assert "sourc" in refused(2, "InvalidField", "run", str(resource))
    resource.write_text("kind: Pod\n")
    refused(2, "ResourceMissing", "run", str(resource))
    resource.write_text("{")
    refused(2, "NotYaml", "run", str(resource))
    refused(66, "NotFound", "run", str(tmp_path / "nothing.yaml"))


@pytest.mark.parametrize(
    "command",
    [
        *("strategy show ''", "strategy merge '' x", "strategy merge x ''", "inspect ''", "verify ''", "commit ''", "run ''"),
        *("layout show ''", "layout check '' --checkpoint x", "layout export x --checkpoint x -o ''"),
        *("layout infer '' --mesh dp=2 -o x", "layout derive '' --mesh dp=2 --source-mesh dp=2 --checkpoint x -o x"),
        *("plan --source '' --target x", "transform --source x --target ''"),
        *(f"transform --source x --target x --{side}-strategy ''" for side in ("source", "target")),
    ],
)
def test_an_empty_path_means_nothing(command: str, refused: Callable[..., str]) -> None:
    assert "the path is empty" in refused(2, "Usage", *shlex.split(command))


def test_a_name_that_is_not_valid_text_is_refused(
    checkpoint: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str]
) -> None:
    path = checkpoint.source / "rank_1" / "net-1_100.ckpt"
    path.rename(path.with_name("net\udcff-1_100.ckpt"))
    refused(65, "InvalidName", *checkpoint.arguments(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    for option in ("--source", "--target"):
        refused(2, "Usage", *checkpoint.arguments(tmp_path / "out", option, str(tmp_path / "\udcff")))
    assert not (tmp_path / "out").exists()


def test_a_denied_file_is_named_with_owner_and_mode(
    checkpoint: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str]
) -> None:
    """Root is denied nothing: as root, the test runs as another user."""
    out = tmp_path / "out"
    assert main(checkpoint.arguments(out)) == 0  # everything is imported
    path = checkpoint.source / "rank_1" / "net-1_100.ckpt"
    path.chmod(0o400 if os.geteuid() == 0 else 0)
    for folder in (folder for folder in tmp_path.parents if folder.is_relative_to(tempfile.gettempdir())):
        folder.chmod(folder.stat().st_mode | 0o055)
    tmp_path.chmod(0o777)
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        line = refused(77, "PermissionDenied", *checkpoint.arguments(tmp_path / "other"))
        who = f"uid {os.geteuid()}"
    finally:
        os.seteuid(before)
    for said in ("rank_1/net-1_100.ckpt", who, f"uid {before}", f"mode {stat.S_IMODE(path.stat().st_mode):04o}", "runAsUser"):
        assert said in line
    assert not (tmp_path / "other").exists()
