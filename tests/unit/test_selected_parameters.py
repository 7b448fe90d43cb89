"""Parameters that patterns select, by every output and every source."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import disk
import models
import numpy as np
import pytest
import rawfiles
from effort import examples
from hypothesis import given
from hypothesis import strategies as st
from memory_tasks import task, written
from pipelines import Pipeline, pipeline, write

import reshard
from reshard.cli import main
from reshard.errors import MissingInputError, RequestError, UsageError
from reshard.plan.rules import excluded_by
from reshard.spec.request import Options, Request
from reshard.spec.rules import RenameRule

if TYPE_CHECKING:
    from pathlib import Path

MANIFEST = "reshard-manifest.json"
TEXTS = st.text("ab*", min_size=1, max_size=5)


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return found


def is_selected(name: str, include: list[str], exclude: list[str]) -> bool:
    def matches(patterns: list[str]) -> bool:
        return any(re.fullmatch(".*".join(map(re.escape, p.split("*"))), name, re.DOTALL) for p in patterns)

    return (not include or matches(include)) and not matches(exclude)


@given(st.lists(st.text("ab", max_size=6), unique=True), st.lists(TEXTS, max_size=2), st.lists(TEXTS, max_size=2))
def test_include_applies_before_exclude(names: list[str], include: list[str], exclude: list[str]) -> None:
    expected = [name for name in names if not is_selected(name, include, exclude)]
    assert list(excluded_by(names, include, exclude)) == expected


@examples(300)
@given(model=models.models(), data=st.data())
def test_every_rank_gets_exactly_the_selected_parameters(model: models.Model, data: st.DataObject) -> None:
    names = [tensor.name for tensor in model.tensors]
    patterns = st.lists(st.sampled_from([*names, *(name[:2] + "*" for name in names)]), max_size=2)
    include, exclude = data.draw(patterns), data.draw(patterns)
    left = {name for name in names if is_selected(name, include, exclude)}
    if names and not left:
        with pytest.raises(RequestError, match="NothingToWrite"):
            task(model, "ckpt", "safetensors", include=tuple(include), exclude=tuple(exclude))
        return
    made, _ = task(model, "ckpt", "safetensors", include=tuple(include), exclude=tuple(exclude))
    assert set(made.model.excluded) == set(names) - left
    rank = data.draw(st.integers(0, model.target_ranks - 1))
    expected = {name: array for name, array in model.target(rank).items() if name in left}
    assert rawfiles.same(rawfiles.read("safetensors", written(made, rank)), expected)


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
@pytest.mark.parametrize("output", ["PerRank", "Unified", "Same", "Index"])
def test_every_output_omits_excluded_parameters(tmp_path: Path, output: Any, kind: str) -> None:
    made = disk.write(tmp_path / "made", disk.example(), kind)
    source = None if output == "Same" else str(made.source_strategy)
    target = str(made.target_strategy) if output in ("PerRank", "Index") else None
    options = Options(output=output, exclude=("m*", "b"))
    result = reshard.transform_checkpoint(Request(str(made.source), str(tmp_path / "t"), source, target, options))
    assert result.complete
    found = manifest(tmp_path / "t")
    assert found["excluded"] == ["m", "b"]
    assert disk.parameters_of(found).keys() == {"w", "step"}
    for path in tmp_path.glob("t/**/*.[cs][ka]*"):
        assert rawfiles.read(path.suffix[1:], path.read_bytes()).keys() <= {"w", "step"}
    if output == "Index":
        index = str(tmp_path / "t")
        assert reshard.load(str(made.source), rank=2, index=index).keys() == {"w", "step"}
        with pytest.raises(UsageError, match="exclude: the index already defines it"):
            reshard.load(str(made.source), rank=2, index=index, exclude=("w",))
    again = reshard.transform_checkpoint(Request(str(made.source), str(tmp_path / "t"), source, target, options))
    assert again.bytes_written == 0


def test_an_individual_file_and_a_load_omit_them_too(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(rawfiles.safetensors({name: np.arange(4, dtype=np.int8) for name in ("net.a", "net.b", "adam.a")}))
    assert reshard.load(str(path), include=("net.*",), exclude=("*.b",)).keys() == {"net.a"}
    assert main(["convert", str(path), str(tmp_path / "out"), "--format", "ckpt", "--exclude", "adam.*"]) == 0
    assert rawfiles.read("ckpt", (tmp_path / "out" / "model.ckpt").read_bytes()).keys() == {"net.a", "net.b"}


def test_a_target_strategy_may_name_what_is_excluded_but_nothing_else(tmp_path: Path) -> None:
    made = disk.write(tmp_path / "made", disk.example())
    sides = (str(made.source), str(tmp_path / "t"), str(made.source_strategy), str(made.target_strategy))
    for exclude in ((), ("m",)):
        options = Options(rename=(RenameRule("v", name="w"),), exclude=exclude)
        with pytest.raises(MissingInputError, match=r"ParameterMissing.*no source file contains: w;"):
            reshard.plan_transform(Request(*sides, options))
    exchanged = (RenameRule("m", name="w"), RenameRule("w", name="m"))  # what the strategy calls w is excluded
    plan = reshard.plan_transform(Request(*sides, Options(rename=exchanged, exclude=("m",))))
    assert plan.summary.excluded == ("m",)
    assert plan.notes == ("--include and --exclude omit 1 parameter: m",)


def test_two_parameters_may_have_one_new_name_if_one_is_excluded(tmp_path: Path) -> None:
    made = disk.write(tmp_path / "made", disk.example())
    rename = (RenameRule("x", name="w"), RenameRule("x", name="m"))
    options = Options(rename=rename, exclude=("m",))
    request = Request(str(made.source), str(tmp_path / "t"), str(made.source_strategy), options=options)
    assert {p.name for p in reshard.plan_transform(request).planner.model.parameters} == {"x", "b", "step"}


def test_differing_copies_of_excluded_parameters_are_accepted(tmp_path: Path) -> None:
    made = disk.write(tmp_path / "made", disk.example())
    path = made.source / "rank_2" / "net-1_100.ckpt"
    tensors = rawfiles.read("ckpt", path.read_bytes())
    path.write_bytes(rawfiles.ckpt(tensors | {"step": tensors["step"] + 1}))
    assert disk.run(made, tmp_path / "t") == 65
    assert disk.run(made, tmp_path / "t", "--exclude", "step", "--verification", "full") == 0


def test_the_plan_and_the_transform_report_what_they_omit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = disk.write(tmp_path / "made", disk.example())
    options = ["--include", "*", "--exclude", "m", "--exclude", "b", "--exclude", "nobody.*"]
    arguments = made.arguments(tmp_path / "t", *options)
    for command in ("plan", "transform"):
        assert main([command, *arguments[1:]]) == 0
        shown = capsys.readouterr()
        assert "note: --include and --exclude omit 2 parameters: m, b" in shown.err
        assert "note: the pattern nobody.* matches no parameter" in shown.err
    assert main(["plan", *arguments[1:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["excluded_parameters"] == ["m", "b"]
    assert main(["plan", *arguments[1:]]) == 0
    assert re.search(r"excluded parameters +2\n", capsys.readouterr().out)


@pytest.mark.parametrize("options", [["--exclude", "*"], ["--include", "nobody"], ["--include", "w", "--exclude", "w"]])
@pytest.mark.parametrize("output", ["per-rank", "unified", "same", "index"])
def test_nothing_to_write(tmp_path: Path, output: str, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    made = disk.write(tmp_path / "made", disk.example())
    sides = [] if output == "same" else ["--source-strategy", str(made.source_strategy)]
    arguments = ["--source", str(made.source), *sides, "--target", str(tmp_path / "t"), "--output", output, *options]
    assert main(["transform", *arguments]) == 78
    assert "NothingToWrite" in capsys.readouterr().err
    assert not (tmp_path / "t").exists()


def test_other_patterns_are_another_transform(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = disk.write(tmp_path / "made", disk.example())
    assert disk.run(made, tmp_path / "t", "--exclude", "m") == 0
    assert disk.run(made, tmp_path / "t", "--exclude", "b") == 78
    assert "TargetExists" in capsys.readouterr().err
    assert disk.run(made, tmp_path / "t", "--exclude", "b", "--overwrite") == 0
    assert manifest(tmp_path / "t")["excluded"] == ["b"]


@pytest.fixture
def by_stage(tmp_path: Path) -> Pipeline:
    """A pipeline of two stages, of which both hold `step`, and one each `w0` and `w1` with their moments."""
    return write(tmp_path / "made", pipeline())


def test_the_last_stage_reports_a_pattern_that_matches_in_no_stage(
    by_stage: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--exclude", "*.w1", "--exclude", "nobody", "--exclude", "step"]
    assert by_stage.run(0, tmp_path / "t", *options) == 0
    assert "matches" not in capsys.readouterr().err
    assert by_stage.run(1, tmp_path / "t", *options) == 0
    shown = capsys.readouterr().err
    assert [line for line in shown.splitlines() if "matches" in line] == ["note: the pattern nobody matches no parameter"]
    found = manifest(tmp_path / "t")
    assert [part["unmatchedPatterns"] for part in found["stages"]] == [["nobody"]] * 2
    assert found["excluded"] == ["moment1.w1", "step"]


def test_a_stage_may_have_nothing_that_is_selected(by_stage: Pipeline, tmp_path: Path) -> None:
    for stage in (0, 1):
        assert by_stage.run(stage, tmp_path / "t", "--include", "*w0", whole=False) == 0
    assert disk.parameters_of(manifest(tmp_path / "t")).keys() == {"w0", "moment1.w0"}
    assert main(["verify", str(tmp_path / "t")]) == 0
