"""MindSpore's functions without MindSpore: their errors, and results of the small ones."""

from __future__ import annotations

import pickle
import sys
from io import BytesIO
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import disk
import models
import numpy as np
import pytest
import rawfiles
from effort import examples
from hypothesis import given
from hypothesis import strategies as st

from reshard import mindspore
from reshard.cli import main
from reshard.errors import ReshardError
from reshard.layout import Layout
from reshard.strategy import StrategyFile, dump, layout_message
from reshard.strategy.records import Node

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROWS = Layout((4,), ((0,), ()))


@pytest.fixture
def strategy(tmp_path: Path) -> str:
    path = tmp_path / "strategy.ckpt"
    path.write_bytes(dump(StrategyFile("x", {0: {"w": ROWS}}), "protobuf"))
    return str(path)


FUNCTIONS: list[tuple[Callable[..., Any], tuple[Any, ...], type[Exception], str]] = [
    (mindspore.rank_list_for_transform, ("0", None, None), TypeError, "InvalidType: rank_id: '0' is not an integer"),
    (mindspore.rank_list_for_transform, (True, None, None), TypeError, "InvalidType"),
    (mindspore.rank_list_for_transform, (0, 7, None), TypeError, "InvalidType: src_strategy_file: 7"),
    (mindspore.rank_list_for_transform, (0, "nowhere", None), ValueError, "StrategyMissing"),
    (mindspore.rank_list_for_transform, (0, "nowhere", None), FileNotFoundError, "StrategyMissing"),
    (mindspore.rank_list_for_transform, (1, None, None), ValueError, "NoSuchRank"),
    (mindspore.transform_checkpoint_by_rank, (0, ["x"], "y.ckpt"), TypeError, "checkpoint_files_map"),
    (mindspore.transform_checkpoint_by_rank, (0, {0: 1}, "y.ckpt"), TypeError, "checkpoint_files_map: 1 is not a path"),
    (mindspore.transform_checkpoint_by_rank, (0, {0: "x.ckpt"}, 1), TypeError, "save_checkpoint_file_name"),
    (mindspore.transform_checkpoint_by_rank, (0, {0: "x.ckpt"}, "y"), ValueError, "InvalidFormat"),
    (mindspore.transform_checkpoints, ("nowhere", "out", "c"), NotADirectoryError, "SourceMissing"),
    (mindspore.transform_checkpoints, ("nowhere", "out", "c"), ValueError, "SourceMissing"),
    (mindspore.transform_checkpoints, ("nowhere", "out", "c", 1), TypeError, "src_strategy_file"),
    (mindspore.transform_checkpoints, ("nowhere", "out", 1), TypeError, "ckpt_prefix"),
    (mindspore.transform_checkpoints, ("nowhere", "out", "c", None, None, 0), ValueError, "InvalidOption: process_num: 0"),
    (mindspore.transform_checkpoints, ("nowhere", "out", "c", None, None, 1, "npz"), ValueError, "InvalidFormat"),
    (mindspore.merge_pipeline_strategys, ("nowhere", "x.ckpt"), NotADirectoryError, "StrategyMissing"),
    (mindspore.ckpt_to_safetensors, ("nowhere",), ValueError, "SourceMissing"),
    (mindspore.ckpt_to_safetensors, (3,), TypeError, "file_path"),
    (mindspore.safetensors_to_ckpt, ("nowhere", "x.y"), ValueError, "InvalidPath"),
    (mindspore.restore_group_info_list, ("nowhere",), FileNotFoundError, "NotFound"),
    (mindspore.restore_group_info_list, (1,), TypeError, "group_info_file_name"),
    (mindspore.build_searched_strategy, ("nowhere",), ValueError, "StrategyMissing"),
    (mindspore.build_searched_strategy, (1,), TypeError, "strategy_filename"),
    (mindspore.load_checkpoint, ("nowhere.ckpt",), ValueError, "NotFound"),
    (mindspore.load_checkpoint, ("x.safetensors",), ValueError, "InvalidFormat"),
    (mindspore.load_checkpoint, (1,), TypeError, "ckpt_file_name"),
    (mindspore.load_checkpoint, ("x.ckpt", None, False, 3), TypeError, "filter_prefix"),
    (mindspore.load_checkpoint, ("x.ckpt", None, False, []), ValueError, "filter_prefix"),
    (mindspore.load_segmented_checkpoints, ("nowhere",), ValueError, "Missing"),
    (mindspore.unified_safetensors, (1, None, "out"), TypeError, "src_dir"),
    (mindspore.unified_safetensors, ("nowhere", None, "out"), ValueError, "SourceMissing"),
    (mindspore.load_distributed_checkpoint, (None, None, 1), TypeError, "predict_strategy"),
    (mindspore.load_distributed_checkpoint, (None,), ValueError, "InvalidOption"),
    (mindspore.merge_sliced_parameter, ((),), TypeError, "sliced_parameters"),
    (mindspore.merge_sliced_parameter, ([],), ValueError, "the list is empty"),
    (mindspore.merge_sliced_parameter, ([1],), TypeError, "int is not a Parameter or array"),
    (mindspore.merge_sliced_parameter, ([np.zeros(2)], 1), TypeError, "strategy"),
]


@pytest.mark.parametrize(("function", "arguments", "kind", "said"), FUNCTIONS)
def test_errors_are_also_of_the_types_that_mindspore_documents(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    kind: type[Exception],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind) as found:
        function(*arguments)
    error = found.value
    assert isinstance(error, ReshardError)
    assert said in str(error)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - as a pool of processes hands it on
    assert (type(again), str(again), again.fix) == (type(error), str(error), error.fix)
    assert list(tmp_path.iterdir()) == []


def test_a_script_that_catches_reshard_errors_catches_mindspore_errors(tmp_path: Path) -> None:
    (tmp_path / "bad.ckpt").write_bytes(b"no strategy")
    with pytest.raises(ReshardError, match="StrategyInvalid") as found:
        mindspore.rank_list_for_transform(0, str(tmp_path / "bad.ckpt"))
    assert isinstance(found.value, ValueError)
    assert found.value.exit_code == 65


def test_one_rank_is_assumed_without_strategies() -> None:
    assert mindspore.rank_list_for_transform(0, None, None) == [0]
    assert mindspore.rank_list_for_transform(np.int64(0)) == [0]


def test_the_functions_to_convert_are_those_to_transform() -> None:
    for name in ("rank_list_for_{}", "{}_checkpoint_by_rank", "{}_checkpoints"):
        assert getattr(mindspore, name.format("convert")) is getattr(mindspore, name.format("transform"))


def test_a_strategy_file_is_refused_as_a_file_of_groups(strategy: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"GroupInfoInvalid.*the file is a strategy file"):
        mindspore.restore_group_info_list(strategy)
    (tmp_path / "groups.pb").write_bytes(b"\x12\x04\x08\x03\x08\x03")
    with pytest.raises(ValueError, match=r"GroupInfoInvalid.*the same rank twice"):
        mindspore.restore_group_info_list(str(tmp_path / "groups.pb"))
    (tmp_path / "groups.pb").write_bytes(b"\x12\x04\x08\x07\x08\x03")
    assert mindspore.restore_group_info_list(str(tmp_path / "groups.pb")) == [7, 3]


def test_a_searched_strategy_has_the_fields_of_mindspores_messages(strategy: str) -> None:
    found = mindspore.build_searched_strategy(strategy)
    assert found is not None
    layout = found["w"]
    assert (list(layout.dev_matrix[0].dim), list(layout.tensor_map[0].dim)) == ([4], [0, -1])
    assert (layout.opt_weight_shard_size, layout.field, list(layout.param_split_shape[0].dim)) == (0, 0, [])
    assert mindspore.build_searched_strategy(None) is None


@examples(60)
@given(st.data())
def test_slices_are_joined_by_their_layout(data: st.DataObject) -> None:
    devices = data.draw(st.sampled_from([1, 2, 4, 8, 12]))
    cut = data.draw(models.cuts(devices, data.draw(st.integers(1, 3))))
    layout = disk.layout(cut)
    shape = tuple(k * data.draw(st.integers(1, 3)) for k in layout.parts)
    whole = np.arange(int(np.prod(shape)), dtype=np.int32).reshape(shape)
    slices = [whole[layout.box(shape, rank).slices()].copy() for rank in range(devices)]
    joined = mindspore.merge_sliced_parameter(slices, {"w": layout_message(layout)})
    assert (joined.dtype, joined.shape, joined.tobytes()) == (whole.dtype, whole.shape, whole.tobytes())


def test_slices_that_do_not_fit_are_refused() -> None:
    layout = {"w": layout_message(Layout((2, 2), ((1,),)))}
    ones = [np.ones(2), np.ones(2), np.zeros(2), np.zeros(2)]
    assert mindspore.merge_sliced_parameter(ones, layout).tolist() == [1, 1, 0, 0]
    assert mindspore.merge_sliced_parameter(ones[1:3]).tolist() == [1, 1, 0, 0]
    for wrong, given_layout, reason in (
        (ones[:3], layout, "SlicesMissing"),
        ([*ones[:3], np.zeros(3)], layout, "SlicesDisagree"),
        ([*ones[:3], np.zeros(2, np.float32)], layout, "SlicesDisagree"),
        ([*ones[:3], np.array([0.0, 1.0])], layout, "ReplicasDiffer"),
        ([np.ones((2, 2))] * 4, layout, "SlicesDisagree"),
        ([np.ones((2, 2)), np.ones((2, 3))], None, "SlicesDisagree"),
        ([np.zeros(())], None, "SlicesDisagree"),
        (ones, layout | {"v": layout["w"]}, "InvalidOption"),
    ):
        with pytest.raises(ValueError, match=reason):
            mindspore.merge_sliced_parameter(wrong, given_layout)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "net.ckpt"
    text = rawfiles.message("note", [0], "str", "hé".encode("utf-32-le"))
    path.write_bytes(rawfiles.ckpt({"a.w": np.arange(4, dtype=np.float32), "b.w": np.ones(2, np.int8)}) + text)
    return path


def test_a_file_is_loaded_without_mindspore(saved: Path) -> None:
    found = mindspore.load_checkpoint(str(saved))
    assert (found["a.w"].tolist(), found["b.w"].dtype, found["note"]) == ([0, 1, 2, 3], np.int8, "hé")
    assert mindspore.load_checkpoint(saved, filter_prefix="a").keys() == {"b.w", "note"}
    assert mindspore.load_checkpoint(saved, choice_func=lambda name: name == "a.w").keys() == {"a.w"}
    with pytest.raises(ValueError, match="NothingToLoad"):
        mindspore.load_checkpoint(str(saved), specify_prefix=["c"])


def test_prefixes_count_for_safetensors_in_memory_too() -> None:
    content = rawfiles.safetensors({"a.w": np.arange(4, dtype=np.float32), "b.w": np.ones(2, np.int8)})
    found = mindspore.load_checkpoint(BytesIO(content), specify_prefix="a", format="safetensors")
    assert {name: array.tolist() for name, array in found.items()} == {"a.w": [0, 1, 2, 3]}
    with pytest.raises(ValueError, match="Truncated"):
        mindspore.load_checkpoint(BytesIO(content[:-1]), format="safetensors")


def test_a_crc_is_checked_if_requested(saved: Path) -> None:
    with pytest.warns(UserWarning, match="has no CRC32"):
        mindspore.load_checkpoint(str(saved), crc_check=True)
    content = bytearray(rawfiles.ckpt({"w": np.arange(4, dtype=np.float32)}, crc=True))
    saved.write_bytes(content)
    assert mindspore.load_checkpoint(str(saved), crc_check=True)["w"].tolist() == [0, 1, 2, 3]
    content[-18] ^= 1
    saved.write_bytes(content)
    with pytest.raises(ValueError, match="CrcMismatch"):
        mindspore.load_checkpoint(str(saved), crc_check=True)
    assert mindspore.load_checkpoint(str(saved)).keys() == {"w"}


@pytest.mark.parametrize("size", [1, 4])
def test_the_rank_is_mindspores_if_it_runs_in_parallel(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    communication = SimpleNamespace(get_rank=lambda: size - 1, get_group_size=lambda: size)
    monkeypatch.setitem(sys.modules, "mindspore.communication", communication)
    (tmp_path / "s.ckpt").write_bytes(dump(StrategyFile("x", {0: {"w": Layout((2, 2), ((1,),))}}), "protobuf"))
    for rank in range(3):
        (tmp_path / f"rank_{rank}").mkdir()
        (tmp_path / f"rank_{rank}" / "net.ckpt").touch()
    path, strategy = str(tmp_path / "rank_0" / "net.ckpt"), str(tmp_path / "s.ckpt")
    found = mindspore.get_ckpt_path_with_strategy(path, strategy)
    assert found == (path if size == 1 else str(tmp_path / "rank_2" / "net.ckpt"))


def test_a_rank_finds_a_file_that_holds_the_same(tmp_path: Path) -> None:
    layouts = {"w": Layout((2, 4), ((0,),)), "v": Layout((2, 4), ((1,),)), "accu_grads.w": Layout((8,), ((0,),))}
    stages = {1: {"w": layouts["w"], "accu_grads.w": layouts["accu_grads.w"]}, 0: layouts}
    for stage, found in stages.items():
        file = StrategyFile("x", {stage: found}, (Node("op", stage),))
        (tmp_path / f"stage{stage}.ckpt").write_bytes(dump(file, "protobuf"))
    wanted = tmp_path / "rank_10" / "net-1_40.ckpt"
    last = str(tmp_path / "stage1.ckpt")
    assert mindspore.get_ckpt_path_with_strategy(str(wanted), last) is None
    for rank in (1, 2, 6, 14):  # of stage 1, ranks 8 to 15, only 14 holds what 10 does
        (tmp_path / f"rank_{rank}").mkdir()
        (tmp_path / f"rank_{rank}" / wanted.name).touch()
    assert mindspore.get_ckpt_path_with_strategy(str(wanted), last) == str(tmp_path / "rank_14" / wanted.name)
    first = str(tmp_path / "rank_2" / wanted.name).replace("rank_2", "rank_4")  # no rank of stage 0 holds the same of w and v
    assert mindspore.get_ckpt_path_with_strategy(first, str(tmp_path / "stage0.ckpt")) is None
    there = str(tmp_path / "rank_2" / wanted.name)
    assert mindspore.get_ckpt_path_with_strategy(there, last) == there
    assert mindspore.get_ckpt_path_with_strategy(last, last) == last
    assert mindspore.get_ckpt_path_with_strategy(str(tmp_path / "none.ckpt"), last) is None


def test_a_fetched_rank_is_not_a_whole_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "whole.ckpt").write_bytes(rawfiles.ckpt({"w": np.arange(4, dtype=np.float32)}))
    (tmp_path / "two.ckpt").write_bytes(dump(StrategyFile("x", {0: {"w": Layout((2,), ((0,),))}}), "protobuf"))
    command = ["fetch", "--source", str(tmp_path / "whole.ckpt"), "--target-strategy", str(tmp_path / "two.ckpt")]
    assert main([*command, "--rank", "0", "--target", str(tmp_path / "fetched")]) == 0
    file = str(tmp_path / "fetched" / "rank_0" / "checkpoint_0.ckpt")
    with pytest.raises(ReshardError, match="OneRankOfSeveral"):
        mindspore.transform_checkpoint_by_rank(0, {0: file}, str(tmp_path / "out.ckpt"))


@pytest.mark.parametrize(
    ("ranks", "devices", "reason"),
    [
        ([0], 1, "OneRankOfSeveral"),
        ([0], None, "OneRankOfSeveral"),
        ([0, 1], 2, "SourceRanksMismatch"),
        ([2, 3], 2, "SourceRanksMismatch"),
        ([0, 1, 2, 3], 4, None),
    ],
)
def test_files_of_some_ranks_are_not_a_whole_checkpoint(
    tmp_path: Path, ranks: list[int], devices: int | None, reason: str | None
) -> None:
    for rank in range(4):
        (tmp_path / f"rank_{rank}").mkdir()
        (tmp_path / f"rank_{rank}" / "net-1_10.ckpt").write_bytes(rawfiles.ckpt({"w": np.arange(4, dtype=np.float32) + rank}))
    strategy = None
    if devices is not None:
        strategy = str(tmp_path / "strategy.ckpt")
        (tmp_path / "strategy.ckpt").write_bytes(
            dump(StrategyFile("x", {0: {"w": Layout((devices,), ((0,) if devices > 1 else (),))}}), "protobuf")
        )
    files = [str(tmp_path / f"rank_{rank}" / "net-1_10.ckpt") for rank in ranks]

    def transform() -> None:
        mindspore.transform_checkpoint_by_rank(0, dict(enumerate(files)), str(tmp_path / "out.ckpt"), strategy)

    if reason is None:
        transform()
    else:
        with pytest.raises(ReshardError, match=reason):
            transform()
