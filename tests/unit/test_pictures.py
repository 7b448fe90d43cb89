"""The pictures of a plan: their numbers are the plan's, and their size has a bound."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import disk
import models
import pytest
from effort import examples
from hypothesis import given
from hypothesis import strategies as st
from memory_tasks import task

from reshard.checkpoint.dtypes import DTYPES
from reshard.checkpoint.inventory import Inventory, SourceFile, Structure, TensorEntry
from reshard.cli import console, main
from reshard.layout import Layout
from reshard.pictures import characters, svg
from reshard.pictures.picture import picture_of
from reshard.pictures.sharding import sharding_of
from reshard.pictures.traffic import count_traffic
from reshard.plan import Planner, build_model
from reshard.strategy import Strategy

if TYPE_CHECKING:
    from pathlib import Path

TAGS = {"svg", "title", "desc", "style", "g", "rect", "line", "text"}
SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "a</title><script>\x00\x1b[2J\u202e\ud800&\"'\uffff" + "x" * 5000


@examples(100)
@given(models.models(24), st.integers(1, 9), st.data())
def test_the_bytes_between_ranks_are_those_of_the_plans(model: models.Model, most: int, data: st.DataObject) -> None:
    planner = task(model, "safetensors", "safetensors")[0].planner
    ranks = sorted(data.draw(st.sets(st.integers(0, model.target_ranks - 1), min_size=1)))
    expected = Counter[tuple[int, int]]()
    traffic = count_traffic(planner, ranks, most)
    for column, group in enumerate(traffic.target.groups):
        for tensor in (tensor for rank in group for tensor in planner.plan(rank).tensors):
            for source, part in zip(tensor.ranks, tensor.geometry.overlaps, strict=True):
                row = next(i for i, found in enumerate(traffic.source.groups) if source in found)
                expected[row, column] += part.target.size * DTYPES[tensor.parameter.dtype].itemsize
    assert dict(traffic.nbytes) == {pair: nbytes for pair, nbytes in expected.items() if nbytes}
    assert [rank for group in traffic.target.groups for rank in group] == ranks
    assert max(len(traffic.source.groups), len(traffic.target.groups)) <= most
    assert sum(traffic.by_source) == sum(traffic.by_target) == sum(expected.values())


@examples(100)
@given(models.models(24), st.integers(1, 5))
def test_a_cell_of_a_picture_names_the_ranks_that_hold_it(model: models.Model, most: int) -> None:
    made = task(model, "safetensors", "safetensors")[0].model
    for parameter in made.parameters:
        drawn = sharding_of(made, parameter, most)
        after = parameter.target
        assert len(drawn.dimensions) == min(2, len(parameter.shape))
        for rank, cell in enumerate(after.cells):
            at = 0
            for dimension, edges in zip(drawn.dimensions, drawn.target.edges, strict=True):
                assert len(edges) - 1 <= most
                at = at * (len(edges) - 1) + sum(edge <= cell[dimension] for edge in edges) - 1
            assert parameter.target_stages[0] * made.target_devices + rank in drawn.target.ranks[at]
        shown = {*drawn.dimensions, *drawn.hidden}
        assert all(after.parts[i] == 1 for i in range(after.ndim) if i not in shown)


def large(name: str, ranks: int, target_ranks: int) -> Planner:
    """Every source rank feeds every group of target ranks."""
    before, after = Layout((ranks,), ((0,), ())), Layout((target_ranks,), ((), (0,)))
    entry = TensorEntry(name, "Float32", (4, target_ranks), ((0, 16 * target_ranks),))
    rows = Structure("safetensors", (entry, TensorEntry("b", "Int8", (target_ranks,), ((16 * target_ranks, target_ranks),))))
    files = tuple(SourceFile(rank, f"rank_{rank}/a-1_1.safetensors", 1, "", 0) for rank in range(ranks))
    whole = Layout((target_ranks,), ((0,),))
    strategies = [{name: before, "b": Layout((ranks,), ((0,),))}, {name: after, "b": whole}]
    return Planner(
        build_model(Inventory(files, (rows,)), Strategy((strategies[0],), ranks), Strategy((strategies[1],), target_ranks))
    )


@pytest.mark.parametrize(("source", "target"), [(1, 1), (1, 8), (16, 8), (96, 64), (256, 128)])
def test_any_size_gives_a_readable_picture(source: int, target: int) -> None:
    planner = large(HOSTILE, source, target)
    names = [parameter.name for parameter in planner.model.parameters]
    text = svg.draw(replace(picture_of(planner, range(target), names, svg.LIMITS), notes=(HOSTILE,)))
    assert len(text.encode()) < 1_000_000
    root = ET.fromstring(text)  # noqa: S314 - it is our own
    assert {found.tag.removeprefix(SVG) for found in root.iter()} <= TAGS
    assert root.find(f"{SVG}title").text == f"{source} → {target} ranks"
    height = float(root.attrib["height"])
    assert height < 2000
    for box in root.iter(f"{SVG}rect"):
        assert float(box.attrib["x"]) + float(box.attrib["width"]) <= 860
        assert float(box.attrib["y"]) + float(box.attrib["height"]) <= height
    printed = console.rendered(*characters.draw(picture_of(planner, range(target), names[:1], characters.LIMITS), 200))
    assert printed.count("\n") < 120
    assert "\x1b" not in printed


def test_sixteen_thousand_ranks_are_drawn() -> None:
    ranks = 16384
    before, after = Layout((128, 128), ((1,), ()), 1, 128), Layout((64, 256), ((1,), ()), 1, 256)
    entry = TensorEntry("w", "BFloat16", (1, 64), ((0, 128),))
    files = tuple(SourceFile(rank, f"rank_{rank}/a-1_1.safetensors", 128, "", 0) for rank in range(ranks))
    inventory = Inventory(files, (Structure("safetensors", (entry,)),))
    model = build_model(inventory, *(Strategy(({"w": layout},), ranks) for layout in (before, after)))
    picture = picture_of(Planner(model), range(ranks), ["w"], svg.LIMITS)
    text = svg.draw(picture)
    assert sum(picture.traffic.nbytes.values()) == ranks * 128
    assert "Each row is 256 source ranks, each column 256 target ranks." in text
    assert len(text) < 100_000


def test_the_command_writes_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = disk.write(tmp_path / "in", disk.example())
    arguments = ["plan", *made.arguments(tmp_path / "out")[1:]]
    assert main([*arguments, "--parameter", "w", "--parameter", "[bm]"]) == 0
    printed = capsys.readouterr().out
    assert "4 → 6 ranks" in printed
    assert "source: rows /4  " in printed
    assert "target: columns /6" in printed
    assert printed.index("\nw ") < printed.index("\nb ")
    picture = tmp_path / "a.svg"
    assert main([*arguments, "--svg", str(picture), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["target_ranks"] == 6
    assert "layout" not in picture.read_text()
    assert main([*arguments, "--parameter", "nothing"]) == 66
    capsys.readouterr()
    assert main([*arguments, "--picture", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["reason"] == "PictureInJson"
