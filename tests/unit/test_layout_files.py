"""Transforms with layout files in the place of strategies."""

from __future__ import annotations

import json
import re
from math import prod
from pathlib import Path

import layout_example
import numpy as np
import pytest
import yaml
from layout_example import LAYOUT, SHAPES
from safetensors.numpy import load_file, save_file

import reshard
from reshard.cli import main
from reshard.errors import UsageError
from reshard.mesh.file import parse
from reshard.mesh.resolve import resolve
from reshard.mesh.scale import Scale, scaled
from reshard.mesh.sharding import Whole
from reshard.spec.mounts import request_here
from reshard.spec.request import Request
from reshard.spec.resource import parse_spec
from reshard.strategy import StrategyFile, dump


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, np.ndarray]:
    return layout_example.write(tmp_path)


def transform(folder: Path, *more: str, source: str = "model.safetensors", target: str = "out") -> int:
    return main(["transform", "--source", str(folder / source), "--target", str(folder / target), *more])


def expected(arrays: dict[str, np.ndarray], rank: int) -> dict[str, np.ndarray]:
    """The slices of a rank, written out: stages of two layers, tp as the fastest axis, and rows shared by the ranks of dp."""
    stage, (dp, tp) = rank // 4, divmod(rank % 4, 2)
    found = {"step": arrays["step"]}
    for name, array in arrays.items():
        base = name.removeprefix("adam_m.")
        if base.startswith("layers") and int(base.split(".")[1]) // 2 == stage:
            part = array[:, 4 * tp : 4 * tp + 4] if base.endswith("wo") else array[4 * tp : 4 * tp + 4]
            rows = len(part) // 2
            found[name] = part[rows * dp : rows * dp + rows]
    return found | ({"embedding": arrays["embedding"]} if stage == 0 else {"norm": arrays["norm"]})


def check(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    for rank in range(8):
        found = load_file(folder / f"rank_{rank}" / f"checkpoint_{rank}.safetensors")
        wanted = expected(arrays, rank)
        assert found.keys() == wanted.keys()
        for name, array in wanted.items():
            assert found[name].tobytes() == array.tobytes(), (rank, name)


def test_a_layout_file_divides_a_checkpoint_and_joins_it(tmp_path: Path, whole: dict[str, np.ndarray]) -> None:
    layout = str(tmp_path / "layout.yaml")
    assert transform(tmp_path, "--target-strategy", layout) == 0
    check(tmp_path / "out", whole)
    assert transform(tmp_path, "--source-strategy", layout, source="out", target="joined") == 0
    joined = load_file(tmp_path / "joined" / "rank_0" / "checkpoint_0.safetensors")
    assert {name: array.tobytes() for name, array in joined.items()} == {n: a.tobytes() for n, a in whole.items()}
    assert transform(tmp_path, "--target-strategy", layout) == 0  # already complete


def test_a_layout_file_and_its_strategy_lead_to_equal_files(tmp_path: Path, whole: dict[str, np.ndarray]) -> None:
    tensors = {name: Whole("Float32", shape) for name, shape in SHAPES.items() if prod(shape) > 1}
    found = resolve(parse(LAYOUT.encode(), "layout.yaml").document, tensors, "layout.yaml")
    (tmp_path / "strategy.ckpt").write_bytes(
        dump(StrategyFile("strategy.ckpt", dict(enumerate(found.strategy.stages))), "protobuf")
    )
    digests = set()
    for name in ("layout.yaml", "strategy.ckpt"):
        assert transform(tmp_path, "--target-strategy", str(tmp_path / name), target=name[:6]) == 0
        check(tmp_path / name[:6], whole)
        digests.add(json.loads((tmp_path / name[:6] / "reshard-manifest.json").read_bytes())["digest"])
    assert len(digests) == 2  # only one of the manifests contains a layout, which a later transform can scale


@pytest.mark.usefixtures("whole")
def test_excluded_parameters_need_no_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "layout.yaml"
    path.write_text(LAYOUT.replace("- {match: norm, stage: last}", ""))
    assert transform(tmp_path, "--target-strategy", str(path)) == 78
    error = capsys.readouterr().err
    assert "ParameterUnmatched" in error
    assert "norm" in error
    assert not (tmp_path / "out").exists()
    assert transform(tmp_path, "--target-strategy", str(path), "--exclude", "norm") == 0


@pytest.mark.usefixtures("whole")
def test_rules_that_match_nothing_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "layout.yaml"
    path.write_text(f"{LAYOUT}- {{match: lm_head}}\n")
    assert transform(tmp_path, "--target-strategy", str(path)) == 0
    assert "rule 5 (lm_head) matches no parameter" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("reshard.dev/layout-v1", "InvalidLayoutFile"),
        ("apiVersion: reshard.dev/layout-v1\nmesh: [dp", "NotYaml"),
        ("\xff reshard.dev/layout-v1", "UTF-8"),
        ("# LLaMA\nmesh: dp=2\nrules: [{match: '*'}]", "`apiVersion`"),
        ("apiVersion: reshard.dev/layout-v1\nmesh: dp=2\nrules: [{match: *.weight}]", "quote the text that starts with `*`"),
    ],
)
@pytest.mark.usefixtures("whole")
def test_a_damaged_layout_file_is_refused(tmp_path: Path, text: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "layout.yaml"
    path.write_bytes(text.encode("latin-1"))
    assert transform(tmp_path, "--target-strategy", str(path)) == 2
    error = capsys.readouterr().err
    assert "layout.yaml" in error
    assert told in error


@pytest.mark.parametrize("sliced", [False, True])
def test_a_rank_is_loaded_by_layout_files(sliced: bool, tmp_path: Path, whole: dict[str, np.ndarray]) -> None:
    layout = str(tmp_path / "layout.yaml")
    source, strategy = str(tmp_path / "model.safetensors"), None
    if sliced:
        assert transform(tmp_path, "--target-strategy", layout) == 0
        source, strategy = str(tmp_path / "out"), layout
    for rank in (0, 3, 6):
        found = reshard.load(source, strategy, layout, rank)
        wanted = expected(whole, rank)
        assert {name: array.tobytes() for name, array in found.items()} == {n: a.tobytes() for n, a in wanted.items()}


def test_a_resource_and_python_accept_the_same_layout(tmp_path: Path, whole: dict[str, np.ndarray]) -> None:
    layout = yaml.safe_load(LAYOUT)
    claim = {"persistentVolumeClaim": {"claimName": "runs"}}
    spec = {
        "source": {"storage": {"persistentVolumeClaim": {"claimName": "runs", "path": "model.safetensors"}}},
        "target": {"storage": {"persistentVolumeClaim": {"claimName": "runs", "path": "out"}}, "layout": layout},
    }
    request = request_here(parse_spec(spec, "x"), claims={"runs": str(tmp_path)}, config_maps={}, secrets={})
    reshard.transform_checkpoint(request)
    check(tmp_path / "out", whole)
    reshard.transform_checkpoint(Request(tmp_path / "out", tmp_path / "joined", layout))
    joined = load_file(tmp_path / "joined" / "rank_0" / "checkpoint_0.safetensors")
    assert {name: array.tobytes() for name, array in joined.items()} == {n: a.tobytes() for n, a in whole.items()}
    with pytest.raises(UsageError, match="either `strategy` or `layout`"):
        parse_spec(spec | {"source": {"storage": claim, "strategy": {"path": "s"}, "layout": layout}}, "x")
    with pytest.raises(UsageError, match="does not describe a source"):
        reshard.transform_checkpoint(Request(tmp_path / "out", tmp_path / "x", layout | {"derive": {"sourceMesh": "dp=2"}}))


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize(("output", "status"), [("unified", 2), ("same", 2), ("index", 0)])
def test_outputs_without_slices_accept_no_layout(tmp_path: Path, output: str, status: int) -> None:
    assert transform(tmp_path, "--target-strategy", str(tmp_path / "layout.yaml"), "--output", output) == status


@pytest.mark.usefixtures("whole")
def test_an_index_holds_an_uneven_layout(tmp_path: Path) -> None:
    path = tmp_path / "layout.yaml"
    rules = "[{match: '*', shard: {0: dp}}]"
    path.write_text(f"apiVersion: reshard.dev/layout-v1\nmesh: dp=3\nuneven: true\nrules: {rules}\n")
    assert transform(tmp_path, "--target-strategy", str(path), "--output", "index") == 0
    expected = load_file(tmp_path / "model.safetensors")["embedding"]
    for rank, rows in enumerate([slice(0, 6), slice(6, 12), slice(12, 16)]):
        found = reshard.load(str(tmp_path / "model.safetensors"), index=str(tmp_path / "out"), rank=rank)
        assert (found["embedding"] == expected[rows]).all()


@pytest.mark.usefixtures("whole")
def test_a_checkpoint_is_scaled_by_its_own_layout(tmp_path: Path) -> None:
    assert transform(tmp_path, "--target-strategy", str(tmp_path / "layout.yaml"), "--format", "torch-dcp", target="dcp") == 0
    assert transform(tmp_path, "--scale", "dp/2,tp*2", source="dcp", target="scaled") == 0
    changed = tmp_path / "changed.yaml"
    changed.write_text(LAYOUT.replace("dp=2,tp=2", "dp=1,tp=4"))
    assert transform(tmp_path, "--target-strategy", str(changed), target="direct") == 0
    for rank in range(8):
        name = f"rank_{rank}/checkpoint_{rank}.safetensors"
        found, direct = load_file(tmp_path / "scaled" / name), load_file(tmp_path / "direct" / name)
        assert {n: a.tobytes() for n, a in found.items()} == {n: a.tobytes() for n, a in direct.items()}
    manifest = json.loads((tmp_path / "scaled" / "reshard-manifest.json").read_bytes())
    assert manifest["layout"]["mesh"] == "pp=2,dp=1,tp=4"
    assert transform(tmp_path, "--scale", "dp/2,tp*2", source="dcp", target="scaled") == 0  # already complete
    assert transform(tmp_path, "--scale", "tp*8", "--source-strategy", str(changed), source="direct", target="more") == 65
    assert transform(tmp_path, "--scale", "tp/2", "--source-strategy", str(changed), source="direct", target="fewer") == 0
    assert load_file(tmp_path / "fewer" / "rank_1" / "checkpoint_1.safetensors")["layers.0.wo"].shape == (8, 4)


def test_a_checkpoint_of_chunks_is_scaled_without_a_layout(tmp_path: Path, whole: dict[str, np.ndarray]) -> None:
    assert transform(tmp_path, "--target-ranks", "3", "--format", "torch-dcp", target="dcp") == 0
    (tmp_path / "dcp" / "reshard-manifest.json").unlink()
    assert transform(tmp_path, "--scale", "dp=2", source="dcp", target="scaled") == 0
    assert transform(tmp_path, "--target-ranks", "2", target="direct") == 0
    for rank in range(2):
        name = f"rank_{rank}/checkpoint_{rank}.safetensors"
        found, direct = load_file(tmp_path / "scaled" / name), load_file(tmp_path / "direct" / name)
        assert {n: a.tobytes() for n, a in found.items()} == {n: a.tobytes() for n, a in direct.items()}
        assert found.keys() == whole.keys()


@pytest.mark.parametrize("scale", ["dp/2", "dp*2", "dp=2,tp=2"])
@pytest.mark.usefixtures("whole")
def test_chunks_of_an_unknown_number_of_ranks_are_not_multiplied(
    tmp_path: Path, scale: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert transform(tmp_path, "--target-ranks", "3", "--format", "torch-dcp", target="dcp") == 0
    (tmp_path / "dcp" / "reshard-manifest.json").unlink()
    assert transform(tmp_path, "--scale", scale, source="dcp") == 78
    assert "such as dp=2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_fewer_chunks_than_ranks_are_scaled(tmp_path: Path) -> None:
    arrays = {"even": np.arange(10, dtype=np.float32), "few": np.arange(3, dtype=np.float32)}
    save_file(arrays, tmp_path / "model.safetensors")
    (tmp_path / "fsdp.yaml").write_text(
        "apiVersion: reshard.dev/layout-v1\nmesh: dp=8\nuneven: true\nrules: [{match: '*', shard: {0: dp}}]\n"
    )
    assert transform(tmp_path, "--target-strategy", str(tmp_path / "fsdp.yaml"), "--format", "torch-dcp", target="dcp") == 0
    (tmp_path / "dcp" / "reshard-manifest.json").unlink()
    assert transform(tmp_path, "--scale", "dp=4", source="dcp", target="scaled") == 0
    found = [load_file(tmp_path / "scaled" / f"rank_{rank}" / f"checkpoint_{rank}.safetensors") for rank in range(4)]
    assert [file["even"].tolist() for file in found] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert [len(file["few"]) if "few" in file else 0 for file in found] == [1, 1, 1, 0]


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize(
    ("more", "status", "text"),
    [
        (["--scale", "dp=2"], 78, "MeshUnknown"),
        (["--scale", "dp"], 2, "InvalidScale"),
        (["--scale", "dp=2", "--target-ranks", "2"], 2, "scale"),
        (["--scale", "dp=2", "--output", "unified"], 2, "divided"),
    ],
)
def test_a_scale_that_means_nothing_is_refused(
    tmp_path: Path, more: list[str], status: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert transform(tmp_path, *more) == status
    assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("scale", "mesh", "problem"),
    [
        ("dp=8", "pp=2,dp=8,tp=2", None),
        ("dp*2,tp/2", "pp=2,dp=4,tp=1", None),
        ("pp/2", "pp=1,dp=2,tp=2", None),
        ("cp=2", None, "no axis cp"),
        ("dp/3", None, "3 does not divide"),
        ("dp*1048576", None, "at most"),
    ],
)
def test_scales_change_sizes(scale: str, mesh: str | None, problem: str | None) -> None:
    document = parse(LAYOUT.encode(), "layout.yaml").document
    if problem is None:
        assert scaled(document, Scale(scale)).mesh == mesh
    else:
        with pytest.raises(UsageError, match=problem):
            scaled(document, Scale(scale))


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("stage: last", "stage: 1", "`stage: 1` in the rule of norm"),
        ("layers: 4}", "counts: [2, 2]}", "`pipeline.counts`"),
        ("layers: 4}", "layers: 4, offset: [1, -1]}", "`pipeline.offset`"),
    ],
)
def test_a_scale_does_not_change_stages_that_are_stated(old: str, new: str, text: str) -> None:
    document = parse(LAYOUT.replace(old, new).encode(), "layout.yaml").document
    for scale in ("pp*2", "dp=2,pp/2"):
        with pytest.raises(UsageError, match=re.escape(text)) as caught:
            scaled(document, Scale(scale))
        assert "--target-strategy" in str(caught.value.fix)
    assert scaled(document, Scale("pp=2,dp=4")).devices == 8


def derived(source: str, mesh: str, *, rules: str = "") -> str:
    return f"apiVersion: reshard.dev/layout-v1\nmesh: {mesh}\nderive: {{sourceMesh: '{source}'}}\n{rules}"


def same_content(folder: Path, one: str, other: str, ranks: int) -> bool:
    """Return whether the ranks of two targets have equal tensors."""
    found = []
    for target in (one, other):
        files = [load_file(folder / target / f"rank_{rank}" / f"checkpoint_{rank}.safetensors") for rank in range(ranks)]
        found.append([{name: (array.shape, array.tobytes()) for name, array in file.items()} for file in files])
    return found[0] == found[1]


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("source_format", ["safetensors", "torch-dcp"])
def test_a_layout_is_derived_from_the_source(tmp_path: Path, source_format: str) -> None:
    written, wanted, path = tmp_path / "written.yaml", tmp_path / "wanted.yaml", tmp_path / "derived.yaml"
    text = LAYOUT.replace("mesh: pp=2,dp=2,tp=2", "mesh: pp=2,dp=2,tp=4").replace("zero: {threshold: 128}\n", "")
    written.write_text(text)
    wanted.write_text(text.replace("pp=2,dp=2,tp=4", "dp=4,tp=2"))
    path.write_text(derived("pp=2,dp=2,tp=4", "dp=4,tp=2"))
    assert transform(tmp_path, "--target-strategy", str(written), "--format", source_format, target="source") == 0
    assert transform(tmp_path, "--target-strategy", str(wanted), target="wanted") == 0
    more = ["--source-strategy", str(written)] if source_format == "safetensors" else []
    assert transform(tmp_path, "--target-strategy", str(path), *more, source="source", target="found") == 0
    assert same_content(tmp_path, "found", "wanted", 8)
    notes = json.loads((tmp_path / "found" / "reshard-manifest.json").read_bytes())["notes"]
    assert ("tp divides dimension 0 of 5 parameters, tp divides dimension 1 of 4" in " ".join(notes)) == (not more)
    if source_format == "torch-dcp":  # the manifest of a derived target refers to the mesh of its source
        assert transform(tmp_path, "--target-strategy", str(path), "--format", "torch-dcp", source="source", target="again") == 0
        assert transform(tmp_path, "--scale", "dp/4", source="again", target="scaled") == 0
        wanted.write_text(text.replace("pp=2,dp=2,tp=4", "dp=1,tp=2"))
        assert transform(tmp_path, "--target-strategy", str(wanted), target="small") == 0
        assert same_content(tmp_path, "scaled", "small", 2)


def test_a_derived_target_is_read_back_with_derived_rules(
    tmp_path: Path, whole: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    written, path, rules = (str(tmp_path / f"{name}.yaml") for name in ("written", "derived", "rules"))
    text = LAYOUT.replace("mesh: pp=2,dp=2,tp=2", "mesh: pp=2,dp=2,tp=4").replace("zero: {threshold: 128}\n", "")
    Path(written).write_text(text)
    Path(path).write_text(derived("pp=2,dp=2,tp=4", "dp=4,tp=2"))
    assert transform(tmp_path, "--target-strategy", written, target="source") == 0
    assert transform(tmp_path, "--source-strategy", written, "--target-strategy", path, source="source", target="found") == 0
    capsys.readouterr()
    assert transform(tmp_path, "--source-strategy", path, source="found", target="joined") == 2
    assert "reshard layout derive [STRATEGY] --layout FILE --checkpoint CHECKPOINT -o NEW_FILE" in capsys.readouterr().err
    command = ["layout", "derive", written, "--layout", path, "--checkpoint", str(tmp_path / "source"), "-o", rules]
    assert main(command) == 0
    assert transform(tmp_path, "--source-strategy", rules, source="found", target="joined") == 0
    joined = load_file(tmp_path / "joined" / "rank_0" / "checkpoint_0.safetensors")
    assert {name: array.tobytes() for name, array in joined.items()} == {n: a.tobytes() for n, a in whole.items()}


@pytest.mark.usefixtures("whole")
def test_what_cannot_be_derived_is_refused_with_the_rules_that_would_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written, path = tmp_path / "written.yaml", tmp_path / "derived.yaml"
    written.write_text(LAYOUT.replace("zero: {threshold: 128}\n", ""))  # dp=2,tp=2: which of them?
    path.write_text(derived("pp=2,dp=2,tp=2", "dp=1,tp=4"))
    assert transform(tmp_path, "--target-strategy", str(written), "--format", "torch-dcp", target="source") == 0
    capsys.readouterr()
    assert transform(tmp_path, "--target-strategy", str(path), source="source", target="found") == 78
    error = capsys.readouterr().err
    assert "LayoutAmbiguous" in error
    assert "shard: {0: tp}" in error
    assert not (tmp_path / "found").exists()
    rules = "rules: [{match: layers.*.wo, shard: {1: tp}}, {match: layers.*, shard: {0: tp}}]\nstate: [adam_m.]\n"
    path.write_text(derived("pp=2,dp=2,tp=2", "dp=1,tp=4", rules=rules))
    assert transform(tmp_path, "--target-strategy", str(path), source="source", target="found") == 0
    assert transform(tmp_path, "--target-strategy", str(path), target="x") == 78  # whole parameters show nothing
