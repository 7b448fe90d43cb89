"""`reshard inspect`: the relevant lines of its output."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rawfiles
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from reshard.checkpoint.manifest import Manifest, ParameterTable, decode
from reshard.cli import main
from reshard.cli.inspection import ListedParameter, merge_numbered
from reshard.errors import DataError
from reshard.source.cuts import recorded_strategy

CORPUS = Path(__file__).parents[1] / "conformance" / "corpus"
PARAMETER = ListedParameter("", "Float32", (4, 4), (2, 4), "rows /2", (0, 1), 32)


def lines(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """Return the cells of standard output, split at two spaces or more."""
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in capsys.readouterr().out.splitlines()]


def test_a_source_with_its_strategy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(CORPUS / "src_checkpoints"), "--strategy", str(CORPUS / "src_strategy.ckpt")]) == 0
    found = lines(capsys)
    for line in (
        ["ranks", "8 (0-7)"],
        ["step", "1875 of epoch 3"],
        ["parameters", "17"],
        ["elements", "682,017"],
        ["layer1.weight", "Float32", "784x512", "784x256", "columns /2, 4 replicas", "803 kB"],
        ["layer1.bias", "Float32", "512", "512", "whole, 8 replicas", "2.05 kB"],
        ["layer2.weight", "Float32", "512x512", "512x512", "whole, 8 replicas", "1.05 MB"],
        ["epoch_num", "Int64", "scalar", "scalar", "whole, in no strategy", "8 B"],
        ["0-7", "1.9 MB", "█" * 32],
        ["imbalance 1.00 (largest rank / mean)"],
    ):
        assert line in found


def test_a_pipeline_and_its_transformed_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, strategy = str(CORPUS / "pipeline" / "src"), str(CORPUS / "pipeline" / "src_strategy")
    assert main(["inspect", source, "--strategy", strategy]) == 0
    found = lines(capsys)
    assert ["pipeline", "2 stages of 4 ranks"] in found
    assert ["layers.1.weight", "Float32", "24x32", "6x32", "rows /2, optimizer /2", "4-7", "768 B"] in found
    assert ["layers.1.bias", "Float32", "32", "8", "optimizer /4", "4-7", "32 B"] in found
    assert ["imbalance 1.28 (largest rank / mean)"] in found
    out = str(tmp_path / "out")
    sides = ["--source", source, "--source-strategy", strategy, "--target-strategy", str(CORPUS / "pipeline/dst_strategy.ckpt")]
    assert main(["transform", *sides, "--target", out]) == 0
    capsys.readouterr()
    assert main(["inspect", out]) == 0
    found = lines(capsys)
    assert ["layers.0.weight", "Float32", "16x24", "4x24", "rows /4", "384 B"] in found
    assert ["elements", "3,625"] in found
    assert main(["inspect", out, "--json", "--parameter", "layers.0.*"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["complete"]
    assert [(p["name"], p["shape"], p["slice_shape"]) for p in document["parameters"]] == [
        ("layers.0.weight", [16, 24], [4, 24]),
        ("layers.0.bias", [24], [24]),
    ]


def test_parts_are_shown_as_the_checkpoint_that_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline, shown = CORPUS / "pipeline", {}
    sides = ["--source", str(pipeline / "src"), "--target-strategy", str(pipeline / "dst_strategy.ckpt")]
    strategies = [pipeline / "src_strategy", *sorted((pipeline / "src_strategy").iterdir())]
    for strategy, out, output in zip(strategies, ("whole", "stages", "stages"), ("per-rank", "stage", "stage"), strict=True):
        transform = ["transform", *sides, "--source-strategy", str(strategy), "--target", str(tmp_path / out)]
        assert main([*transform, "--output", output]) == 0
    capsys.readouterr()
    for out in ("whole", "stages"):
        assert main(["inspect", str(tmp_path / out)]) == 0
        shown[out] = {line[0]: line for line in lines(capsys) if line}
    for name in ("ranks", "parameters", "elements", "complete", "layers.0.weight", "layers.1.bias", "global_step"):
        assert shown["whole"][name] == shown["stages"][name]
    assert shown["stages"]["size"] == ["size", "18.8 kB in 8 files"]
    assert shown["stages"]["0-3"] == ["0-3", "4.69 kB", "█" * 32]
    assert main(["inspect", str(tmp_path / "stages"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [(f["rank"], f["path"]) for f in document["files"][:2]] == [(0, f"rank_0/checkpoint_0_part{n}.ckpt") for n in (0, 1)]
    assert (document["ranks"], document["imbalance"]) == ("0-3", 1)


def test_an_index_shows_the_indexed_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, strategy = str(CORPUS / "pipeline" / "src"), str(CORPUS / "pipeline" / "src_strategy")
    sides = ["--source", source, "--source-strategy", strategy, "--target-strategy", str(CORPUS / "dst_strategy_4.ckpt")]
    assert main(["transform", *sides, "--output", "index", "--allow-missing", "--target", str(tmp_path / "index")]) == 0
    shown = []
    for path, how in ((source, ["--strategy", strategy]), (str(tmp_path / "index"), [])):
        capsys.readouterr()
        assert main(["inspect", path, *how]) == 0
        shown.append(lines(capsys))
    assert [line for line in shown[1] if line[:1] != ["index"]] == shown[0]
    assert ["index", f"of {source}, for 4 ranks"] in shown[1]
    assert main(["inspect", str(tmp_path / "index"), "--step", "100"]) == 78
    assert "SourceIsIndex" in capsys.readouterr().err


def test_unified_files_hold_parameters_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline, out = CORPUS / "pipeline", str(tmp_path / "out")
    sides = ["--source", str(pipeline / "src"), "--source-strategy", str(pipeline / "src_strategy")]
    assert main(["transform", *sides, "--output", "unified", "--target", out]) == 0
    capsys.readouterr()
    assert main(["inspect", out]) == 0
    found = lines(capsys)
    assert ["format", "unified safetensors"] in found
    assert ["layers.1.weight", "Float32", "24x32", "24x32", "whole", "0", "3.07 kB"] in found
    assert main(["inspect", out, "--strategy", str(pipeline / "src_strategy")]) == 78


def test_inspect_without_a_strategy_lists_unknown_properties(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(CORPUS / "src_checkpoints"), "--parameter", "layer1.*"]) == 0
    found = lines(capsys)
    assert ["the sharding is unknown; specify it with --strategy"] in found
    assert ["layer1.weight", "Float32", "784x256", "803 kB"] in found
    assert ["layer2.weight"] not in [line[:1] for line in found]
    assert main(["inspect", str(CORPUS / "src_checkpoints"), "--parameter", "nothing"]) == 66
    assert main(["inspect", str(CORPUS / "src_checkpoints"), "--strategy", str(CORPUS / "dst_strategy_4.ckpt")]) == 65


def test_layers_of_one_kind_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(rawfiles.safetensors({f"layers.{i}.\x1b{name}": np.zeros(1, np.int8) for i in range(32) for name in "ab"}))
    assert main(["inspect", str(path)]) == 0
    printed = capsys.readouterr().out
    assert r"layers.{0-31}.\x1ba" in printed
    assert printed.count("layers.") == 2
    assert main(["inspect", str(path), "--all"]) == 0
    assert capsys.readouterr().out.count("layers.") == 64


@given(st.sets(st.tuples(st.integers(0, 3), st.sampled_from(["1", "2", "10", "01"])), min_size=1))
def test_one_line_lists_exactly_its_parameters(numbers: set[tuple[int, str]]) -> None:
    names = {f"m{a}.layers.{b}" for a, b in numbers}
    said = set()
    for line in merge_numbered([replace(PARAMETER, name=name) for name in sorted(names)]):
        texts = [""]
        for piece in line.name.replace("}", "{").split("{"):
            ranges = [piece] if "m" in piece or "." in piece else _spread(piece)
            texts = [text + one for text in texts for one in ranges]
        said |= set(texts)
    assert said == names


def _spread(text: str) -> list[str]:
    ends = [part.split("-") for part in text.split(",")] if text else []
    return [str(n) for end in ends for n in range(int(end[0]), int(end[-1]) + 1)] or [""]


def test_slices_of_different_lengths_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"w": np.zeros((7, 2), np.float32)}, tmp_path / "model.safetensors")
    sides = ["--source", str(tmp_path / "model.safetensors"), "--target", str(tmp_path / "out")]
    assert main(["transform", *sides, "--target-ranks", "4"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "out")]) == 0
    found = capsys.readouterr().out
    assert "slices have different lengths" in found
    assert re.findall(r"^w +Float32 +(\d)x2 +([\d-]+)", found, re.MULTILINE) == [("2", "0-2"), ("1", "3")]


@pytest.mark.parametrize("kind", [1, -1])
def test_a_parameter_of_a_kind_that_does_not_exist_is_refused(kind: int) -> None:
    content = {"kinds": [{"dtype": "Int8", "shape": [], "role": "own", "source": None, "target": {}}], "records": []}
    content["kinds"][0]["target"] = {"deviceMatrix": [1], "tensorMap": []}
    decode(json.dumps(content | {"records": [{"name": "w", "kind": 0}]}).encode(), ParameterTable, "x")
    with pytest.raises(DataError, match="DocumentInvalid: x: a parameter has a kind that does not exist"):
        decode(json.dumps(content | {"records": [{"name": "w", "kind": kind}]}).encode(), ParameterTable, "x")


@pytest.mark.parametrize(("ranks", "stage"), [(3, 0), (4, 2), (10**18, 0), (4, 10**18), (4, -1)])
def test_a_manifest_that_contradicts_itself_is_refused(tmp_path: Path, ranks: int, stage: int) -> None:
    made = tmp_path / "out"
    pipeline = CORPUS / "pipeline"
    sides = ["--source", pipeline / "src", "--source-strategy", pipeline / "src_strategy", "--target-strategy"]
    assert main(["transform", *map(str, sides), str(pipeline / "dst_strategy.ckpt"), "--target", str(made)]) == 0
    content = json.loads((made / "reshard-manifest.json").read_text())
    content["targetRanks"], content["parameters"]["kinds"][0]["target"]["stages"] = ranks, [stage]
    if (ranks, stage) == (4, 2):
        content["targetRanks"] = 8
    with pytest.raises(DataError, match="ManifestInvalid"):
        recorded_strategy(decode(json.dumps(content).encode(), Manifest, "x"), "x")
