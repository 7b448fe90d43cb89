"""Derived shardings as rules of a layout file: they lead to the same slices, and on other meshes to those of the model."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
from effort import examples
from hypothesis import given
from hypothesis import strategies as st
from sharded_models import is_equal, mesh, model

from reshard.errors import DataError
from reshard.mesh.derive import derive
from reshard.mesh.evidence import Evidence
from reshard.mesh.infer import with_derived_rules
from reshard.mesh.questions import Derivation
from reshard.mesh.render import rendered
from reshard.mesh.resolve import resolve
from reshard.mesh.sharding import Whole
from reshard.model.tiling import Grid
from reshard.spec.layout import LayoutDocument, parse_layout
from reshard.strictyaml import documents

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reshard.mesh.infer import Inferred
    from reshard.mesh.resolve import Resolved


def written(document: LayoutDocument, tensors: Mapping[str, Whole], evidence: Evidence) -> tuple[Inferred, Resolved]:
    """Return the rules of the parameters that are derived, after a round trip as YAML, and the layouts of `derive`."""
    derived = Derivation(derive(document, tensors, "f", [evidence]).derived, ())
    resolved = resolve(document, tensors, "f", derived, incomplete=True)
    tensors = {name: tensors[name] for name in resolved.assigned}
    found = with_derived_rules(document, resolved, tensors, "f")
    (parsed,) = documents(rendered(found.document, found.comments), "f")
    assert parse_layout(parsed, "f") == found.document
    assert found.document.derive is None
    again = resolve(found.document, tensors, "f").strategy.stages
    for layouts, expected in zip(again, resolved.strategy.stages, strict=True):
        assert layouts.keys() == expected.keys()
        assert all(is_equal(layout, expected[name]) for name, layout in layouts.items())
    return found, resolved


@examples(300)
@given(st.integers(0, (1 << 32) - 1))
def test_rules_lead_to_the_slices_of_the_model_on_every_mesh(seed: int) -> None:
    """Without a comment, a rule has only one reading. Optimizer parallelism is left out on the other mesh."""
    rng = random.Random(seed)
    case = model(rng)
    document, evidence = case.document(), case.evidence(case.source, case.source_zero)
    if not derive(document, case.tensors, "f", [evidence]).derived:
        return
    found, derived = written(document, case.tensors, evidence)
    sizes = {axis: rng.choice([1, 2, 3, 4]) if case.source[axis] > 1 else size for axis, size in case.target.items()}
    rules = tuple(msgspec.structs.replace(rule, zero=True) for rule in found.document.rules)
    other = msgspec.structs.replace(found.document, mesh=mesh(sizes), rules=rules, zero=None)
    for name in derived.assigned:
        try:
            resolved = resolve(other, {name: case.tensors[name]}, "f", incomplete=True)
        except DataError as error:
            assert error.reason == "LayoutDoesNotDivide"  # noqa: PT017 - the shapes are those of two meshes
            continue
        assigned = resolved.assigned[name]
        expected = case.parameters[name]
        if not expected.default and "other readings" not in found.comments[assigned.rule or 0]:
            layout = resolved.strategy.stages[0][name]
            assert is_equal(layout, expected.layout(sizes, None)), (name, expected, rules[assigned.rule or 0])


def layout(mesh: str, **more: Any) -> LayoutDocument:
    return parse_layout({"apiVersion": "reshard.dev/layout-v1", "mesh": mesh, "derive": {"sourceMesh": "dp=2,tp=4"}} | more, "f")


# Rows by tp, columns by tp, and whole, in the source.
TENSORS = {
    **{f"layers.{i}.{name}": Whole("Float32", (16, 16)) for i in range(2) for name in ("wq", "wo", "norm")},
    **{f"m.layers.{i}.{name}": Whole("Float32", (16, 16)) for i in range(2) for name in ("wq", "wo", "norm")},
}
GRIDS = {
    name: Grid(
        ((0, 4, 8, 12, 16), (0, 16))
        if name.endswith("wq")
        else ((0, 16), (0, 4, 8, 12, 16))
        if name.endswith("wo")
        else ((0, 16), (0, 16))
    )
    for name in TENSORS
}
EVIDENCE = Evidence.of_grids(GRIDS, "dp=2,tp=4")


def lines(found: Inferred) -> list[str]:
    return [
        line.strip()
        for line in rendered(found.document, found.comments).splitlines()
        if "match" in line or line.startswith("state")
    ]


def test_rules_of_the_file_come_first() -> None:
    rule = {"match": "*.norm", "shard": {0: "dp"}}
    found, resolved = written(layout("dp=2,tp=2", rules=[rule], state=["m."]), TENSORS, EVIDENCE)
    assert lines(found) == [
        "state: [m.]",
        "- {match: '*.norm', shard: {0: dp}}",
        "- {match: layers.*.wq, shard: {0: tp}}",
        "- {match: layers.*.wo, shard: {1: tp}}",
    ]
    assert resolved.strategy.stages[0]["m.layers.1.norm"].parts == (2, 1)
    found, _ = written(layout("dp=2,tp=2"), TENSORS, EVIDENCE)
    assert lines(found) == [
        "state: [m.]",
        "- {match: layers.*.wq, shard: {0: tp}}",
        "- {match: layers.*.wo, shard: {1: tp}}",
        "- {match: layers.*.norm}",
    ]


def test_a_prefix_with_other_rules_is_no_state() -> None:
    found, _ = written(layout("dp=2,tp=2", rules=[{"match": "m.*.norm", "shard": {0: "dp"}}]), TENSORS, EVIDENCE)
    assert found.document.state == ()
    assert found.document.rules[1].patterns == ("layers.*.wq", "m.layers.*.wq")


def test_axes_of_zero_are_not_written_twice() -> None:
    found, resolved = written(layout("dp=4,tp=2", zero={"axes": "dp"}), TENSORS, EVIDENCE)
    assert resolved.strategy.stages[0]["layers.0.wq"].parts == (8, 1)
    assert [(rule.shard, rule.zero) for rule in found.document.rules] == [
        ({"0": ("tp", "dp")}, False),
        ({"0": "dp", "1": "tp"}, False),
        ({"0": "dp"}, False),
    ]


def test_pipeline_stages_are_those_of_the_file_or_of_the_layers() -> None:
    stages = {"layer": "layers.*.", "layers": 2}
    for more in ({"pipeline": stages, "state": ["m."]}, {"pipeline": stages | {"layer": "m.layers.*."}}):
        rules = [] if "state" in more else [{"match": "layers.*", "stage": "all", "zero": False}]
        found, resolved = written(layout("pp=2,dp=2,tp=2", rules=rules, **more), TENSORS, EVIDENCE)
        assert found.document.pipeline is not None
        assert [len(stage) for stage in resolved.strategy.stages] == ([6, 6] if "state" in more else [9, 9])


def test_another_reading_that_leads_to_equal_slices_is_in_a_comment() -> None:
    evidence = Evidence.of_grids(GRIDS, "dp=4,tp=4")
    document = layout("dp=1,tp=1", derive={"sourceMesh": "dp=4,tp=4"})
    found, _ = written(document, TENSORS, evidence)
    assert found.comments[0] == "2 parameters; other readings: {0: [tp]} in the order dp, tp"
    assert "ambiguous in the mesh dp=1,tp=1" in found.notes[0]
    assert replace(found, notes=()) != found
