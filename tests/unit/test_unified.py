"""Unified safetensors: their contents, their maps, and checkpoints made from them."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import disk
import models
import numpy as np
import pytest
import rawfiles
from definition import Cut
from effort import examples
from hypothesis import given
from hypothesis import strategies as st

from reshard.checkpoint.manifest import MANIFEST_NAME
from reshard.cli import main
from reshard.errors import DataError, ReshardError, UsageError
from reshard.plan.balance import fill
from reshard.spec.request import Options, Request
from reshard.spec.rules import PadRule, RenameRule
from reshard.transform.checks import with_output
from reshard.transform.complete import commit_checkpoint
from reshard.transform.run import Result, transform_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

MAP, INDEX, HYPER = "param_name_map.json", "model.safetensors.index.json", "hyper_param.safetensors"
MANIFEST = "reshard-manifest.json"


def pipeline(*, seed: int = 1, remove_redundancy: bool = False) -> models.Model:
    """Two stages that become three: moments and gradients, and a parameter without a layout that only stage 1 has."""
    tensors = []
    for stage in range(2):
        for name in ("w", "moment1.w", "accu_grads.w"):
            target = Cut((2,), ((), (0,))) if name == "w" else None
            tensors.append(
                models.Tensor(f"{name}{stage}", "Float32", (16, 8), Cut((2, 2), ((0,), ()), 2, 2), stage, target, 2 * stage)
            )
    tensors.append(models.Tensor("b-0", "BFloat16", (64,), Cut((4,), ((),)), 0, Cut((2,), ((0,),)), 1))
    tensors.append(models.Tensor("step", "Int32", (), None, 0, None, 0))
    return models.Model(4, 2, 2, 3, tuple(tensors), seed, remove_redundancy)


@pytest.fixture(params=["safetensors", "ckpt"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> disk.Checkpoint:
    return disk.write(tmp_path / "made", pipeline(), request.param)


@pytest.fixture
def source(tmp_path: Path) -> disk.Checkpoint:
    return disk.write(tmp_path / "made", pipeline(), "safetensors")


def unify(made: disk.Checkpoint, target: Path, **options: Any) -> Result:
    options = {"max_file_size_bytes": 1024} | options
    request = Request(made.source, target, made.source_strategy, options=Options(output="Unified", **options))
    return transform_checkpoint(request, workers=2)


def cut(source: Path, target: Path, strategy: Path | None, **options: Any) -> Result:
    return transform_checkpoint(Request(source, target, target_strategy=strategy, options=Options(**options)), workers=2)


def contents(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Return the tensors of each unified file, by the file's name."""
    return {path.name: rawfiles.read("safetensors", path.read_bytes()) for path in sorted(folder.glob("*.safetensors"))}


def whole(model: models.Model) -> dict[str, bytes]:
    return {tensor.name: model.whole(tensor).tobytes() for tensor in model.tensors}


def weight_map(path: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads(path.read_bytes())["weight_map"]
    return found


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def sharded(folder: Path, files: dict[str, list[str]], listed: dict[str, str] | None = None) -> None:
    """Write a folder as Hugging Face's libraries do: parameters by file, and the index, if it differs."""
    folder.mkdir()
    for file, held in files.items():
        tensors = {name: np.full((4, 2), len(name), np.float32) for name in held}
        (folder / file).write_bytes(rawfiles.write("safetensors", tensors))
    listed = listed if listed is not None else {name: file for file, held in files.items() for name in held}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1.5e3}, "weight_map": listed}))


TWO = {"model-00001-of-00002.safetensors": ["a"], "model-00002-of-00002.safetensors": ["b", "c"]}


@pytest.mark.parametrize("remove_redundancy", [False, True])
def test_every_parameter_is_whole_in_the_file_named_by_the_map(tmp_path: Path, *, remove_redundancy: bool) -> None:
    model = pipeline(remove_redundancy=remove_redundancy)
    made = disk.write(tmp_path / "made", model, "safetensors")
    assert unify(made, tmp_path / "u").complete
    files = contents(tmp_path / "u")
    held = {name: array.tobytes() for tensors in files.values() for name, array in tensors.items()}
    assert held == whole(model)
    assert sum(map(len, files.values())) == len(held)
    assert set(files.pop(HYPER)) == {"step"}
    assert list(files) == [f"part{number}.safetensors" for number in range(len(files))]
    assert all(sum(array.nbytes for array in tensors.values()) <= 1024 for tensors in files.values())
    document = json.loads((tmp_path / "u" / MAP).read_bytes())
    assert document["weight_map"] == {name: file for file, tensors in files.items() for name in tensors}
    assert document["metadata"]["total_size"] == sum(array.nbytes for tensors in files.values() for array in tensors.values())
    assert INDEX not in names(tmp_path / "u")


@pytest.mark.parametrize("source_only", ["Drop", "Keep"])
def test_unified_and_resharded_files_equal_resharded_files(made: disk.Checkpoint, tmp_path: Path, source_only: Any) -> None:
    """Optimizer moments too, although only the source's strategy names them."""
    straight, twice, unified = (tmp_path / name for name in ("straight", "twice", "u"))
    unify(made, unified)
    options = Options(format="Safetensors", source_only=source_only)
    transform_checkpoint(Request(made.source, straight, made.source_strategy, made.target_strategy, options=options))
    result = cut(unified, twice, made.target_strategy, source_only=source_only)
    assert any("moment1.w0" in note for note in result.notes) == (source_only == "Drop")
    assert main(["verify", str(twice)]) == 0
    for path in straight.glob("rank_*/*"):
        other = rawfiles.read("safetensors", (twice / path.relative_to(straight)).read_bytes())
        found = rawfiles.read("safetensors", path.read_bytes())
        assert {n: a.tobytes() for n, a in other.items()} == {n: a.tobytes() for n, a in found.items()}
    # Without its manifest it is MindSpore's own.
    (unified / MANIFEST).unlink()
    assert cut(unified, tmp_path / "again", made.target_strategy, source_only=source_only).notes == result.notes


def test_unified_files_can_be_merged_and_divided_again(source: disk.Checkpoint, tmp_path: Path) -> None:
    unify(source, tmp_path / "u")
    cut(tmp_path / "u", tmp_path / "one", None, format="Ckpt")
    one = rawfiles.read("ckpt", (tmp_path / "one" / "rank_0" / "checkpoint_0.ckpt").read_bytes())
    assert {name: array.tobytes() for name, array in one.items()} == whole(source.model)
    cut(tmp_path / "u", tmp_path / "anew", None, output="Unified")
    assert set(contents(tmp_path / "anew")) == {"part0.safetensors", HYPER}
    assert set(contents(tmp_path / "anew")[HYPER]) == {"step"}


def test_differing_copies_are_taken_from_the_first_rank(source: disk.Checkpoint, tmp_path: Path) -> None:
    for rank in range(8):
        path = source.source / f"rank_{rank}" / "net-1_100.safetensors"
        tensors = rawfiles.read("safetensors", path.read_bytes())
        path.write_bytes(rawfiles.write("safetensors", tensors | {"step": np.array(100 + rank, np.int32)}))
    with pytest.raises(DataError, match="RanksDisagree"):
        unify(source, tmp_path / "u")
    result = unify(source, tmp_path / "u", allow_inconsistent=("step",))
    assert contents(tmp_path / "u")[HYPER]["step"] == 100
    assert any("the copy of the first rank is used: step" in note for note in result.notes)


def test_parameters_of_a_later_stage_are_included(tmp_path: Path) -> None:
    made = disk.write(tmp_path / "made", pipeline(), "safetensors")
    for rank in range(4):
        path = made.source / f"rank_{rank}" / "net-1_100.safetensors"
        tensors = rawfiles.read("safetensors", path.read_bytes())
        del tensors["step"]
        path.write_bytes(rawfiles.write("safetensors", tensors))
    unify(made, tmp_path / "u")
    assert contents(tmp_path / "u")[HYPER]["step"].tobytes() == whole(made.model)["step"]


def test_a_missing_rank_is_an_error(source: disk.Checkpoint, tmp_path: Path) -> None:
    shutil.rmtree(source.source / "rank_5")
    with pytest.raises(ReshardError, match=r"SourceRankMissing.*rank 5"):
        unify(source, tmp_path / "u")
    assert not (tmp_path / "u").exists()


def test_the_hugging_face_index_names_every_parameter_and_its_file(source: disk.Checkpoint, tmp_path: Path) -> None:
    unify(source, tmp_path / "u", format="HuggingFace")
    files = contents(tmp_path / "u")
    document = json.loads((tmp_path / "u" / INDEX).read_bytes())
    assert document["weight_map"] == {name: file for file, tensors in files.items() for name in tensors}
    assert document["metadata"] == {
        "total_parameters": sum(array.size for tensors in files.values() for array in tensors.values()),
        "total_size": sum(len(content) for content in whole(source.model).values()),
    }
    assert sorted(files) == [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    for file in files:
        content = (tmp_path / "u" / file).read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        assert header["__metadata__"] == {"format": "pt"}
    # As a source it has no strategy, so parameters outside the target's strategy go to every rank.
    cut(tmp_path / "u" / INDEX, tmp_path / "ranks", source.target_strategy)
    found = rawfiles.read("safetensors", (tmp_path / "ranks" / "rank_2" / "checkpoint_2.safetensors").read_bytes())
    assert {"moment1.w0", "step", "b-0"} <= found.keys()


def test_a_hugging_face_folder_is_a_source(tmp_path: Path) -> None:
    sharded(tmp_path / "hf", TWO)
    cut(tmp_path / "hf", tmp_path / "one", None)
    found = rawfiles.read("safetensors", (tmp_path / "one" / "rank_0" / "checkpoint_0.safetensors").read_bytes())
    assert set(found) == {"a", "b", "c"}
    cut(tmp_path / "hf", tmp_path / "u", None, output="Unified")
    assert set(contents(tmp_path / "u")) == {"part0.safetensors"}


def test_nothing_is_lost_on_the_way_through_files_for_hugging_face_libraries(source: disk.Checkpoint, tmp_path: Path) -> None:
    """They have no strategy, whether their manifest is there or not: what no strategy names is copied to every rank."""
    request = Request(source.source, tmp_path / "h", source.source_strategy, options=Options(format="HuggingFace"))
    assert transform_checkpoint(request, workers=2).complete
    for manifest in (True, False):
        target = tmp_path / f"back-{manifest}"
        assert cut(tmp_path / "h", target, source.target_strategy).complete
        for rank in range(6):
            (path,) = (target / f"rank_{rank}").glob("*.safetensors")
            held = rawfiles.read("safetensors", path.read_bytes())
            assert held["step"].tobytes() == whole(source.model)["step"]
            assert held["moment1.w0"].tobytes() == whole(source.model)["moment1.w0"]
        (tmp_path / "h" / MANIFEST).unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "MapInvalid"),
        (b"[]", "MapInvalid"),
        (b'{"weight_map": {}}', "MapInvalid.*no parameter"),
        (b'{"weight_map": {"a": 1}}', "MapInvalid"),
        (b'{"weight_map": {"a": "../x.safetensors"}}', "MapInvalid.*in the same folder"),
        (b'{"weight_map": {"a": "/x.safetensors"}}', "MapInvalid.*in the same folder"),
        (b'{"weight_map": {"a": ".x.safetensors"}}', "MapInvalid.*in the same folder"),
        (b'{"weight_map": {"a": "\\u0000.safetensors"}}', "MapInvalid.*in the same folder"),
        (b'{"weight_map": {"a": "\xff.safetensors"}}', "MapInvalid"),
        (b'{"weight_map": {"a": "x.ckpt"}}', "MapInvalid.*in the same folder"),
        (b"[" * 100_000, "MapInvalid"),
        (b'{"weight_map": {"a": "gone.safetensors"}}', "FileMissing.*gone"),
        (
            b'{"weight_map": {"nowhere": "part0.safetensors", "b": "part1.safetensors"}}',
            "MapMismatch.*nowhere.*no file contains it",
        ),
        (b'{"a": "part0.safetensors"}', "MapMismatch.*contains part1.safetensors, which param_name_map.json does not list"),
        (b'{"a": "part1.safetensors", "b": "part0.safetensors"}', "MapMismatch.*parameter a.*part0.safetensors contains it"),
        (b'{"a": "part0.safetensors", "b": "part1.safetensors", "c": "more.safetensors"}', "ParameterTwice.*parameter a"),
    ],
)
def test_a_map_is_used_only_if_the_files_agree(tmp_path: Path, content: bytes, said: str) -> None:
    sharded(tmp_path / "s", {"part0.safetensors": ["a"], "part1.safetensors": ["b"], "more.safetensors": ["c", "a"]})
    (tmp_path / "s" / INDEX).rename(tmp_path / "s" / MAP)
    (tmp_path / "s" / MAP).write_bytes(content)
    with pytest.raises(ReshardError, match=said) as caught:
        cut(tmp_path / "s", tmp_path / "t", None)
    assert str(caught.value).isprintable()
    assert not (tmp_path / "t").exists()


def test_a_map_next_to_rank_folders_is_ambiguous(source: disk.Checkpoint, tmp_path: Path) -> None:
    unify(source, tmp_path / "u")
    (tmp_path / "u" / MANIFEST).unlink()
    for path in (tmp_path / "u").iterdir():
        shutil.move(path, source.source)
    arguments = [str(source.source), "--json"]
    with pytest.raises(ReshardError, match=f"AmbiguousFiles.*{MAP}"):
        unify(source, tmp_path / "again")
    assert main(["inspect", *arguments]) == 78
    cut(source.source / MAP, tmp_path / "of-map", None)
    unify(source, tmp_path / "of-ranks", files="net-*")
    assert contents(tmp_path / "of-ranks").keys() == contents(source.source).keys()


def test_several_maps_are_ambiguous(tmp_path: Path) -> None:
    sharded(tmp_path / "hf", TWO)
    shutil.copy(tmp_path / "hf" / INDEX, tmp_path / "hf" / "model.fp16.safetensors.index.json")
    with pytest.raises(ReshardError, match=r"AmbiguousFiles.*fp16.*instead of the folder"):
        cut(tmp_path / "hf", tmp_path / "one", None)
    cut(tmp_path / "hf" / INDEX, tmp_path / "one", None)


def test_an_incomplete_set_of_parts_is_refused_as_a_source(source: disk.Checkpoint, tmp_path: Path) -> None:
    unify(source, tmp_path / "u", only_ranks="0")
    with pytest.raises(ReshardError, match=r"FileMissing.*only 1 of 5 files"):
        cut(tmp_path / "u", tmp_path / "one", None)


def test_whole_parameters_have_no_strategy(source: disk.Checkpoint, tmp_path: Path) -> None:
    unify(source, tmp_path / "u")
    with pytest.raises(ReshardError, match="SourceIsUnified"):
        transform_checkpoint(Request(tmp_path / "u", tmp_path / "t", source.source_strategy))
    with pytest.raises(ReshardError, match=r"InvalidOption.*omit the strategy"):
        Request("a", "b", target_strategy="c", options=Options(output="Unified"))


def test_one_output_replaces_another(source: disk.Checkpoint, tmp_path: Path) -> None:
    target = tmp_path / "t"
    unify(source, target, format="HuggingFace")
    with pytest.raises(ReshardError, match="TargetExists"):
        cut(source.source / "rank_0", target, None, allow_single_rank=True)
    straight = Request(
        source.source, target, source.source_strategy, source.target_strategy, options=Options(overwrite="Replace")
    )
    transform_checkpoint(straight)
    assert names(target) == {MANIFEST, ".reshard", *(f"rank_{rank}" for rank in range(6))}
    unify(source, target, overwrite="Replace", max_file_size_bytes=1 << 20)
    assert names(target) == {MANIFEST, ".reshard", MAP, HYPER, "part0.safetensors"}
    assert main(["verify", str(target)]) == 0
    (target / MAP).write_text("{}")
    assert main(["verify", str(target)]) == 65


@pytest.mark.parametrize("name", ["part7.safetensors", HYPER, MAP, INDEX])
def test_undescribed_files_are_not_overwritten(source: disk.Checkpoint, tmp_path: Path, name: str) -> None:
    target = tmp_path / "t"
    target.mkdir()
    (target / name).write_text("mine")
    with pytest.raises(ReshardError, match=f"TargetExists.*{name}"):
        unify(source, target, overwrite="Replace")
    (target / name).unlink()
    (target / name).symlink_to(source.source_strategy)
    with pytest.raises(ReshardError, match="TargetIsLink"):
        unify(source, target, overwrite="Replace")


def test_parts_are_written_by_several_and_completed_by_one(source: disk.Checkpoint, tmp_path: Path) -> None:
    target = tmp_path / "t"
    arguments = ["--source", source.source, "--source-strategy", source.source_strategy, "--target", target]
    options = [*map(str, arguments), "--output", "unified", "--max-file-size-bytes", "1024"]
    assert main(["plan", *options, "--write"]) == 0
    assert main(["transform", *options, "--no-commit", "--only-ranks", "1,3-4"]) == 0
    assert main(["commit", str(target)]) == 66
    assert MAP not in names(target)
    before = (target / "part1.safetensors").stat()
    assert main(["transform", *options, "--no-commit"]) == 0
    commit_checkpoint(str(target))
    assert (target / "part1.safetensors").stat() == before
    assert set(weight_map(target / MAP)) == whole(source.model).keys() - {"step"}


@pytest.mark.parametrize(
    ("sizes", "most", "parts"),
    [
        ([], 10, []),
        ([0, 0], 10, [[0, 1]]),
        ([4, 4, 4], 12, [[0, 1, 2]]),
        ([4, 4, 4, 4], 12, [[0, 1], [2, 3]]),
        ([99, 1, 99, 1, 99, 1], 99, [[0], [1, 3, 5], [2], [4]]),
        ([1, 50, 1, 1], 10, [[0, 2, 3], [1]]),
    ],
)
def test_parts_are_few_and_even(sizes: list[int], most: int, parts: list[list[int]]) -> None:
    assert fill(sizes, most) == parts


@examples(200)
@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 60))
def test_parts_hold_everything_once_within_their_bound(sizes: list[int], most: int) -> None:
    parts = fill(sizes, most)
    assert sorted(position for part in parts for position in part) == list(range(len(sizes)))
    assert all(part == sorted(part) for part in parts)
    assert parts == sorted(parts)
    assert all(len(part) == 1 or sum(sizes[i] for i in part) <= most for part in parts)


def test_an_empty_folder_is_refused_as_a_checkpoint(source: disk.Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ReshardError, match="NothingToWrite"):
        unify(source, tmp_path / "t", rename=(RenameRule(to=None, pattern="*"),))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_file_size_bytes": 1 << 20}, "max_file_size_bytes.*only unified checkpoints"),
        ({"format": "HuggingFace", "output": "Stage"}, "output.*does not apply to the format HuggingFace"),
        ({"format": "TorchDcp", "output": "Unified"}, "the output Unified does not apply to the format TorchDcp"),
        ({"format": "TorchDcp", "file_prefix": "x_"}, "file_prefix: it does not apply"),
        ({"format": "Megatron", "numbered": False}, "numbered: it does not apply"),
        ({"format": "Ckpt", "copy_settings": True}, "copy_settings: it does not apply"),
        ({"format": "HuggingFace", "file_prefix": "x_"}, "file_prefix.*fixed file names"),
        ({"format": "TorchDcp", "crc": True}, "crc: it does not apply to the format TorchDcp"),
        ({"target_ranks": 2, "output": "Same"}, "target_ranks"),
        ({"format": "HuggingFace", "crc": True}, "crc: it does not apply"),
        ({"output": "Unified", "file_prefix": "x_"}, "file_prefix.*fixed file names"),
        ({"output": "Same", "file_prefix": "x_"}, "file_prefix.*fixed file names"),
        ({"output": "Unified", "format": "Ckpt"}, "output Unified does not apply to the format Ckpt"),
        ({"output": "Same", "pad": (PadRule("w", 0, 2),)}, "pad.*whole shapes"),
        ({"output": "PerRank", "stages": 2}, "stages.*only to the output Stage"),
    ],
)
def test_options_without_meaning_for_an_output_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        with_output(Request("a", "b", options=Options(**options)))


def test_files_unified_by_reshard_hold_no_slices_and_their_own_crc(source: disk.Checkpoint, tmp_path: Path) -> None:
    unify(source, tmp_path / "own", crc=True)
    part = tmp_path / "own" / "part0.safetensors"
    result = cut(tmp_path / "own", tmp_path / "out", None, verification="Full")
    assert not any("hyper_param" in note or "CRC32" in note for note in result.notes)
    part.chmod(0o600)
    part.write_bytes(part.read_bytes()[:-1] + b"\xff")
    with pytest.raises(ReshardError, match="SourceChanged"):
        cut(tmp_path / "own", tmp_path / "again", None, verification="Full")
    manifest = tmp_path / "own" / MANIFEST_NAME
    manifest.write_text(re.sub(r'"sample": "[^"]+"', '"sample": ""', manifest.read_text()))  # as in a block that was not sampled
    with pytest.raises(ReshardError, match="CrcMismatch"):
        cut(tmp_path / "own", tmp_path / "again", None, verification="Full")
