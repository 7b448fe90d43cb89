"""Sources whose metadata locates irregular shards: whatever is written of them equals numpy's slices of the whole tensors."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import boxes_format
import numpy as np
import output_files
import pytest
import rawfiles
import torch_checkpoints
import torch_files
from boxes_format import RAW, RawBoxes, tilings
from definition import Cut, held
from effort import examples
from hypothesis import given
from hypothesis import strategies as st
from safetensors import deserialize

import reshard
from reshard.checkpoint.inventory import Inventory, ShardedTensor, SourceFile, Structure
from reshard.engine import verify
from reshard.engine.verify_small import SmallComparison
from reshard.errors import BugError, DataError, RequestError, ReshardError, UsageError
from reshard.formats import registry
from reshard.formats.torch.write import DCP as DCP_OUTPUT
from reshard.layout import Layout
from reshard.layout.box import Box
from reshard.model import TensorMeta, divide, gather_shards
from reshard.model.packing import pack
from reshard.plan import Parameter, Planner, RankPlan, build_model, prove
from reshard.source.boxed import find_boxed
from reshard.spec.request import Options, Request
from reshard.spec.rules import CastRule, RenameRule
from reshard.storage import open_store
from reshard.storage.local import LocalStore
from reshard.strategy import StrategyFile, dump
from reshard.transform.run import transform_checkpoint
from reshard.transform.verify import verify_checkpoint

if TYPE_CHECKING:
    from reshard.model import Checkpoint

TYPES = {"Float32": np.float32, "Int8": np.int8, "Float64": np.float64, "UInt16": np.uint16}
# Lengths that two and four ranks divide.
SHAPES = st.lists(st.sampled_from([4, 8, 12]), max_size=3).map(tuple)
SHARD = "shard-00001-model-00001-of-00002.safetensors"


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the format for tests next to the others."""
    others = registry._OWN  # noqa: SLF001 - no package with an entry point is installed for tests
    monkeypatch.setattr(registry, "_OWN", {"raw-boxes": RAW, **others})


@st.composite
def checkpoints(draw: Any) -> dict[str, tuple[str, np.ndarray, list[Box]]]:
    found = {}
    for i in range(draw(st.integers(1, 4))):
        shape, boxes = draw(tilings(SHAPES))
        dtype = draw(st.sampled_from(sorted(TYPES)))
        for j in range(draw(st.sampled_from([1, 2, 9]))):  # those in the same files are of one kind, and 8 are compared together
            content = (np.arange(prod(shape)) * 7 + i * 1000 + j * 100).astype(TYPES[dtype]).reshape(shape)
            found[f"w{i}.{j}"] = (dtype, content, boxes)
    return found


def transform(source: Path, target: Path, strategy: Path | None = None, **options: Any) -> None:
    transform_checkpoint(Request(source, target, target_strategy=strategy, options=Options(**options)), workers=1)


def cut_of(draw: Any, shape: tuple[int, ...]) -> Cut:
    axes = draw(st.permutations([0, 1]))
    maps: list[tuple[int, ...]] = [()] * len(shape)
    for axis in axes[: draw(st.integers(0, 2))] if shape else []:
        at = draw(st.integers(0, len(shape) - 1))
        maps[at] = (*maps[at], axis)
    return Cut((2, 2), tuple(maps))


@examples(300)
@given(checkpoints(), st.sampled_from(["Ckpt", "Safetensors"]), st.sampled_from(["Full", "Sample"]), st.data())
def test_ranks_of_a_strategy_hold_what_numpy_cuts(case: Any, output: str, level: Any, data: st.DataObject) -> None:
    cuts = {name: cut_of(data.draw, content.shape) for name, (_, content, _) in case.items()}
    with TemporaryDirectory() as folder:
        source, target, strategy = (Path(folder) / name for name in ("source", "target", "strategy.ckpt"))
        boxes_format.write(source, case)
        layouts = {name: Layout(cut.matrix, cut.maps) for name, cut in cuts.items()}
        strategy.write_bytes(dump(StrategyFile("s", {0: layouts}), "protobuf"))
        transform(source, target, strategy, format=output, verification=level)
        ending = output.lower()
        for rank in range(4):
            found = rawfiles.read(ending, (target / f"rank_{rank}" / f"checkpoint_{rank}.{ending}").read_bytes())
            assert found.keys() == case.keys()
            for name, (_, content, _) in case.items():
                expected = content.ravel()[held(content.shape, cuts[name])[rank]]
                assert found[name].tobytes() == expected.tobytes()


@examples(150)
@given(checkpoints(), st.integers(0, 2))
def test_unified_files_hold_the_whole_tensors(case: Any, files: int) -> None:
    with TemporaryDirectory() as folder:
        source, target = Path(folder) / "source", Path(folder) / "target"
        boxes_format.write(source, case, files + 1)
        transform(source, target, output="Unified", verification="Full")
        found: dict[str, np.ndarray] = {}
        for path in target.glob("*.safetensors"):
            found |= rawfiles.read("safetensors", path.read_bytes())
        assert {name: array.tobytes() for name, array in found.items()} == {
            name: content.tobytes() for name, (_, content, _) in case.items()
        }


def test_a_tensor_with_a_hole_can_be_excluded(tmp_path: Path) -> None:
    source, whole = tmp_path / "source", np.arange(12, dtype=np.float32).reshape(4, 3)
    source.mkdir()
    held = [
        [output_files.shard("w", whole, (0, 0), (2, 3), "Float32"), output_files.shard("m.w", whole, (0, 0), (2, 3), "Float32")],
        [output_files.shard("w", whole, (2, 0), (2, 3), "Float32")],
    ]
    output_files.write_checkpoint(DCP_OUTPUT, source, held)
    with pytest.raises(DataError, match=r"ShardsDoNotCover: tensor m\.w: .*--exclude"):
        transform(source, tmp_path / "refused")
    transform(source, tmp_path / "target", exclude=("m.*",), verification="Full")
    found = rawfiles.read("safetensors", (tmp_path / "target/rank_0/checkpoint_0.safetensors").read_bytes())
    assert found.keys() == {"w"}
    assert found["w"].tobytes() == whole.tobytes()
    assert json.loads((tmp_path / "target/reshard-manifest.json").read_text())["excluded"] == ["m.w"]
    assert reshard.load(str(source), exclude=("m.*",)).keys() == {"w"}


def two(folder: Path) -> None:
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    boxes_format.write(folder, {"w": ("Float32", whole, [Box((0, 0), (4, 2)), Box((0, 2), (1, 4)), Box((1, 2), (3, 4))])})


def test_a_changed_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two(tmp_path / "source")
    read = RawBoxes.read

    def changing(self: RawBoxes, folder: Any, *more: Any) -> Any:
        found = read(self, folder, *more)
        path = tmp_path / "source" / boxes_format.INDEX
        path.write_text(path.read_text() + " ")
        return found

    monkeypatch.setattr(RawBoxes, "read", changing)
    with pytest.raises(DataError, match="SourceChanged"):
        transform(tmp_path / "source", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_the_memory_bound_grows_with_the_shards(tmp_path: Path) -> None:
    """docs/performance.md has the measurements."""
    bounds = []
    for ranks in (2, 200):
        torch_checkpoints.write(tmp_path / str(ranks), ranks, 5, rows=400, columns=1)
        request = Request(tmp_path / str(ranks), tmp_path / "target", options=Options(format="HuggingFace"))
        bounds.append(reshard.plan_transform(request, workers=1).memory_bytes)
    assert bounds[1] - bounds[0] > 5 * (200 - 2) * 1024


def test_a_hole_is_refused(tmp_path: Path) -> None:
    two(tmp_path / "source")
    index = json.loads((tmp_path / "source" / boxes_format.INDEX).read_text())
    index["tensors"]["w"][2].pop()
    (tmp_path / "source" / boxes_format.INDEX).write_text(json.dumps(index))
    with pytest.raises(DataError, match="tensor w"):
        transform(tmp_path / "source", tmp_path / "target")


def test_other_checkpoint_files_make_the_source_ambiguous(tmp_path: Path) -> None:
    two(tmp_path / "source")
    (tmp_path / "source" / "model.safetensors").write_bytes(b"")
    with pytest.raises(RequestError, match=r"AmbiguousFiles.*model\.safetensors.*--source-format raw-boxes"):
        transform(tmp_path / "source", tmp_path / "target")


def test_a_source_strategy_does_not_apply(tmp_path: Path) -> None:
    two(tmp_path / "source")
    strategy = tmp_path / "s.ckpt"
    strategy.write_bytes(dump(StrategyFile("s", {0: {"w": Layout((2,), ((0,), ()))}}), "protobuf"))
    request = Request(tmp_path / "source", tmp_path / "target", strategy)
    with pytest.raises(RequestError, match="SourceIsUnified"):
        transform_checkpoint(request, workers=1)


def test_a_rank_is_written_from_the_index_of_a_plan(tmp_path: Path) -> None:
    two(tmp_path / "source")
    transform(tmp_path / "source", tmp_path / "index", output="Index")
    request = Request(tmp_path / "source", tmp_path / "target", index=str(tmp_path / "index"), options=Options())
    transform_checkpoint(request, workers=1)
    found = rawfiles.read("safetensors", (tmp_path / "target/rank_0/checkpoint_0.safetensors").read_bytes())
    assert found["w"].ravel().tolist() == list(range(24))


DCP = [path.name for path in sorted(torch_files.DATA.iterdir()) if (path / ".metadata").exists()]


@pytest.mark.parametrize("name", DCP)
def test_recorded_torch_checkpoints_become_the_tensors_that_torch_saved(name: str, tmp_path: Path) -> None:
    expected = json.loads((torch_files.DATA / name / "expected.json").read_text())
    transform(torch_files.DATA / name, tmp_path, output="Unified", verification="Full")
    found = {
        tensor: torch_files.sha256_of(bytes(view["data"]))
        for path in tmp_path.glob("*.safetensors")
        for tensor, view in deserialize(path.read_bytes())
    }
    assert found == {tensor: each["sha256"] for tensor, each in expected.items()}


@pytest.mark.parametrize("ranks", [1, 3, 16])
@pytest.mark.parametrize("name", DCP)
def test_torch_checkpoints_divided_again_hold_the_same(name: str, ranks: int, tmp_path: Path) -> None:
    """As distributed checkpoints of other numbers of ranks, with values other than tensors, and joined from these."""
    expected = json.loads((torch_files.DATA / name / "expected.json").read_text())
    again, whole = tmp_path / "again", tmp_path / "whole"
    transform(torch_files.DATA / name, again, format="TorchDcp", target_ranks=ranks, verification="Full")
    assert len(list(again.glob("__*_0.distcp"))) == ranks
    transform(again, whole, format="HuggingFace", verification="Full")
    found = {
        tensor: torch_files.sha256_of(bytes(view["data"]))
        for path in whole.glob("*.safetensors")
        for tensor, view in deserialize(path.read_bytes())
    }
    assert found == {tensor: each["sha256"] for tensor, each in expected.items()}
    before, after = (torch_checkpoints.objects(folder) for folder in (torch_files.DATA / name, again))
    assert before == after


def test_nested_values_stay_nested_unless_they_are_renamed(tmp_path: Path) -> None:
    source = torch_files.DATA / "fsdp2"
    transform(source, tmp_path, format="TorchDcp", target_ranks=2, rename=(RenameRule(pattern="optim.state.*", to="adam.*"),))
    before, after = checkpoint_of(source).keys, checkpoint_of(tmp_path).keys
    assert after == {name: keys for name, keys in before.items() if not name.startswith("optim.state.")}
    assert after["optim.param_groups.0.lr"] == ("optim", "param_groups", 0, "lr")


def checkpoint_of(folder: Path) -> Checkpoint:
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    found = find_boxed(open_store(str(folder)), names, "torch-dcp")
    assert found is not None
    return found.checkpoint


def test_values_other_than_tensors_get_no_files(tmp_path: Path) -> None:
    """Neither the number of files nor that of source ranks counts what holds no tensors."""
    transform(torch_files.DATA / "fsdp2", tmp_path, format="HuggingFace", max_file_size_bytes=1024)
    sizes = [len(deserialize(path.read_bytes())) for path in tmp_path.glob("*.safetensors")]
    assert len(sizes) > 1
    assert all(sizes)
    manifest = json.loads((tmp_path / "reshard-manifest.json").read_text())
    assert manifest["source"]["ranks"] == 4
    assert "optim.param_groups.0.lr" in manifest["objects"]


def test_a_megatron_checkpoint_keeps_its_companions(tmp_path: Path) -> None:
    source = torch_files.DATA / "megatron"
    transform(source, tmp_path / "two", format="Megatron", target_ranks=2)
    for name in ("common.pt", "metadata.json"):
        assert (tmp_path / "two" / name).read_bytes() == (source / name).read_bytes()
    again = transform_checkpoint(Request(source, tmp_path / "two", options=Options(format="Megatron", target_ranks=2)), workers=1)
    assert again.skipped_ranks == (0, 1)
    (tmp_path / "two" / "common.pt").unlink()
    with pytest.raises(ReshardError, match=r"FileMissing.*common\.pt"):
        verify_checkpoint(str(tmp_path / "two"))
    transform(tmp_path / "two", tmp_path / "one", source_format="megatron")
    with pytest.raises(RequestError, match="NotMegatron"):
        transform(torch_files.DATA / "fsdp2", tmp_path / "other", format="Megatron")


def test_a_companion_that_changed_after_the_source_was_indexed_is_refused(tmp_path: Path) -> None:
    shutil.copytree(torch_files.DATA / "megatron", tmp_path / "source")
    transform(tmp_path / "source", tmp_path / "index", output="Index")
    common = tmp_path / "source" / "common.pt"
    common.write_bytes(common.read_bytes() + b"\0")
    request = Request(tmp_path / "source", tmp_path / "target", index=str(tmp_path / "index"), options=Options(format="Megatron"))
    with pytest.raises(ReshardError, match=r"SourceChanged: common\.pt: the file changed since the source was indexed"):
        transform_checkpoint(request, workers=1)
    assert not (tmp_path / "target").exists()


def test_settings_that_change_while_they_are_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two(tmp_path / "source")
    config = tmp_path / "source" / "config.json"
    config.write_text("{}")
    read = LocalStore.read

    def changing(self: LocalStore, path: str, limit: int) -> bytes:
        content = read(self, path, limit)
        if path == "config.json":
            config.write_text('{"a": 1}')
        return content

    monkeypatch.setattr(LocalStore, "read", changing)
    with pytest.raises(DataError, match=r"SourceChanged: config\.json: the file changed"):
        transform(tmp_path / "source", tmp_path / "target", format="HuggingFace", copy_settings=True)


def test_settings_of_a_model_are_copied_on_request(tmp_path: Path) -> None:
    two(tmp_path / "source")
    with pytest.raises(RequestError, match="SettingsMissing"):
        transform(tmp_path / "source", tmp_path / "target", format="HuggingFace", copy_settings=True)
    (tmp_path / "source" / "config.json").write_text("{}")
    transform(tmp_path / "source", tmp_path / "target", format="HuggingFace", copy_settings=True)
    assert (tmp_path / "target" / "config.json").read_text() == "{}"
    assert (tmp_path / "target" / "model.safetensors").exists()
    (tmp_path / "source" / "config.json").write_text("{ }")
    with pytest.raises(RequestError, match="TargetExists"):
        transform(tmp_path / "source", tmp_path / "target", format="HuggingFace", copy_settings=True)


def test_a_load_of_a_format_of_torch_selects_and_casts() -> None:
    source = torch_files.DATA / "fsdp2"
    options: dict[str, Any] = {"include": ("model.*",), "exclude": ("*.bias",)}
    plain = reshard.load(str(source), **options)
    assert set(plain) == {"model.a.weight", "model.b.weight", "model.norm.weight"}
    cast = reshard.load(str(source), source_format="torch-dcp", cast=(CastRule("*.a.*", "Float16"),), **options)
    assert cast["model.a.weight"].tolist() == plain["model.a.weight"].astype(np.float16).tolist()
    assert rawfiles.equal(cast["model.b.weight"], plain["model.b.weight"])
    with pytest.raises(RequestError, match="UnknownFormat"):
        reshard.load(str(source), source_format="torch")


def copied(folder: Path, *, equal: bool) -> None:
    """Write a tensor whose shard is in two files, and change the last element of the second one."""
    whole = np.arange(6000, dtype=np.float32)
    boxes_format.write(folder, {"w": ("Float32", whole, [Box((0,), (6000,))] * 2)})
    if not equal:
        path = folder / "boxes1.bin"
        path.write_bytes(path.read_bytes()[:-1] + b"\x00")


@pytest.mark.parametrize("level", ["Sample", "Full"])
def test_copies_of_a_shard_that_differ_are_refused(level: Any, tmp_path: Path) -> None:
    copied(tmp_path / "equal", equal=True)
    transform(tmp_path / "equal", tmp_path / "one", verification=level)
    copied(tmp_path / "other", equal=False)
    with pytest.raises(DataError, match=r"ReplicasDiffer: parameter w: the shard at \[0\] differs between boxes0.bin and boxes1"):
        transform(tmp_path / "other", tmp_path / "two", verification=level)
    transform(tmp_path / "other", tmp_path / "two", verification=level, replicas="LowestRank")
    found = rawfiles.read("safetensors", (tmp_path / "two/rank_0/checkpoint_0.safetensors").read_bytes())
    assert found["w"].tolist() == list(range(6000))
    assert json.loads((tmp_path / "two/reshard-manifest.json").read_text())["inconsistentReplicas"] == ["w"]


@pytest.mark.parametrize("name", [".metadata", "__7_0.distcp"])
def test_files_of_another_checkpoint_in_the_target_are_refused(name: str, tmp_path: Path) -> None:
    two(tmp_path / "source")
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / name).write_bytes(b"mine")
    with pytest.raises(RequestError, match=f"TargetExists.*{re.escape(name)}"):
        transform(tmp_path / "source", tmp_path / "target", format="TorchDcp", target_ranks=2, overwrite="Replace")
    assert (tmp_path / "target" / name).read_bytes() == b"mine"


def test_a_distributed_checkpoint_is_not_converted_file_by_file(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"UnsupportedSource.*torch-dcp"):
        transform(torch_files.DATA / "fsdp2", tmp_path / "target", output="Same", format="Safetensors")


def test_pickles_of_hyper_parallel_do_not_become_archives_of_torch(tmp_path: Path) -> None:
    source = next(path.parent for path in sorted((torch_files.DATA.parent / "hyper_parallel").glob("**/.metadata")))
    transform(source, tmp_path / "target", format="TorchDcp", verification="Full")
    manifest = json.loads((tmp_path / "target" / "reshard-manifest.json").read_text())
    found = find_boxed(open_store(str(tmp_path / "target")), ["__0_0.distcp", ".metadata"], "torch-dcp")
    assert found is not None
    assert found.checkpoint.objects == ()
    assert manifest["objects"]


@pytest.mark.parametrize("name", ["rank_0/a.ckpt", "device1/a.safetensors", SHARD])
def test_a_distributed_checkpoint_next_to_another_is_ambiguous(name: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(torch_files.DATA / "fsdp2", source)
    (source / "rank_7").mkdir()  # without checkpoint files, such as logs
    transform(source, tmp_path / "first", format="HuggingFace")
    (source / name).parent.mkdir(exist_ok=True)
    info = {"DCP_SHARDING_INFO": json.dumps({"w": {"saved_offsets": [0]}})}
    (source / name).write_bytes(torch_files.safetensors({"w": ("F32", (1,), bytes(4))}, info))
    with pytest.raises(RequestError, match="AmbiguousFiles"):
        transform(source, tmp_path / "second", format="HuggingFace")
    transform(source, tmp_path / "third", format="HuggingFace", source_format="torch-dcp")


@pytest.mark.parametrize(
    "name",
    ["per_rank/__0.metadata", "fsdp2/.metadata", "fsdp2/__0_0.distcp", f"2.15.0/huggingface/{SHARD}"],
)
def test_one_file_of_a_divided_checkpoint_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="OneRankOfSeveral"):
        transform(torch_files.DATA / name, tmp_path, format="HuggingFace")


@pytest.mark.parametrize("option", [{"step": 1}, {"files": "*"}])
def test_files_of_a_format_are_not_selected(option: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="InvalidOption"):
        Options(source_format="torch-dcp", **option)


def test_some_ranks_of_a_distributed_checkpoint_have_no_metadata(tmp_path: Path) -> None:
    """torch loads a checkpoint with metadata without an error, although shards are missing."""
    options = {"format": "TorchDcp", "target_ranks": 4}
    transform(torch_files.DATA / "fsdp2", tmp_path, only_ranks="0-1", **options)
    assert not (tmp_path / ".metadata").exists()
    verify_checkpoint(str(tmp_path))
    transform(torch_files.DATA / "fsdp2", tmp_path, only_ranks="2-3", **options)
    assert len(checkpoint_of(tmp_path).files) == 4


def test_settings_that_a_started_task_has_lost_are_restored(tmp_path: Path) -> None:
    two(tmp_path / "source")
    (tmp_path / "source" / "config.json").write_text("{}")
    options = Options(format="HuggingFace", copy_settings=True)
    request = Request(tmp_path / "source", tmp_path / "target", options=options)
    transform_checkpoint(request, workers=1, commit=False)
    (carried,) = (tmp_path / "target").glob(".reshard/*/carried/config.json")
    carried.unlink()
    assert transform_checkpoint(request, workers=1).complete
    assert (tmp_path / "target" / "config.json").read_text() == "{}"


def test_settings_next_to_the_target_stay(tmp_path: Path) -> None:
    two(tmp_path / "source")
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "config.json").write_text("mine")
    transform(tmp_path / "source", tmp_path / "target", format="HuggingFace")
    assert (tmp_path / "target" / "config.json").read_text() == "mine"


def test_tensors_in_the_same_files_are_of_one_kind_and_those_of_another_kind_are_found() -> None:
    def tensor(name: str, files: tuple[int, int], offsets: tuple[int, int]) -> ShardedTensor:
        tiling, tiles = divide((4,), np.array([[0], [2]]), np.array([[2], [2]]), name)
        places = (np.array(files), np.array(offsets), np.array([8, 8]))
        return pack(TensorMeta(name, "Float32", (4,), gather_shards(tiling, tiles, places, name)))

    tensors = (tensor("a", (0, 1), (16, 0)), tensor("b", (0, 1), (0, 8)), tensor("c", (1, 0), (16, 8)))
    files = tuple(SourceFile(number, f"{number}.bin", 24, str(number), 0) for number in range(2))
    model = build_model(Inventory(files, (Structure("raw-boxes", ()),), "Boxes", tensors=tensors), None, None)
    plan = Planner(model).plan(0)
    prove(plan)
    assert [group.numbers.tolist() for group in plan.groups] == [[0, 1], [2]]
    assert [plan.offsets(plan.groups[0], overlap).tolist() for overlap in range(2)] == [[16, 0], [0, 8]]
    assert [plan.tensors[i].entries[1].extents for i in range(3)] == [((0, 8),), ((8, 8),), ((8, 8),)]
    a, b, c = plan.parameters
    with pytest.raises(BugError, match="PlanNotExact: parameter b"):
        prove(replace(plan, parameters=(a, Parameter("b", "b", b.kind, c.shards), c)))


def test_a_mistake_in_the_places_of_many_tensors_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    halves = [Box((0,), (4,)), Box((4,), (4,))]
    tensors = {f"w{i}": ("Int8", np.arange(8, dtype=np.int8) + i, halves) for i in range(10)}
    boxes_format.write(tmp_path / "source", tensors)
    offsets = RankPlan.offsets

    def of_another(plan: RankPlan, group: Any, overlap: int, at: Any = slice(None)) -> np.ndarray:
        return np.roll(offsets(plan, group, overlap), overlap)[at]

    transform(tmp_path / "source", tmp_path / "right")
    monkeypatch.setattr(RankPlan, "offsets", of_another)
    with pytest.raises(BugError, match="VerificationFailed"):
        transform(tmp_path / "source", tmp_path / "wrong")
    assert not (tmp_path / "wrong" / "reshard-manifest.json").exists()


def test_small_tensors_in_many_pieces_are_compared_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pieces of all kinds are in memory at the same time."""
    tensors, pieces = {}, []
    for rows in (4, 300):
        halves = [Box((0, 0), (rows, 1)), Box((0, 1), (rows, 1))]
        tensors |= {f"{rows}.{i}": ("Int8", np.full((rows, 2), i, np.int8), halves) for i in range(10)}

    def comparison(*arguments: Any) -> SmallComparison:
        pieces.extend(len(each.pieces) for each in arguments[-1].values())
        return SmallComparison(*arguments)

    monkeypatch.setattr(verify, "SmallComparison", comparison)
    boxes_format.write(tmp_path / "source", tensors)
    transform(tmp_path / "source", tmp_path / "target")
    assert pieces == [8]
