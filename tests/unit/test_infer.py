"""Layout files that are inferred from strategies: applied to the same parameters, they lead to the same slices."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from effort import examples
from hypothesis import given
from hypothesis import strategies as st
from pages import ROOT
from sharded_models import is_equal, mesh, model

from reshard.errors import RequestError
from reshard.layout import Layout
from reshard.mesh.infer import Inferred, infer
from reshard.mesh.patterns import suffixes
from reshard.mesh.render import rendered
from reshard.mesh.resolve import resolve
from reshard.mesh.sharding import Whole
from reshard.spec.layout import LayoutDocument, parse_layout
from reshard.strategy import Strategy, parse
from reshard.strictyaml import documents

if TYPE_CHECKING:
    from pathlib import Path

CORPUS = ROOT / "tests" / "conformance" / "corpus"
RECORDED = {
    "src_strategy.ckpt": "dp=2,cp=2,tp=2",
    "dst_strategy_2.ckpt": "tp=2",
    "dst_strategy_4.ckpt": "dp=2,tp=2",
    "dst_strategy_7.ckpt": "tp=7",
    "training/src_strategy.ckpt": "dp=2,cp=2,tp=2",
    "training/dst_strategy.ckpt": "dp=2,tp=2",
    "training/predict_strategy.ckpt": "dp=2,tp=2",
    "training/src_pipeline_strategy": "pp=2,dp=2,tp=2",
    "experts/src_strategy": "dp=2,ep=2,tp=2",
    "experts/dst_strategy.ckpt": "ep=2,tp=2",
    "pipeline/src_strategy": "pp=2,dp=2,tp=2",
    "pipeline/dst_strategy.ckpt": "tp=4",
}


def read_back(document: LayoutDocument, comments: dict[int, str] | None = None) -> LayoutDocument:
    (parsed,) = documents(rendered(document, comments), "layout.yaml")
    return parse_layout(parsed, "layout.yaml")


def round_trip(strategy: Strategy, axes: str, tensors: dict[str, Whole] | None = None) -> Inferred:
    """Infer the layout file of a strategy, and check the slices to which it leads."""
    found = infer(strategy, axes, "strategy", tensors)
    assert read_back(found.document, dict(found.comments)) == found.document
    wholes = tensors or {
        name: Whole("Float32", tuple(2 * n for n in layout.parts))
        for names in strategy.stages
        for name, layout in names.items()
        if not name.startswith("accu_grads.")  # no checkpoint has these
    }
    resolved = resolve(found.document, wholes, "f")
    assert resolved.notes == ()
    for names, expected in zip(resolved.strategy.stages, strategy.stages, strict=True):
        known = {name for name in expected if name in wholes and wholes[name].shape}
        assert names.keys() == known
        assert all(is_equal(names[name], expected[name]) for name in known)
    return found


def recorded(path: Path) -> Strategy:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return Strategy.from_files([parse(file.read_bytes(), file.name) for file in files])


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_strategies_are_described(name: str) -> None:
    round_trip(recorded(CORPUS / name), RECORDED[name])


@examples(300)
@given(st.integers(0, (1 << 32) - 1))
def test_random_strategies_are_described_or_refused(seed: int) -> None:
    rng = random.Random(seed)
    case = model(rng)
    strategy = case.strategy(case.source, case.source_zero)
    for tensors in (case.tensors, None):
        try:
            round_trip(strategy, mesh(case.source), tensors)
        except RequestError as error:
            assert error.reason == "LayoutNotDerivable"  # noqa: PT017 - one of two permitted results
            assert any(each.default for each in case.parameters.values())


LLAMA = """\
apiVersion: reshard.dev/layout-v1
mesh: pp=2,dp=2,tp=4
state: [adam_m., adam_v.]
pipeline: {layer: model.layers.*., counts: [3, 1]}
zero: {threshold: 65536}
rules:
  # 1 parameter
  - {match: model.tok_embeddings.embedding_weight, shard: {0: [dp, tp]}, stage: first}
  # 8 parameters
  - {match: ['*.wq.weight', '*.w1.weight'], shard: {0: tp}}
  # 4 parameters
  - {match: '*.wo.weight', shard: {1: tp}, zero: false}
  # 4 parameters
  - {match: '*.attention_norm.weight'}
  # 1 parameter
  - {match: lm_head.weight, shard: {0: tp}, stage: last}
"""
SHAPES = {
    "model.tok_embeddings.embedding_weight": (1024, 64),
    **{f"model.layers.{i}.attention.{name}.weight": (256, 256) for i in range(4) for name in ("wq", "wo")},
    **{f"model.layers.{i}.feed_forward.w1.weight": (256, 128) for i in range(4)},
    **{f"model.layers.{i}.attention_norm.weight": (256,) for i in range(4)},
    "lm_head.weight": (1024, 64),
}
TENSORS = {prefix + name: Whole("Float32", shape) for prefix in ("", "adam_m.", "adam_v.") for name, shape in SHAPES.items()}


def test_a_language_model_has_a_short_layout_file() -> None:
    ((parsed,), where) = documents(LLAMA, "layout.yaml"), "layout.yaml"
    strategy = resolve(parse_layout(parsed, where), TENSORS, where).strategy
    found = round_trip(strategy, "pp=2,dp=2,tp=4", TENSORS)
    assert rendered(found.document, found.comments) == LLAMA
    assert found.notes == (
        "the threshold in `zero` is between 1025 and 131072 bytes unless rules with `zero: false` have other reasons",
    )


def test_other_readings_are_in_a_comment() -> None:
    found = round_trip(recorded(CORPUS / "training" / "dst_strategy.ckpt"), "dp=2,tp=2")
    assert found.comments[1] == "1 parameter; other readings: {0: [dp]} in the order tp, dp"
    assert [note.partition(" ")[0] for note in found.notes] == ["the", "rules"]
    assert found.document.zero is not None
    assert found.document.zero.threshold == 0


@pytest.mark.parametrize(
    ("layouts", "patterns"),
    [
        # The exceptional layer is before the pattern.
        ({f"layers.{i}.w": (2, 4) if i == 1 else (4, 2) for i in range(4)}, ["layers.1.w", "layers.*.w"]),
        # The longer pattern is before the shorter one that matches its names.
        ({"layers.0.w": (4, 2), "layers.1.w": (4, 2), "layers.0.x.w": (2, 4), "layers.1.x.w": (2, 4)}, ["*.x.w", "layers.*.w"]),
        # The end of the names does not tell the parameters apart.
        ({f"{part}.{i}.n.w": (4, 2) if part == "a" else (2, 4) for part in "ab" for i in range(2)}, ["a.*.n.w", "b.*.n.w"]),
        # Neither pattern can be first.
        ({"a.0.b.1.c": (4, 2), "a.b.0.c": (2, 4)}, []),
    ],
)
def test_patterns_match_the_parameters_of_their_rule_only(
    layouts: dict[str, tuple[int, int]], patterns: list[str] | None
) -> None:
    strategy = Strategy(({name: Layout(matrix, ((1,), ())) for name, matrix in layouts.items()},), 8)
    found = round_trip(strategy, "dp=2,cp=2,tp=2")
    if patterns:
        assert [pattern for rule in found.document.rules for pattern in rule.patterns] == patterns


def test_a_prefix_of_equal_parameters_is_a_state() -> None:
    cut, whole = Layout((2, 4), ((0,),)), Layout((8,), ((),))
    found = round_trip(Strategy(({"w": cut, "m.w": cut, "b": whole, "m.b": whole},), 8), "dp=2,tp=4")
    assert found.document.state == ("m.",)
    found = round_trip(Strategy(({"w": cut, "m.w": cut, "b": whole, "m.b": cut},), 8), "dp=2,tp=4")
    assert found.document.state == ()


def test_interleaved_stages_are_counted_in_chunks() -> None:
    stages = tuple({f"layers.{i}.w": Layout((4,), ((0,),)) for i in numbers} for numbers in ((0, 1, 4), (2, 3, 5)))
    found = round_trip(Strategy(stages, 4), "pp=2,tp=4").document
    assert found.pipeline is not None
    assert found.pipeline.counts == ((2, 1), (2, 1))


@pytest.mark.parametrize(
    ("stages", "axes", "text"),
    [
        (({"w": Layout((8,), ((),))},), "dp=2,tp=2", "1 pipeline stages of 4 ranks"),
        (({"w": Layout((4, 2), ((1,),))},), "dp=4,tp=2", ""),
        (({"w": Layout((4, 2), ((1,),))},), "tp=8", "no block of axes"),
        (({"w": Layout((8,), ((0,),))}, {"w": Layout((8,), ((),))}), "pp=2,tp=8", "stages divide it differently"),
        (
            ({"w": Layout((8,), ((),))}, {"v": Layout((8,), ((),))}, {"w": Layout((8,), ((),)), "x": Layout((8,), ((),))}),
            "pp=3,tp=8",
            "describes its pipeline stages",
        ),
    ],
)
def test_what_no_layout_file_describes_is_refused(stages: tuple[dict[str, Layout], ...], axes: str, text: str) -> None:
    if not text:
        round_trip(Strategy(stages, 8), axes)
        return
    with pytest.raises(RequestError, match=text):
        infer(Strategy(stages, 8), axes, "strategy")


@pytest.mark.parametrize(
    "text", ["on", "1e3", "a: b", "it's", "#x", "*.w", "ä", "a\tb", '"', "\U0001f600\u200b", "- x", "null", "a,b", "x #y"]
)
def test_any_name_is_read_back(text: str) -> None:
    fields: dict[str, Any] = {
        "apiVersion": "reshard.dev/layout-v1",
        "mesh": "pp=2,dp=2,tp=2",
        "expertMesh": "edp=2,ep=2",
        "aliases": {"yes": ["dp", "tp"]},
        "derive": {"sourceMesh": "dp=2,tp=4", "replicated": ["dp"]},
        "state": [text if "*" in text else f"{text}."],
        "pipeline": {"layer": "layers.*.", "layers": 3, "offset": [0, 1]},
        "zero": {"dim": 1, "axes": ["dp"]},
        "uneven": True,
        "rules": [
            {"match": text},
            {"match": [text, "w"], "shard": {0: ["dp", "tp"], "12": "tp"}, "stage": 1, "uneven": False},
            {"match": ["w" * 100, "x" * 100], "zero": {"dim": 1, "axes": "dp"}},
        ],
    }
    document = parse_layout(fields, "layout.yaml")
    assert read_back(document, {0: "a comment"}) == document


def test_suffixes_have_two_components() -> None:
    assert list(suffixes("layers.*.attention.wq.weight")) == ["*.wq.weight", "*.attention.wq.weight"]
    assert list(suffixes("w")) == []
