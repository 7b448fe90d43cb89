"""Layout files, against the strategies that MindSpore compiles, and the exported strategy files in MindSpore."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from mindspore_program import run

from reshard import Request, transform_checkpoint
from reshard.cli import main
from reshard.source.strategies import read_strategy

HERE = Path(__file__).parent
RULES = """
apiVersion: reshard.dev/layout-v1
state: [moment1., moment2.]
pipeline: {layer: layers.*., layers: 2}
rules:
- {match: ["*.wq.weight", "*.wk.weight", "*.wv.weight", "*.w1.weight", "*.w3.weight"], shard: {0: tp}}
- {match: ["*.wo.weight", "*.w2.weight"], shard: {1: tp}}
- {match: embedding.weight, shard: {0: tp}, stage: first}
- {match: head.weight, shard: {0: tp}, stage: last}
- {match: norm.weight, stage: last}
- {match: "*norm.weight"}
"""
# By layout of the decoder in compiling.py.
MESHES = {
    "src": "mesh: dp=2,tp=4",
    "dst": "mesh: dp=8,tp=2\nzero: {threshold: 1024, size: 4}",
    "src_pipeline": "mesh: pp=2,dp=2,tp=2\nzero: {threshold: 0}",
    "dst_pipeline": "mesh: pp=2,dp=4,tp=2\nzero: {threshold: 1024}",
    "predict": "mesh: dp=1,tp=2",
}


def export(layout: str, compiled: Path, folder: Path, form: str = "protobuf") -> Path:
    """Write the strategy files of a layout, with the shapes in the checkpoint that MindSpore wrote for `src`."""
    (folder / "layout.yaml").write_text(f"{RULES}{MESHES[layout]}\n")
    source, out = compiled / "decoder" / "src_checkpoints", folder / form
    arguments = ["--checkpoint", str(source), "--source-strategy", str(compiled / "decoder" / "src.ckpt")]
    assert main(["layout", "export", str(folder / "layout.yaml"), *arguments, "-o", str(out), "--form", form]) == 0
    return out


@pytest.mark.parametrize("layout", MESHES)
def test_a_layout_file_describes_what_the_compiler_writes(layout: str, compiled: Path, tmp_path: Path) -> None:
    found = read_strategy(str(export(layout, compiled, tmp_path)))
    own = compiled / "decoder" / layout
    expected = read_strategy(str(own if own.exists() else own.with_suffix(".ckpt")))
    for ours, theirs in zip(found.stages, expected.stages, strict=True):
        assert {name for name in theirs if not name.startswith("accu_grads.")} <= ours.keys()
        compared = ours.keys() & theirs.keys()
        assert len(compared) >= 10
        assert {name: ours[name].cells for name in compared} == {name: theirs[name].cells for name in compared}
        assert {name: ours[name].parts for name in compared} == {name: theirs[name].parts for name in compared}


# Of a source without optimizer parallelism and stages, for a target with both.
DERIVED = """
apiVersion: reshard.dev/layout-v1
mesh: pp=2,dp=4,tp=2
state: [moment1., moment2.]
pipeline: {layer: layers.*., layers: 2}
zero: {threshold: 1024}
derive: {sourceMesh: "dp=2,tp=4", unsharded: []}
rules:
- {match: embedding.weight, shard: {0: tp}, stage: first}
- {match: norm.weight, stage: last}
- {match: head.weight, shard: {0: tp}, stage: last}
"""


def test_a_training_goes_on_with_the_same_loss_from_a_derived_layout(compiled: Path, tmp_path: Path) -> None:
    """MindSpore merges the ranks of the source and those of the target, each by the strategies that it compiled for them."""
    run(HERE / "training.py", "save", compiled, tmp_path)
    source, target = tmp_path / "src", tmp_path / "dst_pipeline"
    layout = yaml.safe_load(DERIVED)
    transform_checkpoint(Request(str(source), str(target), str(compiled / "decoder" / "src.ckpt"), layout))
    assert len(list(target.glob("rank_*"))) == 16
    whole, *found = json.loads(run(HERE / "training.py", "resume", compiled, tmp_path, "src", "dst_pipeline"))
    _, loss, later, _ = whole
    assert later < loss
    assert found == [whole, whole]


def test_mindspore_reads_exported_strategies(compiled: Path, tmp_path: Path) -> None:
    files = [export("dst", compiled, tmp_path, form) for form in ("protobuf", "json")]
    run(HERE / "loading.py", compiled, files[0] / "stage_0.ckpt", files[1] / "stage_0.json")


def test_mindspore_reads_targets_by_the_strategy_next_to_them(compiled: Path, tmp_path: Path) -> None:
    decoder, targets = compiled / "decoder", []
    source = ["transform", "--source", str(decoder / "src_checkpoints"), "--source-strategy", str(decoder / "src.ckpt")]
    for layout in ("dst", "src_pipeline"):
        (tmp_path / f"{layout}.yaml").write_text(f"{RULES}{MESHES[layout]}\n")
        targets.append(tmp_path / layout)
        sides = ["--target", str(targets[-1]), "--target-strategy", str(tmp_path / f"{layout}.yaml")]
        assert main([*source, *sides, "--write-strategy"]) == 0
    assert main([*source, "--target", str(tmp_path / "unified"), "--output", "unified"]) == 0
    run(HERE / "returning.py", compiled, tmp_path / "unified", *targets)
