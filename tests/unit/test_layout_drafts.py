"""`reshard layout infer` and `derive`: the files that they write lead to the slices of the strategy, or of the target."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

import reshard
from reshard.cli import main
from reshard.source.strategies import read_layout_file, read_strategy

DATA = Path(__file__).parent / "data"
RULES = """
apiVersion: reshard.dev/layout-v1
state: [adam_m.]
rules:
- {match: layers.*.wo, shard: {1: tp}}
- {match: layers.*, shard: {0: tp}}
- {match: [embedding, norm], zero: false, stage: first}
"""
SHAPES = {
    **{f"layers.{i}.{name}": (16, 16) for i in range(4) for name in ("wq", "wo")},
    **{f"adam_m.layers.{i}.{name}": (16, 16) for i in range(4) for name in ("wq", "wo")},
    "embedding": (32, 16),
    "norm": (16,),
}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with whole parameters, and the checkpoint and strategy of dp=2, tp=4."""
    save_file({name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}, tmp_path / "model.safetensors")
    export(tmp_path, "source", "mesh: dp=2,tp=4")
    arguments = ["--source", str(tmp_path / "model.safetensors"), "--target-strategy", str(tmp_path / "source")]
    assert main(["transform", *arguments, "--target", str(tmp_path / "checkpoint")]) == 0
    return tmp_path


def export(folder: Path, name: str, more: str = "", layout: str | None = None) -> None:
    """Write the strategy of a layout file, by default of the rules of the model."""
    path = folder / f"{layout or name}.yaml"
    if layout is None:
        path.write_text(f"{RULES}{more}\n")
    out = ["--checkpoint", str(folder / "model.safetensors"), "-o", str(folder / name)]
    assert main(["layout", "export", str(path), *out]) == 0


def slices(folder: Path, name: str) -> list[dict[str, Any]]:
    return [{n: (layout.parts, layout.cells) for n, layout in s.items()} for s in read_strategy(str(folder / name)).stages]


def infer(folder: Path, *more: str) -> int:
    return main(["layout", "infer", str(folder / "source"), "--mesh", "dp=2,tp=4", "-o", str(folder / "draft.yaml"), *more])


def derive(folder: Path, *more: str) -> int:
    source = [str(folder / "source"), "--checkpoint", str(folder / "checkpoint"), "-o", str(folder / "draft.yaml")]
    return main(["layout", "derive", *source, *more])


@pytest.mark.parametrize("shapes", [False, True])
def test_an_inferred_file_leads_to_the_slices_of_the_strategy(shapes: bool, work: Path) -> None:
    assert infer(work, *(["--checkpoint", str(work / "checkpoint")] if shapes else [])) == 0
    export(work, "again", layout="draft")
    assert slices(work, "again") == slices(work, "source")


def test_a_derived_file_leads_to_the_slices_of_the_target(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert derive(work, "--source-mesh", "dp=2,tp=4", "--mesh", "dp=4,tp=2", "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rules"] == 3
    export(work, "derived", layout="draft")
    export(work, "target", "mesh: dp=4,tp=2")
    assert slices(work, "derived") == slices(work, "target")
    assert slices(work, "derived") != slices(work, "source")


def test_a_layout_file_completes_a_derivation(work: Path) -> None:
    base = work / "base.yaml"
    rest = """zero: {threshold: 0}
state: [adam_m.]
pipeline: {layer: layers.*., layers: 4}
derive: {sourceMesh: "dp=2,tp=4"}
rules: [{match: [embedding, norm], stage: first, zero: false}]
"""
    base.write_text(f"apiVersion: reshard.dev/layout-v1\nmesh: pp=2,dp=2,tp=2\n{rest}")
    more = "zero: {threshold: 0}\npipeline: {layer: layers.*., layers: 4}"
    export(work, "target", f"mesh: pp=2,dp=2,tp=2\n{more}")
    export(work, "witness", "mesh: dp=8,tp=1\nzero: {threshold: 0}")
    assert derive(work, "--layout", str(base)) == 78  # nothing shows whether optimizer parallelism divides the matrices
    assert not (work / "draft.yaml").exists()
    assert derive(work, "--layout", str(base), "--witness", str(work / "witness"), "--witness-mesh", "dp=8,tp=1") == 0
    export(work, "derived", layout="draft")
    assert slices(work, "derived") == slices(work, "target")


def test_a_derived_file_keeps_the_fields_and_names_the_axes_of_the_source(work: Path) -> None:
    base = work / "base.yaml"
    base.write_text(
        """apiVersion: reshard.dev/layout-v1
mesh: dp=2,tp=2
derive: {sourceMesh: "dp=2,tp=4", unsharded: [norm]}
zero: {threshold: 1024}
aliases: {vocab: []}
rules: [{match: embedding, shard: {0: vocab}, zero: false}]
"""
    )
    assert derive(work, "--layout", str(base)) == 0
    found = yaml.safe_load((work / "draft.yaml").read_text())
    rules = found.pop("rules")
    assert found == {
        "apiVersion": "reshard.dev/layout-v1",
        "mesh": "dp=2,tp=2",
        "aliases": {"vocab": []},
        "state": ["adam_m."],
        "zero": {"threshold": 1024},
    }
    assert rules[0] == {"match": "embedding", "shard": {0: "vocab"}, "zero": False}
    assert {rule["match"]: rule.get("shard") for rule in rules[1:]} == {
        "layers.*.wq": {0: "tp"},
        "layers.*.wo": {1: "tp"},
        "norm": None,
    }
    export(work, "derived", layout="draft")
    export(work, "target", "mesh: dp=2,tp=2\nzero: {threshold: 1024}")
    assert slices(work, "derived") == slices(work, "target")


def test_a_target_without_the_optimizer_parallelism_of_its_source_is_told(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(work, "sharded", "mesh: dp=2,tp=4\nzero: {threshold: 0}")
    arguments = ["--source", str(work / "model.safetensors"), "--target-strategy", str(work / "sharded")]
    assert main(["transform", *arguments, "--target", str(work / "sharded_checkpoint")]) == 0
    base = work / "base.yaml"
    for zero in ("", "zero: {threshold: 0}"):
        base.write_text(
            f"apiVersion: reshard.dev/layout-v1\nmesh: dp=4,tp=2\nderive: {{sourceMesh: 'dp=2,tp=4', unsharded: norm}}\n{zero}\n"
        )
        out = ["--checkpoint", str(work / "sharded_checkpoint"), "-o", str(work / f"draft{len(zero)}.yaml")]
        assert main(["layout", "derive", str(work / "sharded"), "--layout", str(base), *out]) == 0
        assert ("the source has optimizer parallelism, and the target has none" in capsys.readouterr().out) == (not zero)


def test_experts_are_derived(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = """rules:
- {match: '*.wo', shard: {1: ep}}
- {match: layers.*, shard: {0: tp}}
- {match: '*'}
"""
    meshes = {"source": "mesh: dp=2,tp=4\nexpertMesh: edp=4,ep=2\n", "target": "mesh: dp=4,tp=2\nexpertMesh: edp=2,ep=4\n"}
    for name, mesh in meshes.items():
        (work / f"{name}_experts.yaml").write_text(f"apiVersion: reshard.dev/layout-v1\n{mesh}state: [adam_m.]\n{rules}")
        export(work, f"{name}_experts", layout=f"{name}_experts")
    arguments = ["--source", str(work / "model.safetensors"), "--target-strategy", str(work / "source_experts")]
    assert main(["transform", *arguments, "--target", str(work / "checkpoint_experts")]) == 0
    base, draft = work / "base.yaml", work / "draft.yaml"
    text = f"apiVersion: reshard.dev/layout-v1\n{meshes['target']}derive: {{sourceMesh: 'dp=2,tp=4'EXPERTS}}\n"
    source = [
        str(work / "source_experts"),
        "--checkpoint",
        str(work / "checkpoint_experts"),
        "-o",
        str(draft),
        "--layout",
        str(base),
    ]
    base.write_text(text.replace("EXPERTS", ""))
    assert main(["layout", "derive", *source]) == 0
    assert "layers.*.wo: the source numbers the ranks in the order tp, dp" in capsys.readouterr().out
    draft.unlink()
    base.write_text(text.replace("EXPERTS", ", sourceExpertMesh: 'edp=4,ep=2', experts: '*.wo'"))
    assert main(["layout", "derive", *source]) == 0
    assert {str(rule["match"]): rule.get("shard") for rule in yaml.safe_load(draft.read_text())["rules"]} == {
        "layers.*.wq": {0: "tp"},
        "layers.*.wo": {1: "ep"},
        "['embedding', 'norm']": None,
    }
    export(work, "derived", layout="draft")
    assert slices(work, "derived") == slices(work, "target_experts")


def chunk(array: np.ndarray, counts: tuple[int, ...], rank: int) -> np.ndarray:
    """The chunk of a rank along each dimension, as torch.chunk divides it. Ranks are numbered row-major over the dimensions."""
    for dimension, (count, index) in enumerate(zip(counts, np.unravel_index(rank, counts), strict=True)):
        length = -(-array.shape[dimension] // count)
        array = np.take(array, range(length * index, min(length * (index + 1), array.shape[dimension])), dimension)
    return array


@pytest.mark.parametrize(
    ("source", "source_mesh", "target", "dims"),
    [
        ("torch/fsdp2", "dp=4", "mesh: dp=2", {}),
        ("torch/fsdp2", "dp=4", "mesh: dp=3\nuneven: true", {}),
        (
            "torch/fsdp2_tp",
            "dp=2,tp=2",
            """mesh: dp=4,tp=1
uneven: true
rules: [{match: model.b.weight, shard: {0: dp, 1: tp}}, {match: ['*.b.bias', '*.norm.*'], shard: {0: dp}}]""",
            {},
        ),
        (
            "mindformers/iteration_00000010",
            "dp=2,tp=2",
            """mesh: dp=1,tp=2
rules: [{match: '*grid', shard: {0: dp, 1: tp}}, {match: columns, shard: {1: tp}}, {match: vector, shard: {0: tp}}]""",
            {"grid": (1, 2), "adam_m.grid": (1, 2), "columns": (1, 2), "whole": (1, 1, 1)},
        ),
    ],
)
def test_a_checkpoint_that_locates_its_slices_needs_no_strategy(
    source: str, source_mesh: str, target: str, dims: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    """Files that PyTorch and MindFormers wrote, against slices of the whole tensors. Dimension 0 is divided by default."""
    path, rules = DATA / source, tmp_path / "rules.yaml"
    (tmp_path / "base.yaml").write_text(f"apiVersion: reshard.dev/layout-v1\nderive: {{sourceMesh: '{source_mesh}'}}\n{target}\n")
    given = ["--checkpoint", str(path), "--layout", str(tmp_path / "base.yaml"), "--source-mesh", source_mesh]
    assert main(["layout", "derive", *given, "-o", str(rules)]) == 0
    assert read_layout_file(str(rules)).document.derive is None
    ranks = read_layout_file(str(rules)).document.ranks
    whole = reshard.load(str(path), cast=(reshard.CastRule("*", "Float32"),))
    for name in ("base", "rules"):
        sides = ["--source", str(path), "--target", str(tmp_path / name), "--target-strategy", str(tmp_path / f"{name}.yaml")]
        assert main(["transform", *sides, "--cast", "*=float32"]) == 0
        for rank in range(ranks):
            found = load_file(tmp_path / name / f"rank_{rank}" / f"checkpoint_{rank}.safetensors")
            assert found.keys() == whole.keys()
            for tensor, array in found.items():
                counts = dims.get(tensor, (ranks, *(1 for _ in whole[tensor].shape[1:])) if whole[tensor].size > 1 else ())
                assert np.array_equal(array, chunk(whole[tensor], counts, rank % max(1, int(np.prod(counts))))), (rank, tensor)
    if "uneven" not in target:
        sides = ["--source", str(tmp_path / "rules"), "--source-strategy", str(rules), "--target", str(tmp_path / "joined")]
        assert main(["transform", *sides]) == 0
        joined = load_file(tmp_path / "joined" / "rank_0" / "checkpoint_0.safetensors")
        assert all(np.array_equal(joined[name], array) for name, array in whole.items())


def test_a_strategy_is_a_witness_for_a_checkpoint_that_locates_its_slices(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "dcp.yaml").write_text(f"{RULES}mesh: dp=4,tp=4\n")
    sides = ["--source", str(work / "model.safetensors"), "--target", str(work / "dcp"), "--format", "torch-dcp"]
    assert main(["transform", *sides, "--target-strategy", str(work / "dcp.yaml")]) == 0
    command = [
        "--checkpoint",
        str(work / "dcp"),
        "--source-mesh",
        "dp=4,tp=4",
        "--mesh",
        "dp=4,tp=2",
        "-o",
        str(work / "draft.yaml"),
    ]
    assert main(["layout", "derive", *command]) == 78
    assert "LayoutAmbiguous" in capsys.readouterr().err
    assert main(["layout", "derive", *command, "--witness", str(work / "source"), "--witness-mesh", "dp=2,tp=4"]) == 0
    export(work, "derived", layout="draft")
    export(work, "target", "mesh: dp=4,tp=2")
    assert slices(work, "derived") == slices(work, "target")


def test_whole_parameters_show_no_axes(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meshes = ["--source-mesh", "dp=2,tp=4", "--mesh", "dp=4,tp=2", "-o", str(work / "draft.yaml")]
    assert main(["layout", "derive", "--checkpoint", str(work / "model.safetensors"), *meshes]) == 78
    assert "MeshUnknown" in capsys.readouterr().err


def test_another_file_is_not_replaced(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert infer(work) == infer(work) == 0
    (work / "draft.yaml").write_text("mine")
    assert infer(work) == 2
    assert "FileExists" in capsys.readouterr().err
    assert (work / "draft.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--mesh", "dp=4,tp=2"], "--source-mesh"),
        (["--source-mesh", "dp=4,tp=2"], "--mesh"),
        (["--mesh", "dp=4,tp=2", "--source-mesh", "dp=2,tp=3"], "MeshMismatch"),
        (["--mesh", "dp=4,tp=2", "--source-mesh", "dp=8"], "LayoutNotDerivable"),
        (["--mesh", "dp=4,dp=2", "--source-mesh", "dp=2,tp=4"], "not a list of axes"),
        (["--mesh", "dp=4,tp=2", "--source-mesh", "dp=2,tp=4", "--witness-mesh", "dp=2"], "--witness"),
    ],
)
def test_what_cannot_be_derived_is_refused(more: list[str], told: str, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert derive(work, *more) != 0
    assert told in capsys.readouterr().err
    assert not (work / "draft.yaml").exists()
