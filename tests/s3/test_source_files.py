"""Sources in a bucket: folder structures, one rank of several, and a folder in which training has continued."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import disk
import pytest
import rawfiles
from places import Bucket

import reshard
from reshard.cli import main
from reshard.errors import ReshardError
from reshard.spec.request import Options, Request

if TYPE_CHECKING:
    from pathlib import Path

    import s3_server


@pytest.fixture
def place(server: s3_server.Server, bucket: str, tmp_path: Path) -> Bucket:
    return Bucket(server, bucket, tmp_path)


@pytest.fixture
def made(tmp_path: Path) -> disk.Checkpoint:
    return disk.write(tmp_path / "in", disk.example())


def request(made: disk.Checkpoint, source: str, target: Path, **options: object) -> Request:
    return Request(source, target, made.source_strategy, made.target_strategy, options=Options(**options))


@pytest.mark.parametrize("form", ["device_{r}/net-1_100.ckpt", "rank_{r}/ckpt/net-1_100.ckpt", "checkpoint_{r}.ckpt"])
def test_source_folders_by_other_names(made: disk.Checkpoint, place: Bucket, tmp_path: Path, form: str) -> None:
    folder = tmp_path / "other"
    for rank in range(4):
        path = folder / form.format(r=rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(made.source / f"rank_{rank}" / "net-1_100.ckpt", path)
    reshard.transform_checkpoint(request(made, place.put(folder), tmp_path / "out"))
    assert disk.differences(made.model, tmp_path / "out", "ckpt") == []


@pytest.mark.parametrize("inner", ["rank_3", "rank_3/net-1_100.ckpt"])
def test_one_rank_is_not_mistaken_for_a_whole_checkpoint(made: disk.Checkpoint, place: Bucket, inner: str) -> None:
    source = f"{place.put(made.source)}/{inner}"
    with pytest.raises(ReshardError, match=r"OneRankOfSeveral.*rank_0"):
        reshard.load(source)
    assert set(reshard.load(source, allow_single_rank=True)) == {"w", "m", "b", "step"}


@pytest.mark.parametrize(("change", "reason"), [("added", "AmbiguousFiles"), ("written within", "SourceChanged")])
def test_a_folder_in_which_training_has_continued(
    made: disk.Checkpoint, place: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, reason: str
) -> None:
    target = place.new()
    arguments = made.arguments(tmp_path)
    arguments[arguments.index("--target") + 1] = target
    assert main(arguments) == 0
    again = ["transform", "--source", target, "--source-strategy", str(made.target_strategy), "--target", str(tmp_path / "out")]
    there = place.get(target)
    path = there / "rank_2" / "checkpoint_2.ckpt"
    content = rawfiles.read_ckpt(path.read_bytes())
    folder, name = tmp_path / "newer", "net-2_200.ckpt" if change == "added" else path.name
    folder.mkdir()
    (folder / name).write_bytes(rawfiles.ckpt(content | {"b": content["b"] ^ 1}))
    place.server.upload(place.name, folder, f"{target.partition(place.name)[2].strip('/')}/rank_2")
    code = 78 if change == "added" else 65
    assert main(again) == code
    said = capsys.readouterr().err
    assert reason in said
    assert f"rank_2/{name}" in said
    settled = ["--replicas", "lowest-rank"] if change != "added" else []  # rank 5 holds the same slice as it was
    assert main([*again, "--files", "checkpoint_*", *settled]) == 0
