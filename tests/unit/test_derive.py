"""Derivation of a target's layouts from those of its source: equal to the truth of random models, or refused with the answer."""

from __future__ import annotations

import random
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from effort import examples
from hypothesis import given
from hypothesis import strategies as st
from sharded_models import Model, is_equal, model

from reshard.errors import DataError, RequestError, ReshardError
from reshard.layout import Layout
from reshard.mesh.derive import derive
from reshard.mesh.evidence import Evidence, Meshed
from reshard.mesh.problems import raise_all
from reshard.mesh.questions import MOST_LINES, Derivation
from reshard.mesh.render import rule_line
from reshard.mesh.resolve import resolve
from reshard.mesh.sharding import Whole
from reshard.model.tiling import Grid
from reshard.spec.layout import LayoutDocument, Zero, parse_layout
from reshard.strategy import Strategy
from reshard.strictyaml import documents

if TYPE_CHECKING:
    from reshard.mesh.questions import Refused

ANSWERED = {"LayoutAmbiguous", "OptimizerShardUnknown", "LayerStageUnknown"}


def check(case: Model, found: Derivation, document: LayoutDocument) -> int:
    """Check that no sharding is wrong, and return the number of derived ones."""
    tensors = {name: case.tensors[name] for name in found.derived}
    layouts = resolve(document, tensors, "f", Derivation(found.derived, ())).strategy.stages[0]
    for name, layout in layouts.items():
        expected = case.parameters[name].layout(case.target, case.target_zero)
        assert is_equal(layout, expected), (name, case.parameters[name], layout, expected)
    return len(layouts)


def check_answer(case: Model, refused: Refused, evidence: list[Evidence]) -> None:
    """Check that one of the proposed rules makes the parameters what they are."""
    names = [name for name in refused.names if not case.parameters[name].default]  # no axes need to lead to these
    expected = {name: case.parameters[name].layout(case.target, case.target_zero) for name in names}
    right: set[str] = set()
    for rule in refused.rules:
        ((line,),) = documents(rule_line(rule), "rule")
        document = case.document(line)
        again = derive(document, case.tensors, "f", evidence)
        assert not set(names) & {name for each in again.refused for name in each.names}
        for name in set(names) - right:
            try:
                alone = Derivation(again.derived, ())
                (stage,) = resolve(document, {name: case.tensors[name]}, "f", alone).strategy.stages
            except DataError as error:
                assert error.reason == "LayoutDoesNotDivide"  # noqa: PT017 - one of two permitted results
                continue
            right |= {name} if is_equal(stage[name], expected[name]) else set()
    assert all(rule_line(rule) in str(refused.error) for rule in refused.rules[:MOST_LINES])
    assert right == set(names)


@examples(300)
@given(st.integers(0, (1 << 32) - 1))
def test_derived_layouts_are_those_of_the_target_or_refused_with_the_answer(seed: int) -> None:
    rng = random.Random(seed)
    case = model(rng)
    evidence = [case.evidence(case.source, case.source_zero)]
    found = derive(case.document(), case.tensors, "f", evidence)
    check(case, found, case.document())
    for refused in found.refused:
        if refused.error.reason in ANSWERED:
            check_answer(case, refused, evidence)


@examples(150)
@given(st.integers(0, (1 << 32) - 1))
def test_a_witness_leaves_fewer_questions_and_no_wrong_layout(seed: int) -> None:
    rng = random.Random(seed)
    case = model(rng)
    source = case.evidence(case.source, case.source_zero)
    sizes = {axis: rng.choice([1, 2, 3, 4]) for axis in case.source}
    parameters = {
        name: replace(
            each, shape=tuple(n * prod(sizes[axis] for axis in cuts) for n, cuts in zip(each.shape, each.dims, strict=True))
        )
        for name, each in case.parameters.items()
    }
    case = replace(case, parameters=parameters)
    witness = case.evidence(sizes, Zero(0) if rng.random() < 0.5 else None)
    source = case.evidence(case.source, case.source_zero)
    alone, both = (derive(case.document(), case.tensors, "f", each) for each in ([source], [source, witness]))
    for found in (alone, both):
        check(case, found, case.document())
    # A witness can show that no axes lead to the slices, where the source by itself seems to show which.
    assert all(case.parameters[name].default for name in alone.derived.keys() - both.derived.keys())


@examples(150)
@given(st.integers(0, (1 << 32) - 1))
def test_one_field_answers_all_questions_about_optimizer_parallelism(seed: int) -> None:
    case = model(random.Random(seed))
    document = case.document()
    unsharded = [name for name, each in case.parameters.items() if not each.flag]
    how = msgspec.structs.replace(document.derive or pytest.fail("no derivation"), unsharded=tuple(unsharded))
    document = msgspec.structs.replace(document, derive=how)
    found = derive(document, case.tensors, "f", [case.evidence(case.source, case.source_zero)])
    check(case, found, document)
    for each in found.refused:
        assert each.error.reason != "OptimizerShardUnknown"
        assert "derive.unsharded" not in str(each.error)
        assert len({rule.zero for rule in each.rules if rule.shard == each.rules[0].shard}) <= 1


def test_most_random_parameters_are_derived() -> None:
    derived = refused = 0
    for seed in range(50):
        case = model(random.Random(seed))
        found = derive(case.document(), case.tensors, "f", [case.evidence(case.source, case.source_zero)])
        derived += check(case, found, case.document())
        refused += sum(len(each.names) for each in found.refused)
    assert derived > 100
    assert refused > 50


# --- a language model ------------------------------------------------------------------------------------------------------

WEIGHTS: dict[str, dict[str, Any]] = {
    "attention.wq.weight": {"shard": {0: "tp"}},
    "attention.wo.weight": {"shard": {1: "tp"}},
    "attention_norm.weight": {"zero": False},
}
ENDS: list[dict[str, Any]] = [
    {"match": "embedding.weight", "shard": {0: "tp"}, "stage": "first", "zero": False},
    {"match": "head.weight", "shard": {0: "tp"}, "stage": "last"},
]
LLAMA = [*({"match": f"*.{name}", **rule} for name, rule in WEIGHTS.items()), *ENDS]
UNSHARDED = ["*norm*", "embedding.*"]
TENSORS = {
    "embedding.weight": Whole("BFloat16", (64, 32)),
    **{
        f"layers.{i}.{name}": Whole("BFloat16", (64, 32) if "norm" not in name else (4096,)) for i in range(4) for name in WEIGHTS
    },
    "head.weight": Whole("BFloat16", (64, 32)),
}
TENSORS |= {f"adam_m.{name}": Whole("Float32", tensor.shape) for name, tensor in TENSORS.items()}


def layout_file(mesh: str, rules: list[dict[str, Any]], *, zero: bool = False, **more: Any) -> LayoutDocument:
    fields = {
        "apiVersion": "reshard.dev/layout-v1",
        "mesh": mesh,
        "state": ["adam_m."],
        "rules": rules,
        "pipeline": {"layer": "layers.*.", "layers": 4},
    }
    return parse_layout(fields | ({"zero": {"threshold": 1024}} if zero else {}) | more, "layout.yaml")


def language_model(mesh: str, *, zero: bool = False) -> Strategy:
    return resolve(layout_file(mesh, LLAMA, zero=zero), TENSORS, "f").strategy


def refusal(found: Derivation) -> str:
    """Return the message about all questions."""
    with pytest.raises(ReshardError) as caught:
        raise_all([each.error for each in found.refused])
    return str(caught.value)


def scaled(
    source: str,
    target: str,
    rules: list[dict[str, Any]],
    *,
    zero: tuple[bool, bool] = (False, False),
    witness: str = "",
    **more: Any,
) -> Derivation:
    """Derive the layouts of the language model on another mesh. They must not be wrong."""
    document = layout_file(target, rules, zero=zero[1], derive={"sourceMesh": source} | more)
    evidence = [Evidence.of_strategy(language_model(source, zero=zero[0]), source, TENSORS, "source")]
    if witness:
        evidence.append(Evidence.of_strategy(language_model(witness, zero=True), witness, TENSORS, "witness"))
    found = derive(document, TENSORS, "layout.yaml", evidence)
    if not found.refused:
        expected = language_model(target, zero=zero[1]).stages
        stages = resolve(document, TENSORS, "f", found).strategy.stages
        for stage, layouts in zip(stages, expected, strict=True):
            assert stage.keys() == layouts.keys()
            assert all(is_equal(stage[name], layout) for name, layout in layouts.items())
    return found


@pytest.mark.parametrize(
    ("source", "target", "zero"),
    [
        ("dp=2,tp=4", "dp=4,tp=2", (False, False)),
        ("dp=2,tp=4", "tp=8", (True, False)),
        ("dp=4,tp=2", "dp=2,tp=4", (True, True)),
        ("pp=2,dp=2,tp=4", "pp=4,dp=8,tp=2", (True, True)),
        ("dp=4,pp=2,tp=2", "dp=2,tp=2", (False, False)),
        ("pp=2,dp=2,tp=4", "pp=2,dp=4,tp=2", (True, True)),
    ],
)
def test_a_language_model_is_derived_without_questions(source: str, target: str, zero: tuple[bool, bool]) -> None:
    assert scaled(source, target, [], zero=zero).refused == ()


@pytest.mark.parametrize(
    ("source", "target", "zero", "reason", "answer"),
    [
        ("dp=2,tp=2", "dp=4,tp=2", (True, True), "LayoutAmbiguous", {"replicated": "dp"}),
        ("dp=2,tp=2", "dp=4,tp=2", (True, True), "LayoutAmbiguous", {"witness": "dp=4,tp=2"}),
        ("dp=2,tp=2", "dp=4,tp=2", (True, True), "LayoutAmbiguous", {"rules": LLAMA}),
        ("dp=1,tp=4", "dp=4,tp=2", (False, False), "NoWitness", {"replicated": "dp"}),
        ("dp=1,tp=4", "dp=4,tp=2", (False, True), "NoWitness", {"witness": "dp=4,tp=2"}),
        ("dp=2,tp=4", "dp=4,tp=2", (False, True), "OptimizerShardUnknown", {"witness": "dp=2,tp=4"}),
        ("dp=2,tp=4", "dp=4,tp=2", (False, True), "OptimizerShardUnknown", {"unsharded": UNSHARDED}),
        ("dp=1,tp=4", "dp=4,tp=2", (False, True), "NoWitness", {"replicated": "dp", "unsharded": UNSHARDED}),
        ("dp=2,tp=2", "dp=4,tp=2", (False, True), "LayoutAmbiguous", {"replicated": "dp", "unsharded": UNSHARDED}),
        ("dp=2,cp=2,tp=4", "dp=4,cp=2,tp=2", (False, False), "LayoutAmbiguous", {"replicated": ["dp", "cp"]}),
        ("dp=2,cp=2,tp=4", "dp=4,cp=2,tp=2", (False, False), "LayoutAmbiguous", {"witness": "dp=3,tp=2"}),
        ("dp=2,tp=4", "pp=2,dp=4,tp=2", (False, False), "LayerStageUnknown", {"rules": ENDS}),
    ],
)
def test_a_question_is_refused_and_answered(
    source: str, target: str, zero: tuple[bool, bool], reason: str, answer: dict[str, Any]
) -> None:
    text = refusal(scaled(source, target, [], zero=zero))
    assert text.startswith(reason)
    assert [field for field in answer if field in ("replicated", "unsharded") and f"`derive.{field}" not in text] == []
    assert scaled(source, target, answer.pop("rules", []), zero=zero, **answer).refused == ()


def test_all_questions_are_in_one_message() -> None:
    text = refusal(scaled("dp=2,tp=2", "pp=2,dp=4,tp=2", []))
    for line in (
        "- {match: layers.*.attention.wq.weight, shard: {0: tp}}",
        "- {match: layers.*.attention.wq.weight, shard: {0: dp}, order: [tp, dp]}",
        "- {match: layers.*.attention.wo.weight, shard: {1: tp}}",
        "- {match: [embedding.weight, head.weight], shard: {0: tp}, stage: first}",
        "`derive.replicated: [dp]`",
        "solve each of these problems (3)",
    ):
        assert line in text
    ends = next(each.error for each in scaled("dp=2,tp=2", "pp=2,dp=4,tp=2", []).refused if "head.weight" in each.names)
    assert "derive.replicated" not in str(ends)  # the question about the stage would remain


def test_a_threshold_that_is_lower_than_that_of_the_source_is_a_question() -> None:
    tensors = {"big": Whole("Float32", (64, 32)), "small": Whole("Float32", (16, 32))}
    layouts = {"big": Layout((8,), ((), ()), 1, -1), "small": Layout((8,), ((), ()))}  # the threshold was 4096 bytes
    evidence = Evidence.of_strategy(Strategy((layouts,), 8), "dp=2,tp=4", tensors, "f")
    found = derive(layout_file("dp=4,tp=2", [], zero=True, derive={"sourceMesh": "dp=2,tp=4"}), tensors, "f", [evidence])
    assert {name: each.error.reason for each in found.refused for name in each.names} == {"small": "OptimizerShardUnknown"}
    assert found.derived["big"].zero is not None


def test_a_field_that_contradicts_the_source_is_a_question() -> None:
    found = scaled(
        "dp=2,tp=4", "dp=4,tp=2", [], zero=(True, True), unsharded=["*norm*", "embedding.*", "layers.0.attention.wq.*"]
    )
    (refused,) = found.refused
    assert refused.error.reason == "OptimizerShardUnknown"
    assert refused.names == ("layers.0.attention.wq.weight", "adam_m.layers.0.attention.wq.weight")
    assert "contradict each other" in refused.error.what
    assert "derive.unsharded`" not in str(refused.error.fix)


def test_the_unknown_size_of_an_absent_parameter_is_a_question() -> None:
    tensors = {"adam_m.w": Whole("Float32", (16, 32))}  # its parameter has between 512 bytes and 8 kB
    evidence = Evidence.of_strategy(Strategy(({"adam_m.w": Layout((8,), ((), ()))},), 8), "dp=2,tp=4", tensors, "f")
    document = layout_file("dp=4,tp=2", [], zero=True, derive={"sourceMesh": "dp=2,tp=4", "unsharded": []})
    (refused,) = derive(document, tensors, "f", [evidence]).refused
    assert "does not show whether optimizer parallelism divides it" in refused.error.what
    assert "derive.unsharded" not in str(refused.error)


def test_all_shapes_that_the_target_does_not_divide_are_in_one_message() -> None:
    tensors = {"a.weight": Whole("Float32", (8, 5)), "b.weight": Whole("Float32", (6, 8)), "c.weight": Whole("Float32", (12, 3))}
    layouts = {name: Layout((2, 2), ((0,), ())) for name in tensors}
    evidence = [Evidence.of_strategy(Strategy((layouts,), 4), "dp=2,tp=2", tensors, "f")]
    fields = {"derive": {"sourceMesh": "dp=2,tp=2", "replicated": "dp"}, "pipeline": None}
    document = layout_file("dp=2,tp=8", [{"match": "c.*", "shard": {"0": "tp"}}], **fields)
    found = derive(document, tensors, "f", evidence)
    assert found.derived.keys() == {"a.weight"}
    with pytest.raises(DataError) as caught:
        resolve(document, tensors, "f", found)
    assert caught.value.reason == "LayoutDoesNotDivide"
    for text in ("dimension 0 of length 6 by tp", "- {match: b.weight}", "rule 1 (c.*) does not fit the shape [12, 3]"):
        assert text in str(caught.value)
    answered = layout_file("dp=2,tp=8", [{"match": "b.weight"}, {"match": "c.*"}], **fields)
    assert resolve(answered, tensors, "f", derive(answered, tensors, "f", evidence)).strategy.stages[0]["b.weight"].parts == (
        1,
        1,
    )


def test_a_witness_of_another_model_is_refused() -> None:
    tensors = {"w": Whole("Float32", (64, 32))}
    source, other = Layout((2, 4), ((0,), ())), Layout((4, 2), ((1,), ()))  # by `tp`, and by `dp`
    evidence = [
        Evidence.of_strategy(Strategy(({"w": layout},), 8), axes, tensors, "f")
        for layout, axes in ((source, "dp=2,tp=4"), (other, "dp=4,tp=2"))
    ]
    found = derive(layout_file("dp=8", [], derive={"sourceMesh": "dp=2,tp=4"}), tensors, "f", evidence)
    assert [each.error.reason for each in found.refused] == ["LayoutNotDerivable"]


def test_a_parameter_that_was_too_odd_to_divide_is_refused() -> None:
    # A model with `tp` = 4 leaves 6 rows whole, but may divide them by 2.
    tensors = {"head.weight": Whole("Float32", (6, 5))}

    def derived(*meshes: tuple[str, int]) -> Derivation:
        strategies = [Strategy(({"head.weight": Layout((ranks,), ((), ()))},), ranks) for _, ranks in meshes]
        evidence = [Evidence.of_strategy(each, axes, tensors, "f") for each, (axes, _) in zip(strategies, meshes, strict=True)]
        return derive(layout_file("dp=4,tp=2", [], derive={"sourceMesh": meshes[0][0]}), tensors, "f", evidence)

    (refused,) = derived(("dp=2,tp=4", 8)).refused
    assert refused.error.reason == "NoWitness"
    assert [rule_line(rule) for rule in refused.rules] == ["- {match: head.weight}", "- {match: head.weight, shard: {0: tp}}"]
    assert derived(("dp=2,tp=4", 8), ("dp=4,tp=2", 8)).refused == ()


@pytest.mark.parametrize(
    ("mesh", "text"),
    [
        ("dp=2,tp=2", "1 pipeline stages of 4 ranks, but the strategy has 2 of 8"),
        ("pp=2,dp=2,tp=2", "2 pipeline stages of 4 ranks"),
    ],
)
def test_a_mesh_of_another_strategy_is_refused(mesh: str, text: str) -> None:
    with pytest.raises(RequestError, match=text) as caught:
        Evidence.of_strategy(language_model("pp=2,dp=2,tp=4"), mesh, TENSORS, "strategy")
    assert caught.value.reason == "MeshMismatch"


@pytest.mark.parametrize(
    ("source", "target", "text"),
    [
        ("dp=2,tp=4", "tp=2,dp=4", "the order tp, dp, that of the source in the order dp, tp"),
        ("pp=2,dp=2,cp=2,tp=2", "pp=2,dp=2,tp=2,cp=2", "the order dp, tp, cp"),
    ],
)
def test_another_order_of_axes_than_that_of_the_source_is_refused(source: str, target: str, text: str) -> None:
    with pytest.raises(RequestError, match=text) as caught:
        scaled(source, target, [])
    assert caught.value.reason == "MeshMismatch"


def test_an_order_that_explains_no_parameter_is_refused() -> None:
    evidence = [Evidence.of_strategy(language_model("dp=2,tp=4"), "tp=4,dp=2", TENSORS, "source")]

    def derived(rules: list[dict[str, Any]]) -> Derivation:
        document = layout_file("tp=2,dp=4", rules, derive={"sourceMesh": "tp=4,dp=2"})
        return derive(document, TENSORS, "layout.yaml", evidence)

    with pytest.raises(RequestError, match=r"tp, dp, explains the layout of no parameter, but dp, tp would") as caught:
        derived([])
    assert caught.value.reason == "MeshMismatch"
    ruled = [{"match": rule["match"], "shard": rule["shard"], "order": ["dp", "tp"]} for rule in LLAMA if "shard" in rule]
    assert derived(ruled).refused == ()  # only whole parameters are derived


def test_a_parameter_can_have_an_order_of_its_own() -> None:
    tensors = {"w": Whole("Float32", (64, 32)), "other": Whole("Float32", (64, 32))}
    layouts = {"w": Layout((2, 4), ((0,), ())), "other": Layout((4, 2), ((1,), ()))}  # by the inner and by the outer ranks
    evidence = Evidence.of_strategy(Strategy((layouts,), 8), "dp=2,tp=4", tensors, "f")
    derived = derive(layout_file("dp=4,tp=2", [], derive={"sourceMesh": "dp=2,tp=4"}), tensors, "f", [evidence]).derived
    assert {name: each.sharding.order for name, each in derived.items()} == {"w": ("dp", "tp"), "other": ("tp", "dp")}


def test_a_stage_with_only_parameters_of_earlier_stages_is_a_stage() -> None:
    fields = {"state": [], "pipeline": {"layer": "layers.*.", "counts": [2, 0]}}
    rules = [{"match": "embedding", "stage": "all", "shard": {0: "tp"}}, {"match": "*", "shard": {0: "tp"}}]
    tensors = {name: Whole("Float32", (16, 8)) for name in ("embedding", "layers.0.w", "layers.1.w")}
    source = resolve(layout_file("pp=2,dp=2,tp=4", rules, **fields), tensors, "f").strategy
    evidence = Evidence.of_strategy(source, "pp=2,dp=2,tp=4", tensors, "f")
    document = layout_file("pp=2,dp=4,tp=2", [], derive={"sourceMesh": "pp=2,dp=2,tp=4"}, **fields)
    derived = derive(document, tensors, "f", [evidence]).derived
    assert {name: each.stages for name, each in derived.items()} == {
        "embedding": (0, 1),
        "layers.0.w": (0,),
        "layers.1.w": (0,),
    }


# --- experts ---------------------------------------------------------------------------------------------------------------

EXPERTS = {
    "layers.0.attention.wq.weight": ({0: "tp"}, (64, 32)),
    "layers.0.attention.wo.weight": ({1: "tp"}, (64, 32)),
    "layers.0.experts.w1": ({0: "ep"}, (16, 8)),
    "layers.0.experts.w2": ({0: "ep", 1: "edp"}, (16, 16)),
    "layers.0.experts.bias": ({}, (48,)),
}
EXPERT_TENSORS = {name: Whole("Float32", shape) for name, (_, shape) in EXPERTS.items()}
EXPERT_RULES = [{"match": name, "shard": shard} for name, (shard, _) in EXPERTS.items()]


def expert_file(mesh: str, expert_mesh: str, **more: Any) -> LayoutDocument:
    fields = {"apiVersion": "reshard.dev/layout-v1", "mesh": mesh, "expertMesh": expert_mesh}
    return parse_layout(fields | more, "layout.yaml")


def derived_experts(
    source: tuple[str, str], target: tuple[str, str], witness: tuple[str, str] | None = None, *, zero: bool = False, **more: Any
) -> Derivation:
    """Derive the layouts of a model with experts on other meshes. They must not be wrong."""
    optimizer = {"zero": {"threshold": 0}} if zero else {}
    shown = []
    for meshes in (source, witness):
        if meshes is not None:
            strategy = resolve(expert_file(*meshes, rules=EXPERT_RULES, **optimizer), EXPERT_TENSORS, "f").strategy
            shown.append(Meshed(strategy, *meshes, "f"))
    how = {"sourceMesh": source[0], "sourceExpertMesh": source[1], "experts": "*.experts.*"} | more
    document = expert_file(*target, derive=how, **optimizer)
    evidence = [each.evidence(EXPERT_TENSORS) for each in shown]
    found = derive(document, EXPERT_TENSORS, "f", evidence, None, [e for each in shown for e in each.of_experts(EXPERT_TENSORS)])
    expected = resolve(expert_file(*target, rules=EXPERT_RULES, **optimizer), EXPERT_TENSORS, "f").strategy
    derived = resolve(
        document, {name: EXPERT_TENSORS[name] for name in found.derived}, "f", Derivation(found.derived, ())
    ).strategy
    for stage, layouts in zip(derived.stages, expected.stages, strict=True):
        assert all(is_equal(layout, layouts[name]) for name, layout in stage.items())
    return found


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        (("dp=2,tp=4", "edp=4,ep=2"), ("dp=4,tp=2", "edp=2,ep=4")),
        (("dp=4,tp=2", "edp=2,ep=4"), ("dp=2,tp=2", "edp=4,ep=1")),
        (("dp=2,tp=4", "ep=8"), ("dp=2,tp=2", "ep=4")),
        (("dp=2,tp=4", "edp=4,ep=2"), ("tp=4", "edp=2,ep=2")),
    ],
)
def test_experts_are_derived_by_their_own_axes(source: tuple[str, str], target: tuple[str, str], zero: bool) -> None:
    if "edp" not in source[1]:
        source, target = (source[0], f"edp=1,{source[1]}"), (target[0], f"edp=1,{target[1]}")
    assert derived_experts(source, target, zero=zero).refused == ()


@pytest.mark.parametrize(
    ("source", "target", "reason", "answer"),
    [
        (("dp=2,tp=4", "edp=8,ep=1"), ("dp=2,tp=4", "edp=4,ep=2"), "NoWitness", {"witness": ("dp=2,tp=4", "edp=4,ep=2")}),
        (("tp=4", "edp=2,ep=2"), ("tp=8", "edp=2,ep=4"), "LayoutAmbiguous", {"witness": ("tp=8", "edp=2,ep=4")}),
    ],
)
def test_open_questions_about_experts_are_refused(
    source: tuple[str, str], target: tuple[str, str], reason: str, answer: dict[str, Any]
) -> None:
    refused = derived_experts(source, target).refused
    assert {each.error.reason for each in refused} == {reason}
    assert {name for each in refused for name in each.names} <= {name for name in EXPERTS if "experts" in name}
    assert derived_experts(source, target, **answer).refused == ()


def test_experts_of_a_source_that_locates_its_slices_are_derived() -> None:
    found = {"w": Grid.equal((16, 8), (4, 1)), "experts.w": Grid.equal((16, 8), (2, 4))}
    tensors = {name: Whole("Float32", (16, 8)) for name in found}
    how = {"sourceMesh": "dp=2,tp=4", "sourceExpertMesh": "edp=4,ep=2", "experts": ["experts.*"]}
    document = expert_file("dp=4,tp=2", "edp=2,ep=4", derive=how)
    evidence, experts = Evidence.of_grids(found, how["sourceMesh"]), Evidence.of_grids(found, how["sourceExpertMesh"])
    derived = derive(document, tensors, "f", [evidence], None, [experts]).derived
    assert {name: each.sharding.dims for name, each in derived.items()} == {"w": (("tp",), ()), "experts.w": (("ep",), ("edp",))}


def test_axes_of_both_meshes_divide_no_expert() -> None:
    found = derived_experts(("dp=2,tp=4", "edp=4,ep=2"), ("dp=4,tp=2", "edp=2,ep=4"))
    assert found.refused == ()
    how = {"sourceMesh": "dp=2,tp=4", "sourceExpertMesh": "edp=4,ep=2", "experts": "*.experts.*"}
    document = expert_file("dp=4,tp=2", "edp=2,ep=4", derive=how, zero={"axes": "dp"}, rules=EXPERT_RULES[:2])
    strategy = resolve(expert_file("dp=2,tp=4", "edp=4,ep=2", rules=EXPERT_RULES), EXPERT_TENSORS, "f").strategy
    shown = Meshed(strategy, "dp=2,tp=4", "edp=4,ep=2", "f")
    evidence, experts = [shown.evidence(EXPERT_TENSORS)], shown.of_experts(EXPERT_TENSORS)
    (refused,) = derive(document, EXPERT_TENSORS, "f", evidence, None, experts).refused
    assert (refused.error.reason, len(refused.names)) == ("LayoutNotDerivable", 3)
    assert "`zero` has axes of the other mesh: dp" in refused.error.what


# --- sources that locate their slices --------------------------------------------------------------------------------------


def grids(source: str, target: str, **fields: Any) -> Derivation:
    found = {
        "column": Grid.equal((16, 8), (4, 1)),
        "row": Grid.equal((16, 8), (1, 4)),
        "both": Grid.equal((16, 8), (8, 1)),
        "whole": Grid.equal((16, 8), (1, 1)),
        "uneven": Grid(((0, 3, 6, 9, 10), (0, 8))),
    }
    tensors = {name: Whole("Float32", (grid.cuts[0][-1], 8)) for name, grid in found.items()}
    document = layout_file(target, [], derive={"sourceMesh": source}, pipeline=None, **fields)
    return derive(document, tensors, "layout.yaml", [Evidence.of_grids(found, source)])


def test_grids_are_read_as_lists_of_axes() -> None:
    derived = grids("dp=2,tp=4", "dp=2,tp=2").derived
    assert {name: each.sharding.dims for name, each in derived.items()} == {
        "column": (("tp",), ()),
        "row": ((), ("tp",)),
        "whole": ((), ()),
        "uneven": (("tp",), ()),
    }


def test_grids_with_several_readings_are_refused() -> None:
    (both,) = grids("dp=2,tp=4", "dp=2,tp=2").refused
    assert (both.names, both.error.reason) == (("both",), "LayoutAmbiguous")
    assert [rule_line(rule) for rule in both.rules] == [
        "- {match: both, shard: {0: [dp, tp]}}",
        "- {match: both, shard: {0: [tp, dp]}}",
    ]
    refused = [each for each in grids("dp=2,tp=2", "dp=2,tp=4").refused if "row" in each.names]
    assert [each.error.reason for each in refused] == ["LayoutAmbiguous"]
    refused = [each for each in grids("dp=4,tp=1", "dp=4,tp=4").refused if "row" in each.names]
    assert [each.error.reason for each in refused] == ["NoWitness"]


def test_a_grid_that_no_axes_explain_is_refused() -> None:
    refused = {name: each.error.reason for each in grids("dp=2,tp=3", "dp=2").refused for name in each.names}
    assert refused == dict.fromkeys(("column", "both", "uneven"), "LayoutNotDerivable")


def test_grids_with_too_many_readings_are_refused() -> None:
    axes = ",".join(f"a{i}=2" for i in range(6))
    for shape in ((1, 1, 1, 1, 1, 8), (1, 1, 8), (2, 2, 2, 2, 3)):
        grid = Grid(tuple(tuple(range(n + 1)) if n in (2, 3) else (0, n) for n in shape))
        document = layout_file(axes, [], derive={"sourceMesh": axes}, pipeline=None)
        found = derive(document, {"w": Whole("Float32", shape)}, "f", [Evidence.of_grids({"w": grid}, axes)])
        (refused,) = found.refused
        assert refused.error.reason == "LayoutAmbiguous"
        assert "more than 64 readings" in refused.error.what


def test_an_axis_that_divides_another_parameter_is_not_proposed_as_replicated() -> None:
    found = {"one": Grid.equal((16, 8), (2, 1)), "two": Grid.equal((16, 8), (2, 2))}

    def fixes(*names: str) -> str:
        tensors = {name: Whole("Float32", (16, 8)) for name in names}
        document = layout_file("dp=4,tp=2", [], derive={"sourceMesh": "dp=2,tp=2"}, pipeline=None)
        evidence = Evidence.of_grids({name: found[name] for name in names}, "dp=2,tp=2")
        return " ".join(str(each.error.fix) for each in derive(document, tensors, "f", [evidence]).refused)

    assert "derive.replicated: [dp]" in fixes("one")
    assert "derive.replicated" not in fixes("one", "two")  # both axes divide the other one
