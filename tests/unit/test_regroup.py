"""JSON strategies of MindSpore's compiler, which split a dimension that several device axes cut."""

from __future__ import annotations

import json
import time
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rawfiles
from effort import examples
from hypothesis import given
from hypothesis import strategies as st

from reshard import Options, Request, transform_checkpoint
from reshard.errors import ReshardError
from reshard.layout import Layout
from reshard.layout.regroup import regrouped
from reshard.mindspore import merge_pipeline_strategys
from reshard.strategy import Strategy, StrategyFile, dump, parse

if TYPE_CHECKING:
    from pathlib import Path

# As MindSpore 2.10 compiles it: (16, 32), the first dimension cut by axes 2 and 0, the second by axis 1.
STATED = {"dev_matrix": [2, 2, 2], "tensor_map": [2, 0, 1], "tensor_shape": [2, 8, 32], "field": 0}
TWIN = Layout((2, 2, 2), ((2, 0), (1,)))


def strategy(**layouts: dict[str, Any]) -> bytes:
    shard = {"opt_weight_shard_size": 0, "opt_weight_shard_step": 0}
    found = {name: shard | layout for name, layout in layouts.items()}
    nodes = {"Mul_multi": {"parallel_strategy": [], "stage": 0}}
    return json.dumps({"current_stage": 2, "parallel_layout_item": found, "parallel_strategy_item": nodes}).encode()


@examples(150)
@given(st.data())
def test_split_dimensions_are_joined_again(data: st.DataObject) -> None:
    matrix = tuple(data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4)))
    axes = data.draw(st.permutations(range(len(matrix))))
    ndim = data.draw(st.integers(1, 3))
    cuts: list[tuple[int, ...]] = [()] * ndim
    for axis in axes:
        at = data.draw(st.integers(0, ndim))
        if at < ndim:
            cuts[at] = (*cuts[at], axis)
    real = Layout(matrix, tuple(cuts))
    lengths, stated, split = [], [], []
    for dimension in real.tensor_map:
        parts = [matrix[-1 - axis] for axis in dimension]
        rest = data.draw(st.integers(2, 4))
        lengths.append(prod(parts) * rest)
        stated += [*parts[:-1], (parts[-1] if parts else 1) * rest]
        split += [(axis,) for axis in dimension] or [()]
    found = regrouped(Layout(matrix, tuple(split)), tuple(stated), tuple(lengths), sliced=False)
    if len(stated) == ndim:
        assert found is None  # nothing is split
    elif found is not None:  # several ways may fit the lengths; then none is taken
        assert (found.parts, found.cells) == (real.parts, real.cells)


@pytest.mark.parametrize(("shape", "sliced"), [((16, 32), False), ((4, 16), True)])
def test_mindspores_json_strategy_equals_its_protobuf_twin(shape: tuple[int, ...], sliced: bool) -> None:
    read = Strategy.from_files([parse(strategy(multi=STATED), "s.json")])
    assert read.layout(0, "multi", shape, sliced=sliced) == TWIN
    assert read.layout(0, "multi", (2, 8, 32), sliced=False).tensor_map == ((2,), (0,), (1,))


def test_strategies_that_cannot_be_regrouped_are_unchanged() -> None:
    layout = Layout((2, 2), ((1,), (0,)))
    assert regrouped(layout, (2, 8), (16,), sliced=False) == Layout((2, 2), ((1, 0),))
    assert regrouped(layout, (4, 8), (32,), sliced=False) is None  # its parts would not be contiguous
    assert regrouped(layout, (2, 8), (15,), sliced=False) is None
    assert regrouped(layout, (2, 8, 1), (16,), sliced=False) is None


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_checkpoint_is_sliced_as_by_the_protobuf_twin(side: str, tmp_path: Path) -> None:
    whole = np.arange(16 * 32, dtype=np.float32).reshape(16, 32)
    (tmp_path / "s.json").write_bytes(strategy(multi=STATED))
    (tmp_path / "s.ckpt").write_bytes(dump(StrategyFile("x", {0: {"multi": TWIN}}), "protobuf"))
    for rank in range(8):
        content = rawfiles.ckpt({"multi": np.ascontiguousarray(whole[TWIN.box((16, 32), rank).slices()])})
        (tmp_path / "src" / f"rank_{rank}").mkdir(parents=True)
        (tmp_path / "src" / f"rank_{rank}" / f"net{rank}.ckpt").write_bytes(content)
    (tmp_path / "whole.ckpt").write_bytes(rawfiles.ckpt({"multi": whole}))
    for form in ("json", "ckpt"):
        name, target = str(tmp_path / f"s.{form}"), str(tmp_path / form)
        if side == "source":
            transform_checkpoint(Request(str(tmp_path / "src"), target, source_strategy=name))
        else:
            transform_checkpoint(Request(str(tmp_path / "whole.ckpt"), target, target_strategy=name))
    made, twins = (sorted((tmp_path / form).rglob("*_*/*.ckpt")) for form in ("json", "ckpt"))
    assert len(made) == (1 if side == "source" else 8)
    assert [path.read_bytes() for path in made] == [path.read_bytes() for path in twins]


def test_an_index_keeps_the_shapes(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_bytes(strategy(multi=STATED))
    whole = np.arange(16 * 32, dtype=np.float32).reshape(16, 32)
    (tmp_path / "whole.ckpt").write_bytes(rawfiles.ckpt({"multi": whole}))
    request = Request(str(tmp_path / "whole.ckpt"), str(tmp_path / "index"), target_strategy=str(tmp_path / "s.json"))
    transform_checkpoint(Request(request.source, request.target, None, request.target_strategy, options=Options(output="Index")))
    transform_checkpoint(Request(request.source, str(tmp_path / "out"), index=request.target))
    found = rawfiles.read_ckpt((tmp_path / "out" / "rank_5" / "checkpoint_5.ckpt").read_bytes())["multi"]
    assert found.tolist() == whole[TWIN.box((16, 32), 5).slices()].tolist()


def test_a_shape_that_cannot_be_joined_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_bytes(strategy(multi=STATED | {"tensor_shape": [4, 4, 32]}))
    (tmp_path / "whole.ckpt").write_bytes(rawfiles.ckpt({"multi": np.zeros((16, 32), np.float32)}))
    request = Request(str(tmp_path / "whole.ckpt"), str(tmp_path / "out"), target_strategy=str(tmp_path / "s.json"))
    with pytest.raises(ReshardError, match=r"LayoutRankMismatch: parameter multi.*protobuf form"):
        transform_checkpoint(request)
    with pytest.raises(
        ReshardError, match=r"StrategyInvalid: s: parameter multi: the shape has 2 dimensions, but the tensor map has 3"
    ):
        parse(strategy(multi=STATED | {"tensor_shape": [16, 32]}), "s")


@pytest.mark.parametrize("whole", [(32, 32), (16, 64), (8, 32)])
def test_a_strategy_for_another_shape_is_refused(tmp_path: Path, whole: tuple[int, ...]) -> None:
    """For example that of another network, or one that shards a parameter that each rank has saved whole."""
    path, layout = tmp_path / "s.json", Layout((2, 2), ((1,), ()))
    path.write_bytes(strategy(w={"dev_matrix": [2, 2], "tensor_map": [1, -1], "tensor_shape": [16, 32], "field": 0}))
    (tmp_path / "whole.ckpt").write_bytes(rawfiles.ckpt({"w": np.zeros(whole, np.float32)}))
    for rank in range(4):
        (tmp_path / "ranks" / f"rank_{rank}").mkdir(parents=True)
        content = rawfiles.ckpt({"w": np.zeros(layout.box(whole, rank).shape, np.float32)})
        (tmp_path / "ranks" / f"rank_{rank}" / f"x_{rank}.ckpt").write_bytes(content)
    target = str(tmp_path / "out")
    for request in (
        Request(str(tmp_path / "ranks"), target, source_strategy=str(path)),
        Request(str(tmp_path / "whole.ckpt"), target, target_strategy=str(path)),
    ):
        with pytest.raises(ReshardError, match=r"StrategyShapeMismatch: parameter w: .* shape \[16, 32\]"):
            transform_checkpoint(request)


def test_shapes_survive_a_merge_as_mindspores_compiler_needs_them(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "stage0.json").write_bytes(strategy(multi=STATED))
    merge_pipeline_strategys(str(tmp_path / "stages"), str(tmp_path / "merged.json"))
    assert json.loads((tmp_path / "merged.json").read_bytes())["parallel_layout_item"]["multi"]["tensor_shape"] == [2, 8, 32]


def test_a_malicious_number_of_dimensions_is_refused_quickly() -> None:
    started = time.process_time()
    assert regrouped(Layout((2,), ((),) * 32), (1,) * 32, (1,) * 16, sliced=True) is None
    assert time.process_time() - started < 1
