"""Layouts that are derived from one compiled strategy, against those that MindSpore compiles for other meshes."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from mindspore_program import run
from scaling import FAMILIES
from sharded_models import is_equal

from reshard import Options, Request, transform_checkpoint
from reshard.mesh.derive import derive
from reshard.mesh.evidence import Evidence
from reshard.mesh.infer import infer
from reshard.mesh.questions import Derivation
from reshard.mesh.render import rule_line
from reshard.mesh.resolve import resolve
from reshard.mesh.sharding import Whole
from reshard.spec.layout import LayoutDocument, parse_layout
from reshard.strategy import Strategy, parse
from reshard.strictyaml import documents

if TYPE_CHECKING:
    from scaling import Scale

HERE = Path(__file__).parent
TYPES = {"float32": "Float32", "float16": "Float16"}
REASONS = {"LayoutAmbiguous", "LayoutNotDerivable", "NoWitness", "OptimizerShardUnknown", "LayoutDoesNotDivide"}


def wholes(scale: Scale) -> dict[str, Whole]:
    return {each.name: Whole(TYPES[each.dtype], each.shape) for each in scale.parameters}


def strategy(scale: Scale, folder: Path) -> Strategy:
    path = folder / "draws" / f"{scale.seed}.ckpt"
    return Strategy.from_files([parse(path.read_bytes(), path.name)])


def layout_file(source: Scale, target: Scale, *rules: Any, **more: Any) -> LayoutDocument:
    fields: dict[str, Any] = {
        "apiVersion": "reshard.dev/layout-v1",
        "mesh": target.mesh,
        "derive": {"sourceMesh": source.mesh} | more,
        "rules": list(rules),
    }
    if target.setting.zero:
        fields["zero"] = {"threshold": target.setting.threshold * 1024, "size": target.setting.shard_size}
    return parse_layout(fields, "layout.yaml")


def right(found: Derivation, document: LayoutDocument, tensors: dict[str, Whole], expected: Strategy) -> set[str]:
    """The derived parameters. Their layouts must be those of MindSpore."""
    some = {name: tensors[name] for name in found.derived}
    layouts = resolve(document, some, "f", Derivation(found.derived, ())).strategy.stages[0]
    for name, layout in layouts.items():
        assert is_equal(layout, expected.stages[0][name]), (name, layout, expected.stages[0][name])
    return set(layouts)


WIDTH = 32  # as in networks.py
SHAPES = {
    "embedding": (128, WIDTH),
    "head": (128, WIDTH),
    "w1": (2 * WIDTH, WIDTH),
    "w3": (2 * WIDTH, WIDTH),
    "w2": (WIDTH, 2 * WIDTH),
}
MESHES = {
    "src": "dp=2,tp=4",
    "dst": "dp=8,tp=2",
    "predict": "dp=1,tp=2",
    "src_pipeline": "pp=2,dp=2,tp=2",
    "dst_pipeline": "pp=2,dp=4,tp=2",
}
ENDS = [{"match": "embedding.weight", "shard": {0: "tp"}, "stage": "first"}, {"match": "norm.weight", "stage": "last"}]
ENDS += [{"match": "head.weight", "shard": {0: "tp"}, "stage": "last"}]


def decoder(layout: str, folder: Path) -> tuple[Strategy, dict[str, Whole]]:
    path = folder / "decoder" / layout
    files = sorted(path.iterdir()) if path.is_dir() else [path.with_suffix(".ckpt")]
    found = Strategy.from_files([parse(file.read_bytes(), file.name) for file in files])
    names = {name for stage in found.stages for name in stage if not name.startswith("accu_grads.")}
    norm = (WIDTH,)
    return found, {
        name: Whole("Float32", norm if "norm" in name else SHAPES.get(name.split(".")[-2], (WIDTH, WIDTH))) for name in names
    }


# The source has one stage, and its threshold is unknown.
STAGES = [*ENDS, {"match": "*_norm.weight"}]
DECODERS = [
    ("src", "predict", None, []),
    ("dst", "src", None, []),
    ("dst", "predict", None, []),
    ("dst", "src_pipeline", {"threshold": 0}, STAGES),
]


def derived_decoder(source: str, target: str, zero: dict[str, int] | None, rules: list[dict[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "apiVersion": "reshard.dev/layout-v1",
        "mesh": MESHES[target],
        "state": ["moment1.", "moment2."],
        "derive": {"sourceMesh": MESHES[source]},
        "pipeline": {"layer": "layers.*.", "layers": 2},
        "rules": rules,
    }
    return fields | ({"zero": zero} if zero else {})


@pytest.mark.parametrize(("source", "target", "zero", "rules"), DECODERS)
def test_the_state_of_a_decoder_is_derived(
    source: str, target: str, zero: dict[str, int] | None, rules: list[dict[str, Any]], compiled: Path
) -> None:
    (before, tensors), (expected, _) = decoder(source, compiled), decoder(target, compiled)
    document = parse_layout(derived_decoder(source, target, zero, rules), "f")
    evidence = Evidence.of_strategy(before, MESHES[source], tensors, "f")
    stages = resolve(document, tensors, "f", derive(document, tensors, "f", [evidence])).strategy.stages
    for layouts, compiled_layouts in zip(stages, expected.stages, strict=True):
        assert layouts.keys() >= {name for name in compiled_layouts if not name.startswith("accu_grads.")}
        assert all(is_equal(layout, compiled_layouts[name]) for name, layout in layouts.items() if name in compiled_layouts)


@pytest.mark.parametrize(("source", "target", "zero", "rules"), DECODERS[1:])
def test_a_network_outputs_the_same_from_a_checkpoint_with_a_derived_layout(
    source: str, target: str, zero: dict[str, int] | None, rules: list[dict[str, Any]], compiled: Path, tmp_path: Path
) -> None:
    """MindSpore loads each rank by its own strategy of the target. The moments are compared bit by bit."""
    folder, name = compiled / "decoder", f"decoder/{source}/{target}"
    layout = derived_decoder(source, target, zero, rules)
    exclude = ("moment*",) if target == "predict" else ()
    request = Request(
        str(folder / f"{source}_checkpoints"),
        str(tmp_path / name),
        str(folder / f"{source}.ckpt"),
        layout,
        Options(verification="Full", exclude=exclude),
    )
    transform_checkpoint(request)
    (found,) = json.loads(run(HERE / "running.py", "outputs", compiled, tmp_path, name))
    assert found == json.loads((compiled / "outputs.json").read_text())["decoder"]


@pytest.mark.parametrize("layout", MESHES)
def test_an_inferred_layout_file_leads_to_the_layouts_of_a_decoder(layout: str, compiled: Path) -> None:
    expected, tensors = decoder(layout, compiled)
    document = infer(expected, MESHES[layout], layout, tensors).document
    for layouts, compiled_layouts in zip(resolve(document, tensors, "f").strategy.stages, expected.stages, strict=True):
        assert all(is_equal(layout, compiled_layouts[name]) for name, layout in layouts.items())
        assert layouts.keys() == {name for name in compiled_layouts if not name.startswith("accu_grads.")}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family[0].seed)
def test_derived_layouts_are_those_that_mindspore_compiles(family: list[Scale], compiled: Path) -> None:
    tensors = wholes(family[0])
    strategies = {scale.seed: strategy(scale, compiled) for scale in family}
    evidence = {scale.seed: Evidence.of_strategy(strategies[scale.seed], scale.mesh, tensors, scale.seed) for scale in family}
    derived = witnessed = answered = 0
    for source, target in permutations(family, 2):
        document, expected = layout_file(source, target), strategies[target.seed]
        found = derive(document, tensors, "f", [evidence[source.seed]])
        alone = right(found, document, tensors, expected)
        derived += len(alone)
        others = [evidence[scale.seed] for scale in family if scale not in (source, target)]
        everything = right(derive(document, tensors, "f", [evidence[source.seed], *others]), document, tensors, expected)
        witnessed += len(everything - alone)
        for refused in found.refused:
            assert refused.error.reason in REASONS
            for rule in refused.rules[:4] if refused.error.reason == "LayoutAmbiguous" else ():
                ((line,),) = documents(rule_line(rule), "f")
                ruled = layout_file(source, target, line)
                again = derive(ruled, tensors, "f", [evidence[source.seed]])
                assert set(refused.names).isdisjoint(again.derived)
                answered += 1
    assert min(derived, witnessed, answered) > 20, (derived, witnessed, answered)


def test_one_field_states_which_parameters_optimizer_parallelism_divides(compiled: Path) -> None:
    stated = 0
    for family in FAMILIES:
        tensors = wholes(family[0])
        unsharded = [each.name for each in family[0].parameters if not each.parallel_optimizer]
        for source, target in permutations(family, 2):
            evidence = [Evidence.of_strategy(strategy(source, compiled), source.mesh, tensors, source.seed)]
            expected = strategy(target, compiled)
            silent, document = layout_file(source, target), layout_file(source, target, unsharded=unsharded)
            found = derive(document, tensors, "f", evidence)
            assert "OptimizerShardUnknown" not in {refused.error.reason for refused in found.refused}
            before = derive(silent, tensors, "f", evidence).derived.keys()
            stated += len(right(found, document, tensors, expected) - before)
    assert stated > 40, stated


@pytest.mark.parametrize("scale", [scale for family in FAMILIES for scale in family], ids=lambda scale: scale.seed)
def test_an_inferred_layout_file_leads_to_the_compiled_layouts(scale: Scale, compiled: Path) -> None:
    expected, tensors = strategy(scale, compiled), wholes(scale)
    named = {each.name for each in scale.parameters if each.kind != "default"}
    tensors = {name: tensor for name, tensor in tensors.items() if name in named}
    document = infer(expected, scale.mesh, scale.seed, tensors).document
    (layouts,) = resolve(document, tensors, "f").strategy.stages
    assert layouts.keys() == tensors.keys()
    assert all(is_equal(layout, expected.stages[0][name]) for name, layout in layouts.items())
