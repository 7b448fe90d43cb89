"""Strategies of MindSpore's compiler, from the compiler to a network that has loaded the checkpoint that they describe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from compiling import DRAWS, TRANSFORMS, Draw
from definition import held
from mindspore_program import run
from record import CORPUS, RECORDED

from reshard import Request, transform_checkpoint
from reshard.strategy import parse

if TYPE_CHECKING:
    from reshard.layout.box import Box

HERE = Path(__file__).parent


def elements(shape: tuple[int, ...], box: Box) -> np.ndarray:
    """The flat indexes of a box, by numpy."""
    whole = np.arange(int(np.prod(shape))).reshape(shape)
    return whole[tuple(slice(start, start + length) for start, length in zip(box.start, box.shape, strict=True))]


@pytest.mark.parametrize("draw", DRAWS, ids=lambda draw: str(draw.seed))
def test_every_rank_holds_the_defined_slices_of_random_parameters(draw: Draw, compiled: Path) -> None:
    path = compiled / "draws" / f"{draw.seed}.ckpt"
    ((_, layouts),) = parse(path.read_bytes(), path.name).stages.items()
    assert layouts.keys() == {drawn.name for drawn in draw.parameters}
    for drawn in draw.parameters:
        slices = held(drawn.shape, drawn.expected(draw.setting))
        assert len(slices) == layouts[drawn.name].devices
        for rank, expected in enumerate(slices):
            found = elements(drawn.shape, layouts[drawn.name].box(drawn.shape, rank))
            assert np.array_equal(found, expected), (drawn, rank)


def test_random_parameters_differ_in_relevant_attributes() -> None:
    drawn = [(parameter, parameter.expected(draw.setting)) for draw in DRAWS for parameter in draw.parameters]
    assert len(drawn) > 400
    assert 50 < sum(cut.size != 0 for _, cut in drawn) < len(drawn) - 50


def test_mindspore_merges_slices_of_random_parameters_by_the_strategies_that_it_compiled(compiled: Path) -> None:
    run(HERE / "running.py", "merge", compiled)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_network_outputs_the_same_from_a_transformed_checkpoint(
    name: str, compiled: Path, outputs: dict[str, list[list[float]]]
) -> None:
    expected = json.loads((compiled / "outputs.json").read_text())[name.partition("/")[0]]
    assert outputs[name] == expected
    assert len({number for row in expected for number in row}) > 100


def test_both_forms_of_a_strategy_lead_to_the_same_files(compiled: Path, tmp_path: Path) -> None:
    experts = compiled / "experts"
    for form in ("ckpt", "json"):
        before, after = (str(experts / f"{layout}.{form}") for layout in ("src", "dst"))
        transform_checkpoint(Request(str(experts / "src_checkpoints"), str(tmp_path / form), before, after))
    for rank in range(4):
        found, expected = (tmp_path / form / f"rank_{rank}" / f"checkpoint_{rank}.safetensors" for form in ("json", "ckpt"))
        assert found.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("name", RECORDED)
def test_the_compiler_still_writes_the_recorded_strategy(name: str, compiled: Path) -> None:
    stages = [parse(path.read_bytes(), name).stages for path in (CORPUS / name, compiled / RECORDED[name])]
    assert stages[0] == stages[1]
