"""MindSpore's functions, ours of the same names, and their results."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from transforms import COUNT, make

import reshard.mindspore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MERGED = [
    (case.number, side)
    for case in map(make, range(COUNT))
    for side in ("source", "target")
    if getattr(case, f"{side}_stages") > 1
]


def test_signatures_are_mindspores(oracle: Callable[..., Any]) -> None:
    names = reshard.mindspore.__all__
    ours = {}
    for name in names:
        parameters = inspect.signature(getattr(reshard.mindspore, name)).parameters.values()
        ours[name] = [[p.name, str(p.kind), None if p.default is p.empty else repr(p.default)] for p in parameters]
    assert {name: _named(parameters) for name, parameters in oracle("signatures", *names).items()} == {
        name: _named(parameters) for name, parameters in ours.items()
    }


# MindSpore's other functions for checkpoints and strategies, and why they are not here.
LEFT_OUT = {
    "async_ckpt_thread_status": "training",
    "get_algo_parameters": "compiling",
    "load_checkpoint_async": "load_checkpoint, in a thread",
    "load_param_into_net": "of a network, and used here",
    "parameter_broadcast": "communication",
    "reset_algo_parameters": "compiling",
    "save_checkpoint": "training",
    "set_algo_parameters": "compiling",
    "set_op_strategy_config": "compiling",
    "sync_pipeline_shared_parameters": "communication",
    "transform_safetensors_by_rank": "in no documentation; transform_checkpoint_by_rank takes safetensors here",
    "transform_safetensors_by_stage": "in no documentation; transform_checkpoints takes safetensors here",
}


def test_every_function_of_mindspores_for_checkpoints_is_here_or_left_out_for_a_reason(oracle: Callable[..., Any]) -> None:
    assert set(oracle("exports")) == {*reshard.mindspore.__all__, *LEFT_OUT}


def test_slices_are_joined_as_by_mindspore_except_for_its_errors(oracle: Callable[..., Any], tmp_path: Path) -> None:
    theirs = oracle("merge", tmp_path / "made")
    whole = np.arange(32, dtype=np.uint32).reshape(8, 4)
    for name in ("rows", "shard"):
        slices = reshard.mindspore.load_checkpoint(str(tmp_path / "made" / f"{name}.safetensors"), format="safetensors")
        strategy = reshard.mindspore.build_searched_strategy(str(tmp_path / "made" / f"{name}.ckpt"))
        ours = reshard.mindspore.merge_sliced_parameter([slices[str(rank)] for rank in range(4)], strategy)
        assert (ours.shape, ours.view(np.uint32).tolist()) == ((8, 4), whole.tolist())
    assert theirs["rows"] == [[8, 4], whole.tolist()]
    assert theirs["shard"][0] == [4, 4]  # half of it is lost


def _named(parameters: list[list[Any]]) -> list[list[Any]]:
    """The kind without what Python's version writes around it."""
    return [[name, kind.rpartition(".")[2], default] for name, kind, default in parameters]


def test_the_ranks_to_restore_from_are_those_that_mindspore_names(oracle: Callable[..., Any], tmp_path: Path) -> None:
    files = [str(tmp_path / f"{ranks}.pb") for ranks in ("0", "0-2", "7-3-16383")]
    assert oracle("groups", *files) == {file: reshard.mindspore.restore_group_info_list(file) for file in files}


def test_mindspore_reads_the_strategies_that_we_merge_as_its_own(
    oracle: Callable[..., Any], transformed: Callable[[int], Path], tmp_path: Path
) -> None:
    pairs = []
    for number, side in MERGED[::4]:
        folder, kind = transformed(number), "json" if make(number).json else "ckpt"
        ours = tmp_path / f"{number}-{side}.{kind}"
        reshard.mindspore.merge_pipeline_strategys(str(folder / f"{side}_stages"), str(ours))
        pairs.append((str(folder / f"{side}_strategy.{kind}"), str(ours)))
    assert len(pairs) > 20
    found = oracle("layouts", *(path for pair in pairs for path in pair))
    assert {ours: found[ours] for _, ours in pairs} == {ours: found[theirs] for theirs, ours in pairs}


@pytest.mark.parametrize(("number", "side"), MERGED)
def test_a_merged_strategy_equals_its_stages(number: int, side: str, transformed: Callable[[int], Path], tmp_path: Path) -> None:
    folder, kind = transformed(number), "json" if make(number).json else "ckpt"
    stages, merged = folder / f"{side}_stages", folder / f"{side}_strategy.{kind}"
    ours, again = tmp_path / f"ours.{kind}", tmp_path / f"again.{kind}"
    reshard.mindspore.merge_pipeline_strategys(str(stages), str(ours))
    one = tmp_path / "one"
    one.mkdir()
    (one / merged.name).write_bytes(merged.read_bytes())
    reshard.mindspore.merge_pipeline_strategys(str(one), str(again))
    assert reshard.source.strategies.read_strategy(str(ours)) == reshard.source.strategies.read_strategy(str(again))
