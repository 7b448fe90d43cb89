"""Sources of users: folders and files with other names, one rank of several, a folder in which training has continued."""

from __future__ import annotations

import json
import os
import re
import shutil
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

Map = tuple[tuple[int, ...], tuple[int, ...]]  # device matrix, and for each dimension an axis or -1


@pytest.fixture
def made(tmp_path: Path) -> disk.Checkpoint:
    return disk.write(tmp_path / "in", disk.example())


def right(made: disk.Checkpoint, target: Path) -> bool:
    return disk.differences(made.model, target, "ckpt") == []


@pytest.mark.parametrize("form", ["{r}", "device_{r}", "rank{r}", "rank_{r}/ckpt"])
def test_folders_by_other_names(made: disk.Checkpoint, tmp_path: Path, form: str) -> None:
    form = "other_{r}" if form == "{r}" else form
    for rank in range(4):
        folder = made.source / form.format(r=rank)
        old = made.source / f"rank_{rank}"
        old.rename(made.source / "moved")
        folder.parent.mkdir(exist_ok=True)
        (made.source / "moved").rename(folder)
    (made.source / "logs").mkdir()
    code = main(made.arguments(tmp_path / "out"))
    assert code == (66 if form.startswith("other") else 0)
    assert code or right(made, tmp_path / "out")


def test_a_nested_folder_of_several_is_chosen_by_its_path(
    made: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str]
) -> None:
    for rank in range(4):
        folder = made.source / f"rank_{rank}"
        for name in ("network", "optimizer"):
            (folder / name).mkdir()
            shutil.copy(folder / "net-1_100.ckpt", folder / name)
        (folder / "net-1_100.ckpt").unlink()
    assert "--files '*/network/*'" in refused(78, "AmbiguousFiles", *made.arguments(tmp_path / "out"))
    assert main(made.arguments(tmp_path / "out", "--files", "*/network/*")) == 0
    assert right(made, tmp_path / "out")


def flatten(made: disk.Checkpoint, form: str) -> None:
    for rank in range(4):
        (made.source / f"rank_{rank}" / "net-1_100.ckpt").rename(made.source / form.format(r=rank))
        (made.source / f"rank_{rank}").rmdir()


@pytest.mark.parametrize("form", ["checkpoint_{r}.ckpt", "net_rank{r}-1_100.ckpt"])
def test_all_ranks_in_one_folder(
    made: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str], capsys: pytest.CaptureFixture[str], form: str
) -> None:
    flatten(made, form)
    assert main(made.arguments(tmp_path / "out")) == 0
    assert f"note: ranks are taken from the file names: {form.format(r=0)}" in capsys.readouterr().err
    assert right(made, tmp_path / "out")
    unsaid = ["transform", "--source", str(made.source), "--target", str(tmp_path / "whole")]
    assert "ranks 0-3" in refused(78, "SourceStrategyMissing", *unsaid)
    refused(78, "OneRankOfSeveral", *unsaid, "--files", form.format(r=2))
    assert main(["convert", str(made.source), str(tmp_path / "converted"), "--format", "safetensors"]) == 0
    assert main(["inspect", str(made.source)]) == 0
    (made.source / form.format(r=1)).unlink()
    assert "rank 1" in refused(66, "SourceRankMissing", *made.arguments(tmp_path / "other"))


def test_files_of_mindformers_checkpoints(made: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str]) -> None:
    for rank in range(4):
        for kind in ("model", "opt"):
            name = f"llama-{kind}-{rank:07d}-0000004.safetensors"
            (made.source / name).write_bytes(rawfiles.safetensors(made.model.source()[rank]))
        shutil.rmtree(made.source / f"rank_{rank}")
    (made.source / "metadata.json").write_text("{}")
    assert "metadata.json" in refused(65, "MetadataInvalid", *made.arguments(tmp_path / "out"))
    assert main(made.arguments(tmp_path / "out", "--files", "*-model-*", "--format", "ckpt")) == 0
    assert right(made, tmp_path / "out")
    alone = ["plan", "--target", str(tmp_path / "whole"), "--source"]
    refused(78, "OneRankOfSeveral", *alone, str(made.source / "llama-model-0000001-0000004.safetensors"))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A checkpoint of Hugging Face's libraries that has lost its index."""
    folder = tmp_path / "model"
    folder.mkdir()
    for number in (1, 2):
        content = rawfiles.safetensors({f"w{number}": np.full((4, 2), number, np.float32)}, {"format": "pt"})
        (folder / f"model-0000{number}-of-00002.safetensors").write_bytes(content)
    return folder


def test_numbered_files_without_an_index(shards: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    assert set(reshard.load(str(shards))) == {"w1", "w2"}
    (shards / "consolidated.safetensors").write_bytes(b"")
    command = ["plan", "--source", str(shards), "--target", str(tmp_path / "out")]
    refused(78, "AmbiguousFiles", *command)
    assert main([*command, "--files", "model-*"]) == 0
    (shards / "consolidated.safetensors").unlink()
    (shards / "model-00001-of-00002.safetensors").unlink()
    refused(66, "FileMissing", *command)


def test_parts_without_their_map(made: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str]) -> None:
    unified = tmp_path / "unified"
    request = reshard.Request(made.source, unified, made.source_strategy, options=reshard.Options(output="Unified"))
    reshard.transform_checkpoint(request)
    for name in ("param_name_map.json", "reshard-manifest.json"):
        (unified / name).unlink()
    assert "restore param_name_map.json" in refused(66, "FileMissing", "inspect", str(unified))


def test_one_file_next_to_an_index(shards: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    index = {"weight_map": {f"w{number}": f"model-0000{number}-of-00002.safetensors" for number in (1, 2)}}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    assert set(reshard.load(str(shards))) == {"w1", "w2"}
    (shards / "model.safetensors").write_bytes(rawfiles.safetensors({"w1": np.zeros((4, 2), np.float32)}))
    line = refused(78, "AmbiguousFiles", "plan", "--source", str(shards), "--target", str(tmp_path / "out"))
    for name, names in (("model.safetensors", {"w1"}), ("model.safetensors.index.json", {"w1", "w2"})):
        assert str(shards / name) in line
        assert set(reshard.load(str(shards / name))) == names


def test_no_file_next_to_a_written_index(made: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str]) -> None:
    target = tmp_path / "out"
    arguments = ["transform", *made.arguments(target)[1:5], "--target", str(target), "--output", "unified"]
    target.mkdir()
    (target / "model.safetensors").write_bytes(b"mine")
    hugging_face = [*arguments, "--format", "huggingface", "--max-file-size-bytes", "1024"]
    assert "model.safetensors" in refused(78, "TargetExists", *hugging_face)
    assert main(arguments) == 0
    refused(78, "TargetExists", *hugging_face, "--overwrite")
    (target / "model.safetensors").unlink()
    assert main([*hugging_face, "--overwrite"]) == 0


@pytest.mark.parametrize("where", ["model.safetensors", "model.ckpt", "strategy.ckpt"])
def test_pointers_of_git_lfs(made: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str], where: str) -> None:
    pointer = tmp_path / where
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n")
    option = ["--source-strategy"] if where.startswith("strategy") else ["--source"]
    source = [] if option == ["--source"] else ["--source", str(made.source)]
    line = refused(65, "GitLfsPointer", "plan", *source, *option, str(pointer), "--target", str(tmp_path / "out"))
    assert "git lfs pull" in line


def test_a_parent_of_the_checkpoint_folder(made: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "outer").mkdir()
    inner = made.source.rename(tmp_path / "outer" / "inner")
    line = refused(66, "SourceMissing", *made.arguments(tmp_path / "out", "--source", str(tmp_path / "outer")))
    assert f"such as {inner}" in line


@pytest.mark.parametrize("inner", ["rank_3", "rank_3/net-1_100.ckpt", "link", "link/net-1_100.ckpt", "link.ckpt"])
def test_one_rank_is_not_mistaken_for_a_whole_checkpoint(
    made: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, inner: str
) -> None:
    (made.source / "link").symlink_to("rank_3")
    (made.source / "link.ckpt").symlink_to("rank_3/net-1_100.ckpt")
    command = ["transform", "--source", str(made.source / inner), "--target", str(tmp_path / "out")]
    line = refused(78, "OneRankOfSeveral", *command)
    assert "rank_0" in line
    with pytest.raises(ReshardError, match="OneRankOfSeveral"):
        reshard.load(str(made.source / inner))
    assert main([*command, "--allow-single-rank"]) == 0
    manifest = json.loads((tmp_path / "out" / "reshard-manifest.json").read_bytes())
    assert manifest["options"]["allowSingleRank"] is True
    assert main(["inspect", str(made.source / inner)]) == 0
    assert main(["convert", str(made.source / inner), str(tmp_path / "converted"), "--format", "safetensors"]) == 0
    monkeypatch.chdir(made.source / "rank_3")
    refused(78, "OneRankOfSeveral", "plan", "--source", ".", "--target", str(tmp_path / "other"))


def test_a_rank_is_recognized_next_to_many_folders_without_files(
    made: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str]
) -> None:
    for rank in range(4, 40):
        (made.source / f"rank_{rank}").mkdir()
    for rank in range(1, 4):
        (made.source / f"rank_{rank}").rename(made.source / f"rank_{rank + 40}")
    refused(78, "OneRankOfSeveral", "transform", "--source", str(made.source / "rank_0"), "--target", str(tmp_path / "out"))


@pytest.mark.parametrize("name", ["llama_rank_{}-network.ckpt", "rank{}_checkpoint_10.ckpt", "net_rank_{}_100.ckpt"])
def test_a_rank_is_recognized_anywhere_in_the_name_of_a_file(
    made: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str], name: str
) -> None:
    for rank in range(4):
        shutil.copy(made.source / f"rank_{rank}" / "net-1_100.ckpt", tmp_path / name.format(rank))
    command = ["transform", "--source", str(tmp_path / name.format(2)), "--target", str(tmp_path / "out")]
    refused(78, "OneRankOfSeveral", *command)
    assert main([*command, "--allow-single-rank"]) == 0


def test_a_file_whose_name_contains_the_number_of_ranks_is_not_a_whole_checkpoint(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "in").mkdir()
    for total in ("8", "1"):
        name = f"llama-model-0000000-000000{total}.safetensors"
        (tmp_path / "in" / name).write_bytes(rawfiles.safetensors({"w": np.zeros(2, np.float32)}))
        command = ["transform", "--source", str(tmp_path / "in" / name), "--target", str(tmp_path / total)]
        if total == "8":
            assert "one of 8 ranks" in refused(78, "OneRankOfSeveral", *command)
        else:
            assert main(command) == 0


def test_one_rank_whose_neighbours_are_empty_is_a_whole_checkpoint(made: disk.Checkpoint, tmp_path: Path) -> None:
    for rank in range(3):
        (made.source / f"rank_{rank}" / "net-1_100.ckpt").rename(made.source / f"rank_{rank}" / "worker.log")
    assert main(["transform", "--source", str(made.source / "rank_3"), "--target", str(tmp_path / "out")]) == 0


def test_a_run_that_continued_with_fewer_ranks_in_its_folder(
    made: disk.Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in range(4, 8):
        shutil.copytree(made.source / f"rank_{rank - 4}", made.source / f"rank_{rank}")
    for rank in range(4):
        folder = made.source / f"rank_{rank}"
        shutil.copy(folder / "net-1_100.ckpt", folder / "net-2_200.ckpt")
    assert main(made.arguments(tmp_path / "out")) == 0
    assert "note: the files of rank 4-7 are not read" in capsys.readouterr().err
    assert right(made, tmp_path / "out")


def resharded(made: disk.Checkpoint, target: Path) -> list[str]:
    """Reshard to a folder. Returns the options to reshard that again."""
    assert main(made.arguments(target)) == 0
    return ["transform", "--source", str(target), "--source-strategy", str(made.target_strategy)]


def test_a_folder_in_which_training_has_continued(made: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str]) -> None:
    run = tmp_path / "run"
    again = resharded(made, run)
    newer = tmp_path / "newer"
    resharded(disk.write(tmp_path / "trained", disk.example(seed=2)), newer)
    for rank in range(6):
        shutil.copy(newer / f"rank_{rank}" / f"checkpoint_{rank}.ckpt", run / f"rank_{rank}" / "net-5_500.ckpt")
    line = refused(78, "AmbiguousFiles", *again, "--target", str(tmp_path / "out"))
    assert "rank_0/net-5_500.ckpt" in line
    for option, expected in (("--step 500 ", newer), ("--files 'checkpoint_*' ", run)):
        assert option in line
        target, straight = tmp_path / option[2:6].strip(), tmp_path / f"straight-{option[2:6]}"
        assert main([*again, *option.replace("'", "").split(), "--target", str(target)]) == 0
        selected = [again[0], "--source", str(expected), *again[3:], "--files", "checkpoint_*"]
        assert main([*selected, "--target", str(straight)]) == 0
        assert disk.contents(target) == disk.contents(straight)
        source = json.loads((target / "reshard-manifest.json").read_bytes())["source"]
        assert (source["step"], source["files"]) == ((500, None) if "step" in option else (None, "checkpoint_*"))


@pytest.mark.parametrize(
    "where", ["rank_{0}/ckpt/net-5_500.ckpt", "rank{0}/net.ckpt", "device_{0}/net.ckpt", "checkpoint_{0}.ckpt"]
)
def test_training_has_continued_with_files_in_another_arrangement(
    made: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str], where: str
) -> None:
    run = tmp_path / "run"
    again = resharded(made, run)
    for rank in range(6):
        newer = run / where.format(rank)
        newer.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(run / f"rank_{rank}" / f"checkpoint_{rank}.ckpt", newer)
    assert where.format(0) in refused(78, "AmbiguousFiles", *again, "--target", str(tmp_path / "out"))
    if "/" in where:
        assert main([*again, "--files", "checkpoint_*", "--target", str(tmp_path / "out")]) == 0


def test_other_files_in_a_folder_are_not_a_ranks_checkpoint(made: disk.Checkpoint, tmp_path: Path) -> None:
    run = tmp_path / "run"
    again = resharded(made, run)
    shutil.copy(made.target_strategy, run / "strategy.ckpt")
    (run / "rank_0" / "summary").mkdir()
    (run / "logs").mkdir()
    assert main([*again, "--target", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("before", [((2, 2), (1, 0)), ((4,), (0, -1)), ((4,), (-1, -1))])
@pytest.mark.parametrize("after", [((2, 2), (1, 0)), ((2, 2), (0, 1)), ((4,), (-1, 0)), ((4,), (0, -1)), ((4,), (-1, -1)), None])
def test_a_source_is_read_only_by_the_strategy_that_it_was_written_for(
    tmp_path: Path, refused: Callable[..., str], before: Map, after: Map | None
) -> None:
    """The parameter is in a strategy; `after` None: it is not in the one that is given."""
    whole, run = np.zeros((8, 8), np.float32), tmp_path / "run"  # equal slices, which only the manifest distinguishes
    (tmp_path / "whole.ckpt").write_bytes(rawfiles.ckpt({"w": whole, "v": whole}))
    for name, cut in (("before", before), ("after", after)):
        layouts = {"v": Layout((4,), ((), ()))} | (
            {"w": Layout(cut[0], tuple((axis,) * (axis >= 0) for axis in cut[1]))} if cut else {}
        )
        (tmp_path / name).write_bytes(dump(StrategyFile(name, {0: layouts}), "protobuf"))
    written = ["--source", str(tmp_path / "whole.ckpt"), "--target-strategy", str(tmp_path / "before")]
    assert main(["transform", *written, "--target", str(run)]) == 0
    again = ["transform", "--source", str(run), "--source-strategy", str(tmp_path / "after"), "--target", str(tmp_path / "out")]
    if after == before or (after is None and before[1] == (-1, -1)):
        assert main(again) == 0
    else:
        assert "parameter w: " in refused(65, "StrategyMismatch", *again)
        assert main([*again, "--files", "checkpoint_*"]) == 0


def test_one_rank_that_was_written_alone_is_not_a_whole_checkpoint(
    made: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str]
) -> None:
    run = tmp_path / "run"
    assert main([*made.arguments(run), "--only-ranks", "0"]) == 0
    refused(78, "OneRankOfSeveral", "transform", "--source", str(run), "--target", str(tmp_path / "out"))


@pytest.mark.parametrize("more", [{}, {"more": np.zeros(2, np.int8)}])
def test_files_that_training_has_overwritten(
    made: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str], more: rawfiles.Tensors
) -> None:
    run = tmp_path / "run"
    again = resharded(made, run)
    path = run / "rank_2" / "checkpoint_2.ckpt"
    held = rawfiles.read_ckpt(path.read_bytes())
    held["b"] = held["b"] ^ 1
    path.write_bytes(rawfiles.ckpt(held | more))
    line = refused(65, "SourceChanged", *again, "--target", str(tmp_path / "out"))
    assert "rank_2/checkpoint_2.ckpt" in line
    assert "--files 'checkpoint_*' " in line
    if not more:
        settled = ["--files", "checkpoint_*", "--replicas", "lowest-rank"]  # rank 5 holds the same slice as it was
        assert main([*again, *settled, "--target", str(tmp_path / "out")]) == 0
    path.unlink()
    refused(66, "FileMissing", *again, "--target", str(tmp_path / "other"))


def test_unified_files_next_to_which_training_has_saved(
    made: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str]
) -> None:
    unified = tmp_path / "unified"
    assert main(["transform", *made.arguments(unified)[1:5], "--target", str(unified), "--output", "unified"]) == 0
    (unified / "rank_0").mkdir()
    shutil.copy(made.source / "rank_0" / "net-1_100.ckpt", unified / "rank_0")
    assert "use param_name_map.json as the source" in refused(78, "AmbiguousFiles", "inspect", str(unified))
    assert main(["inspect", str(unified / "param_name_map.json")]) == 0


def test_a_whole_checkpoint_in_a_folder_named_like_a_rank(made: disk.Checkpoint, tmp_path: Path) -> None:
    """The manifest describes it as one rank."""
    whole = ["transform", *made.arguments(tmp_path)[1:5], "--target"]
    for rank in range(2):
        assert main([*whole, str(tmp_path / f"rank_{rank}")]) == 0
    assert set(reshard.load(str(tmp_path / "rank_1"))) == {"w", "m", "b", "step"}


def test_a_strategy_of_one_stage_and_the_file_of_its_rank(made: disk.Checkpoint, tmp_path: Path) -> None:
    layouts = {1: {"w": Layout((1,), ((), ()))}}
    strategy = tmp_path / "stage_1.ckpt"
    strategy.write_bytes(dump(StrategyFile("x", layouts), "protobuf"))
    command = ["transform", "--source-strategy", str(strategy), "--output", "stage", "--stages", "2"]
    source = ["--source", str(made.source / "rank_1" / "net-1_100.ckpt")]
    assert main([*command, *source, "--target", str(tmp_path / "out")]) == 0
    source[1] = str(made.source / "rank_2" / "net-1_100.ckpt")
    assert main([*command, *source, "--target", str(tmp_path / "other")]) == 78


def option_in(line: str) -> list[str]:
    """The option in an error's remedy selects an intact step."""
    found = re.search(r"read step \d+ of epoch \d+, which is complete on every rank: (--\w+ \S+) \(spec", line)
    assert found is not None, line
    return found[1].replace("'", "").split()


def damaged(content: bytes, how: str) -> bytes:
    return {"empty": b"", "torn": content[:-5], "no header": content[:3]}[how]


@pytest.mark.parametrize(("newer", "newest"), [("1_150", "2_200"), ("2_100", "3_100")])
@pytest.mark.parametrize(
    ("how", "kind"), [("empty", "ckpt"), ("torn", "ckpt"), ("no header", "safetensors"), ("torn", "safetensors")]
)
def test_a_damaged_newest_step_is_refused_with_an_intact_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str, newer: str, newest: str, kind: str
) -> None:
    made = disk.write(tmp_path / "in", disk.example(), kind)
    for rank in range(4):
        folder = made.source / f"rank_{rank}"
        for at in (newer, newest):
            shutil.copy(folder / f"net-1_100.{kind}", folder / f"net-{at}.{kind}")
    for rank, at in ((1, newest), (3, newer)):
        path = made.source / f"rank_{rank}" / f"net-{at}.{kind}"
        path.write_bytes(damaged(path.read_bytes(), how))
    capsys.readouterr()
    assert main(made.arguments(tmp_path / "out")) in (65, 66)
    option = option_in(capsys.readouterr().err)
    assert option == (["--step", "100"] if newer == "1_150" else ["--files", "*-1_100.*"])
    assert main(made.arguments(tmp_path / "out", *option)) == 0
    assert disk.differences(made.model, tmp_path / "out", kind) == []


def stage(path: Path, number: int, names: str) -> None:
    """Write the strategy of one pipeline stage of two ranks."""
    layouts = {number: {name: Layout((2,), ((0,),)) for name in names}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(dump(StrategyFile(path.name, layouts), "protobuf"))


@pytest.mark.parametrize("side", ["source", "target"])
def test_strategies_of_an_earlier_run_with_more_stages(
    tmp_path: Path, refused: Callable[..., str], capsys: pytest.CaptureFixture[str], side: str
) -> None:
    folder = tmp_path / "strategies"
    for number, names in enumerate(("ab", "cd", "c", "d")):
        stage(folder / f"stage_{number}.ckpt", number, names)
        if number > 1:
            os.utime(folder / f"stage_{number}.ckpt", (1e9, 1e9))
    source = tmp_path / "src"
    held = {name: np.arange(4, dtype=np.float32) for name in "abcd"}
    for rank in range(8 if side == "source" else 1):
        names = ("ab", "cd", "c", "d")[rank // 2] if side == "source" else "abcd"
        (source / f"rank_{rank}").mkdir(parents=True)
        (source / f"rank_{rank}" / "a.ckpt").write_bytes(rawfiles.ckpt({name: held[name][rank % 2 * 2 :][:2] for name in names}))
    command = ["transform", "--source", str(source), "--target", str(tmp_path / "out"), f"--{side}-strategy"]
    line = refused(65, "StaleStrategy", *command, str(folder))
    assert "stage_2.ckpt" in line
    assert main(["strategy", "merge", str(folder), str(tmp_path / "merged.ckpt")]) == 0
    capsys.readouterr()
    assert main([*command, str(tmp_path / "merged.ckpt")]) == 0
    assert "pipeline stages 2-3 contain only parameters of earlier stages" in capsys.readouterr().err


def test_strategies_in_folders_of_ranks(made: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str]) -> None:
    folder = tmp_path / "strategies"
    for rank in range(4):
        (folder / f"rank_{rank}").mkdir(parents=True)
        shutil.copy(made.source_strategy, folder / f"rank_{rank}" / "ckpt_strategy.ckpt")
    assert main(made.arguments(tmp_path / "out", "--source-strategy", str(folder))) == 0
    assert right(made, tmp_path / "out")
    stage(folder / "rank_4" / "ckpt_strategy.ckpt", 0, "w")
    refused(65, "StrategiesDisagree", *made.arguments(tmp_path / "other", "--source-strategy", str(folder)))
