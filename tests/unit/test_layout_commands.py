"""`reshard layout show`, `check` and `export`: against slices that transforms write, and strategies that they read."""

from __future__ import annotations

import json
from math import prod
from typing import TYPE_CHECKING, Any

import layout_example
import pytest
from language_models import names, tensors, write_dcp
from layout_example import LAYOUT, SHAPES
from safetensors.numpy import load_file

from reshard.cli import main
from reshard.source.strategies import read_strategy

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with a checkpoint of whole parameters and a layout file."""
    layout_example.write(tmp_path)
    return tmp_path


@pytest.fixture
def printed(work: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return what a command prints, which must return this code."""

    def run(*words: str, code: int = 0, source: str = "model.safetensors") -> tuple[str, str]:
        more = ["--checkpoint", str(work / source)] if words[0] != "show" else []
        assert main(["layout", words[0], str(work / "layout.yaml"), *more, *words[1:]]) == code
        return tuple(capsys.readouterr())

    return run


def test_a_layout_file_is_shown_without_a_checkpoint(printed: Any) -> None:
    text, _ = printed("show")
    for part in ("8: 2 pipeline stages of 4 ranks", "dp=2, tp=2", "dim 1 by tp", "no zero", "at least 128 bytes"):
        assert part in text
    grid = [line.split() for line in text.splitlines() if line.startswith("dp ")]
    assert grid == [["dp", "0", "0", "1"], ["dp", "1", "2", "3"]]
    found = json.loads(printed("show", "--json")[0])
    assert found["stages"] == [{"ranks": "0-3", "layers": "0-1"}, {"ranks": "4-7", "layers": "2-3"}]
    assert found["layout"]["rules"][0] == {"match": "layers.*.wo", "shard": {"1": "tp"}}


def test_every_field_is_shown(work: Path, printed: Any) -> None:
    (work / "layout.yaml").write_text(
        """
apiVersion: reshard.dev/layout-v1
mesh: dp=32,tp=32
expertMesh: edp=128,ep=8
aliases: {all: [dp, tp], none: []}
zero: {axes: dp}
uneven: true
derive: {sourceMesh: "dp=2,tp=4", sourceExpertMesh: "edp=4,ep=2", experts: experts.*, replicated: dp, unsharded: ["*norm*"]}
rules:
- {match: experts.*, shard: {0: ep}, zero: {size: 2}, uneven: false}
- {match: [a.*, b.*], shard: {1: tp}, order: [tp, dp]}
"""
    )
    text, _ = printed("show")
    for part in ("edp=128, ep=8", "dp x tp", "no axes", "dim 0 of every parameter by dp", "torch.chunk", "dp=2,tp=4", "ep 7"):
        assert part in text
    for part in ("experts.* by the mesh edp=4,ep=2", "no parameter by dp", "zero does not divide: *norm*"):
        assert part in text
    for part in ("among 2 ranks", "even", "order tp, dp", "a.*, b.*", "tp 15", ".."):
        assert part in text
    assert "tp 16" not in text


def test_a_check_reports_what_a_transform_writes(work: Path, printed: Any) -> None:
    found = json.loads(printed("check", "--json")[0])
    assert [(d["rule"], len(d["names"]), d["parts"], d["optimizer_shards"]) for d in found["divisions"]] == [
        (1, 4, [2, 2], 2),
        (2, 5, [4, 1], 2),
        (3, 1, [1, 1], 1),
        (4, 1, [1], 1),
    ]
    source, layout = str(work / "model.safetensors"), str(work / "layout.yaml")
    assert main(["transform", "--source", source, "--target", str(work / "out"), "--target-strategy", layout]) == 0
    sizes = []
    for rank in range(8):
        arrays = load_file(work / "out" / f"rank_{rank}" / f"checkpoint_{rank}.safetensors")
        sizes.append(sum(array.nbytes for array in arrays.values()))
        for division in found["divisions"]:
            here = [arrays[name].nbytes for name in division["names"] if name in arrays]
            assert sum(here) <= division["bytes"]
            assert set(here) <= {4 * prod(division["shape"]) // prod(division["parts"])}
    stages = [sizes[:4], sizes[4:]]
    assert [(s["min_bytes"], s["max_bytes"]) for s in found["stages"]] == [(min(s), max(s)) for s in stages]
    assert (found["min_bytes"], found["max_bytes"]) == (min(sizes), max(sizes))
    assert found["imbalance"] == pytest.approx(max(sizes) * 8 / sum(sizes))
    text, _ = printed("check")
    assert "dim 1 by tp, dim 0 by zero /2" in text
    assert "8 ranks of 276 B to 836 B; the largest is 1.50 times the mean" in text


def test_a_check_accepts_slices_of_the_same_layout_as_a_source(work: Path, printed: Any) -> None:
    source, layout = str(work / "model.safetensors"), str(work / "layout.yaml")
    assert main(["transform", "--source", source, "--target", str(work / "out"), "--target-strategy", layout]) == 0
    printed("show")
    whole = json.loads(printed("check", "--json")[0])
    sliced = json.loads(printed("check", "--json", "--source-strategy", layout, source="out")[0])
    for each in (whole, sliced):
        each["divisions"] = [d | {"names": sorted(d["names"])} for d in each["divisions"]]
    assert sliced == whole


def test_a_check_names_every_parameter_without_a_rule(work: Path, printed: Any) -> None:
    rules = "".join(line for line in LAYOUT.splitlines(keepends=True) if "layers.*." not in line or "pipeline" in line)
    (work / "layout.yaml").write_text(rules.replace("- {match: layers.*, shard: {0: tp}}", "- {match: lm_head}"))
    text, error = printed("check", code=78)
    missing = ["layers.*.wq", "layers.*.wo"]
    for output in (text, error):
        assert [name for name in missing if name not in output] == []
    assert "ParameterUnmatched" in error
    assert "rule 1 (lm_head) matches no parameter" in text
    document = json.loads(printed("check", "--json", code=78)[0])
    assert document["error"]["reason"] == "ParameterUnmatched"
    assert all(name in document["error"]["message"] for name in missing)


def test_uneven_slices_are_counted_exactly(work: Path, printed: Any) -> None:
    (work / "layout.yaml").write_text(
        "apiVersion: reshard.dev/layout-v1\nmesh: dp=3\nuneven: true\nrules: [{match: '*', shard: {0: dp}}]\n"
    )
    found = json.loads(printed("check", "--json")[0])
    expected = [4]  # `step`, which every rank holds
    expected *= 3
    for name, shape in SHAPES.items():
        if name != "step":
            for rank, rows in enumerate((-(-shape[0] // 3), -(-shape[0] // 3), shape[0] - 2 * -(-shape[0] // 3))):
                expected[rank] += 4 * rows * prod(shape[1:])
    assert (found["min_bytes"], found["max_bytes"]) == (min(expected), max(expected))


@pytest.mark.parametrize("form", ["protobuf", "json"])
def test_exported_strategies_lead_to_the_same_slices(form: str, work: Path, printed: Any) -> None:
    out = work / "strategies"
    text, _ = printed("export", "-o", str(out), "--form", form)
    extension = {"protobuf": "ckpt", "json": "json"}[form]
    assert [path.name for path in sorted(out.iterdir())] == [f"stage_0.{extension}", f"stage_1.{extension}"]
    assert f"stage_1.{extension}: 5 parameters" in text
    strategy = read_strategy(str(out))
    assert [len(stage) for stage in strategy.stages] == [6, 5]
    source = str(work / "model.safetensors")
    for name in ("layout.yaml", "strategies"):
        arguments = ["--source", source, "--target", str(work / f"from_{name}"), "--target-strategy", str(work / name)]
        assert main(["transform", *arguments]) == 0
    for rank in range(8):
        path = f"rank_{rank}/checkpoint_{rank}.safetensors"
        one, other = (load_file(work / f"from_{name}" / path) for name in ("layout.yaml", "strategies"))
        assert {n: a.tobytes() for n, a in one.items()} == {n: a.tobytes() for n, a in other.items()}


def test_an_export_replaces_no_other_strategy(work: Path, printed: Any) -> None:
    out = work / "strategies"
    printed("export", "-o", str(out))
    printed("export", "-o", str(out))  # the same files
    (out / "notes.txt").write_text("hello")
    printed("export", "-o", str(out))
    (out / "stage_2.ckpt").write_bytes(b"of an earlier run")
    _, error = printed("export", "-o", str(out), code=2)
    assert "FileExists" in error
    (out / "stage_2.ckpt").rename(out / "stage_1.ckpt")
    printed("export", "-o", str(out), code=2)
    assert (out / "stage_1.ckpt").read_bytes() == b"of an earlier run"


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("counts: [4, 0]", "", "StageWithoutParameters"),
        ("layers: 4", "uneven: true\nmesh: pp=2,dp=1,tp=3", "LayoutUneven"),
        ("- {match: norm, stage: last}", "", "ParameterUnmatched"),
    ],
)
def test_what_strategy_files_cannot_describe_is_refused(before: str, after: str, reason: str, work: Path, printed: Any) -> None:
    text = LAYOUT
    if reason == "StageWithoutParameters":
        text = text.replace("layers: 4", before).replace("stage: last", "stage: first")
    elif reason == "LayoutUneven":
        text = text.replace("mesh: pp=2,dp=2,tp=2", "mesh: pp=2,dp=1,tp=3").replace("zero: {threshold: 128}", "uneven: true")
    else:
        text = text.replace(before, after)
    (work / "layout.yaml").write_text(text)
    _, error = printed("export", "-o", str(work / "strategies"), code=78)
    assert reason in error
    assert not (work / "strategies").exists()


def test_even_divisions_are_exported_although_uneven_ones_are_permitted(work: Path, printed: Any) -> None:
    (work / "layout.yaml").write_text(LAYOUT.replace("zero: {threshold: 128}", "uneven: true"))
    printed("export", "-o", str(work / "strategies"))
    assert read_strategy(str(work / "strategies")).stages[0]["layers.0.wq"].parts == (2, 1)


def test_a_distributed_checkpoint_is_checked_without_a_strategy(work: Path, printed: Any) -> None:
    write_dcp(work / "dcp", tensors(names("torchtitan-qwen3", "huggingface", 2)))
    (work / "layout.yaml").write_text(
        "apiVersion: reshard.dev/layout-v1\nmesh: dp=2,tp=2\nzero: {axes: dp}\nstate: [optimizer.state.*.exp_avg]\n"
        "rules: [{match: ['*.wq.*', '*.wk.*', '*.wv.*'], shard: {0: tp}}, {match: '*'}]\n"
    )
    found = json.loads(printed("check", "--json", source="dcp")[0])
    assert [(d["axes"], d["parts"]) for d in found["divisions"] if d["rule"] == 1] == [([["tp", "dp"], []], [4, 1])] * 3
    assert {d["rule"] for d in found["divisions"]} == {1, 2}


SOURCE = (
    "mesh: dp=2,tp=2\nstate: [adam_m.]\nrules: [{match: '*.wo', shard: {1: tp}}, {match: layers.*, shard: {0: tp}}, {match: '*'}]"
)
STAGES = "{layer: layers.*., layers: 4}\nstate: [adam_m.]"


@pytest.mark.parametrize(
    ("target", "more", "reason"),
    [
        ("mesh: tp=2\nrules: [{match: layers.*, shard: {0: tp}}, {match: '*'}]", [], None),
        ("mesh: tp=2\nrules: [{match: '*', shard: {0: tp}}]", [], "RuleNotApplicable"),  # the strategy does not name `norm`
        ("mesh: tp=2\nrules: [{match: '*', shard: {0: tp}}]", ["--exclude", "norm"], None),
        ("mesh: tp=2\nrules: [{match: layers.*, shard: {0: tp}}]", [], "ParameterUnmatched"),
        ("mesh: tp=3\nrules: [{match: layers.*, shard: {0: tp}}, {match: '*'}]", [], "LayoutDoesNotDivide"),
        (f"mesh: pp=2,tp=1\npipeline: {STAGES}\nrules: [{{match: '*'}}]", [], "LayerStageUnknown"),
        (f"mesh: pp=2,tp=1\npipeline: {STAGES}\nrules: [{{match: e*, stage: 0}}, {{match: '*'}}]", ["--exclude", "*.3.*"], None),
        ("mesh: dp=1,tp=4\nderive: {sourceMesh: 'dp=2,tp=2', replicated: dp}", [], None),
        ("mesh: dp=1,tp=4\nderive: {sourceMesh: 'dp=2,tp=2'}", [], "LayoutAmbiguous"),
        ("mesh: dp=1,tp=3\nderive: {sourceMesh: 'dp=2,tp=2', replicated: dp}", [], "LayoutDoesNotDivide"),
        ("mesh: dp=1,tp=4\nderive: {sourceMesh: 'dp=2,tp=4'}", [], "MeshMismatch"),
    ],
)
def test_a_check_and_a_transform_accept_the_same_layouts(
    target: str, more: list[str], reason: str | None, work: Path, printed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = work / "layout.yaml"
    layout.write_text(f"apiVersion: reshard.dev/layout-v1\n{SOURCE}\n")
    whole, strategy, source = str(work / "model.safetensors"), str(work / "strategy"), str(work / "source")
    assert main(["transform", "--source", whole, "--target", source, "--target-strategy", str(layout)]) == 0
    printed("export", "-o", strategy, "--exclude", "norm")
    layout.write_text(f"apiVersion: reshard.dev/layout-v1\n{target}\n")
    arguments = ["--source-strategy", strategy, *more]
    status = main(["transform", "--source", source, "--target", str(work / "out"), "--target-strategy", str(layout), *arguments])
    written = capsys.readouterr().err
    assert (f"reshard: {reason}: " in written) == (status != 0) == (reason is not None), written
    _, checked = printed("check", *arguments, code=status, source="source")
    messages = [[line for line in text.splitlines() if line.startswith("reshard: ")] for text in (written, checked)]
    assert messages[0] == messages[1]


@pytest.mark.parametrize("words", [["show"], ["check"], ["export", "-o", "out"]])
@pytest.mark.parametrize("content", [b"\x0a\x03abc", b"mesh: dp=2\n", b'{"current_stage": 0}'])
def test_another_file_is_no_layout_file(words: list[str], content: bytes, work: Path, printed: Any) -> None:
    (work / "layout.yaml").write_bytes(content)
    _, error = printed(*words, code=2)
    assert ("NotYaml" if content.startswith(b"\n\x03") else "InvalidLayoutFile") in error
