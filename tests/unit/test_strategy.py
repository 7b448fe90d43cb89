"""Strategy files read and written, compared with the libraries for protobuf and JSON."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from effort import examples
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st
from models import cuts
from parsing import refused

from reshard.layout import Layout
from reshard.strategy import Strategy, StrategyFile, dump, merge, parse
from reshard.strategy.records import Node

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reshard.strategy.file import Form

ROWS = Layout((2, 4), ((1,), ()))
BOTH = Layout((2, 4), ((1, 0),))
SHARD = Layout((8,), ((), ()), 1, 8)
WHOLE = Layout((8,), ())

# Two stages by MindSpore 2.10's own messages, merged by its merge_pipeline_strategys. Stage 1 comes first; b.x is of one
# dimension that two axes cut, a 0-dimensional parameter has an empty tensor map.
RECORDED = bytes.fromhex(
    "0801121b0a094d61744d756c5f7331120e0801120408020801120408010804121b0a094d61744d756c5f7330120e08001204080208011204"
    "080108041a2a0a05312d622e7712210a040802080412020800120b08ffffffffffffffffff011a0022002800300438021a210a05312d622e"
    "7812180a040802080412040801080012001a0022002800300038001a250a05312d622e79121c0a0608020802080212040800080212020801"
    "1a0022002800300038001a1f0a05302d612e7712160a04080208041204080108001a0022002800300038001a2a0a0b302dc3a9e4b8adf09f"
    "9880121b0a020808120b08ffffffffffffffffff011a0022002800300138081a170a03302d7312100a02080812001a002200280030003800"
)
RECORDED_STAGES = {
    0: {"a.w": Layout((2, 4), ((1,), (0,))), "é中😀": Layout((8,), ((),), 1, 8), "s": WHOLE},
    1: {"b.w": Layout((2, 4), ((0,), ()), 4, 2), "b.x": BOTH, "b.y": Layout((2, 2, 2), ((0, 2), (1,)))},
}


def _theirs() -> Any:
    """MindSpore's message under its own name in the pool that all share: ours must not collide with it."""
    kinds = {"Strategy": "uint32", "DevMatrix": "uint32", "TensorMap": "int32", "ParamSplitShape": "int64", "Offset": "int64"}
    schema = {name: [("dim", 1, kind, 3)] for name, kind in kinds.items()} | {
        "Strategys": [("stage", 1, "uint32", 2), ("parallel_strategy", 2, "Strategy", 3)],
        "Node": [("node_name", 1, "string", 2), ("parallel_strategys", 2, "Strategys", 2)],
        "Layouts": [
            ("dev_matrix", 1, "DevMatrix", 3),
            ("tensor_map", 2, "TensorMap", 3),
            ("param_split_shape", 3, "ParamSplitShape", 3),
            ("indices_offset", 4, "Offset", 3),
            ("field", 5, "int32", 2),
            ("opt_weight_shard_step", 6, "int32", 2),
            ("opt_weight_shard_size", 7, "int32", 2),
        ],
        "Item": [("param_name", 1, "string", 2), ("parallel_layouts", 2, "Layouts", 2)],
        "ParallelStrategyMap": [
            ("current_stage", 1, "uint32", 2),
            ("parallel_strategy_item", 2, "Node", 3),
            ("parallel_layout_item", 3, "Item", 3),
        ],
    }
    file = descriptor_pb2.FileDescriptorProto(name="node_strategy.proto", package="mindspore.straspb", syntax="proto2")
    for message, fields in schema.items():
        described = file.message_type.add(name=message)
        for name, number, kind, label in fields:
            field = described.field.add(name=name, number=number, label=label)
            if kind in schema:
                field.type, field.type_name = field.TYPE_MESSAGE, f".mindspore.straspb.{kind}"
            else:
                field.type = field.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("mindspore.straspb.ParallelStrategyMap"))


Map = _theirs()


def message(
    layouts: dict[str, Layout], stages: Sequence[int] = (0,), *, split: Sequence[int] = (), field: int = 0, nested: bool = False
) -> bytes:
    """A file as MindSpore writes it."""
    found = Map(current_stage=1)
    for stage in stages:
        node = found.parallel_strategy_item.add(node_name=f"MatMul-op{stage}").parallel_strategys
        node.stage = stage
        node.parallel_strategy.add(dim=[2, 1])
        node.parallel_strategy.add(dim=[1, 4])
    for name, layout in layouts.items():
        item = found.parallel_layout_item.add(param_name=name).parallel_layouts
        item.dev_matrix.add(dim=layout.device_matrix)
        if (nested and layout.ndim) or any(len(axes) > 1 for axes in layout.tensor_map):
            for axes in layout.tensor_map:
                item.tensor_map.add(dim=axes or [-1])
            if len(layout.tensor_map) == 1:
                item.tensor_map.add()
        else:
            item.tensor_map.add(dim=[axes[0] if axes else -1 for axes in layout.tensor_map])
        item.param_split_shape.add(dim=split)
        item.indices_offset.add(dim=[0] * len(split))
        item.field, item.opt_weight_shard_step, item.opt_weight_shard_size = field, layout.shard_step, layout.shard_size
    return bytes(found.SerializeToString())


def document(layouts: dict[str, Layout], stage: int = 0, **fields: Any) -> bytes:
    """The JSON form as MindSpore writes it."""
    return json.dumps(
        {
            "current_stage": 1,
            "parallel_strategy_item": {"MatMul-op0": {"parallel_strategy": [[2, 1], [1, 4]], "stage": stage}},
            "parallel_layout_item": {
                name: {
                    "dev_matrix": layout.device_matrix,
                    "field": 0,
                    "opt_weight_shard_size": layout.shard_size,
                    "opt_weight_shard_step": layout.shard_step,
                    "tensor_map": [axes[0] if axes else -1 for axes in layout.tensor_map],
                    "tensor_shape": [64] * layout.ndim,
                    **fields,
                }
                for name, layout in layouts.items()
            },
        },
        indent=1,
    ).encode()


@pytest.mark.parametrize("nested", [False, True])
def test_a_strategy_written_by_mindspore_is_read(*, nested: bool) -> None:
    layouts = {"a": ROWS, "b.0-1": BOTH, "é中\n\x00😀": SHARD, "": WHOLE}
    file = parse(message(layouts, [2], nested=nested), "s.ckpt")
    assert file.stages == {2: layouts}
    assert file.nodes == (Node("MatMul-op2", 2, ((2, 1), (1, 4))),)
    assert file.parameters == layouts


def test_json_written_by_mindspore_is_read() -> None:
    layouts = {"a": ROWS, "é中\n\x00😀": SHARD, "0-1-b": WHOLE}
    file = parse(document(layouts, 3), "s.json")
    assert file.stages == {3: layouts}
    assert file.nodes == (Node("MatMul-op0", 3, ((2, 1), (1, 4))),)


def test_a_recorded_merge_of_mindspore_is_read() -> None:
    file = parse(RECORDED, "merged.ckpt")
    assert file.stages == RECORDED_STAGES
    assert list(file.stages) == [0, 1]
    strategy = Strategy.from_files([file])
    assert strategy.stages == (RECORDED_STAGES[0], RECORDED_STAGES[1])
    assert (strategy.devices, strategy.ranks) == (8, 16)


def test_mindspores_message_reads_a_dumped_strategy() -> None:
    found = Map.FromString(dump(parse(RECORDED, "x"), "protobuf"))
    assert found.IsInitialized()
    assert {item.param_name for item in found.parallel_layout_item} == {
        f"{stage}-{name}" for stage, layouts in RECORDED_STAGES.items() for name in layouts
    }
    by_name = {item.param_name: item.parallel_layouts for item in found.parallel_layout_item}
    assert [list(each.dim) for each in by_name["0-a.w"].tensor_map] == [[1, 0]]
    assert [list(each.dim) for each in by_name["1-b.x"].tensor_map] == [[1, 0], []]
    assert [list(each.dim) for each in by_name["1-b.y"].tensor_map] == [[0, 2], [1]]
    assert all(len(layouts.param_split_shape) == len(layouts.dev_matrix) == 1 for layouts in by_name.values())
    assert [(node.node_name, node.parallel_strategys.stage) for node in found.parallel_strategy_item] == [
        ("MatMul_s1", 1),
        ("MatMul_s0", 0),
    ]


def test_a_layout_in_two_pieces_is_joined_as_protobuf_does() -> None:
    plain = Map.FromString(message({"a": ROWS})).parallel_layout_item[0]
    first, second = Map(current_stage=1), Map(current_stage=1)
    first.CopyFrom(Map.FromString(message({"a": ROWS})))
    raw = plain.parallel_layouts.SerializeToString()
    item = b"\x0a\x01a" + b"".join(b"\x12" + bytes([len(piece)]) + piece for piece in (raw[:6], raw[6:]))
    del first.parallel_layout_item[:]
    content = first.SerializeToString() + b"\x1a" + bytes([len(item)]) + item
    second.ParseFromString(content)
    assert second.parallel_layout_item[0] == plain
    assert parse(content, "x").stages == {0: {"a": ROWS}}


def test_stages_may_use_the_same_operator_names() -> None:
    files = [StrategyFile("x", {stage: {"a": ROWS}}, (Node("MatMul", stage),)) for stage in range(3)]
    for form in ("protobuf", "json"):
        assert parse(dump(merge(files), form), "x").stages == {0: {"a": ROWS}, 1: {"a": ROWS}, 2: {"a": ROWS}}


@st.composite
def strategy_files(draw: Callable[..., Any]) -> StrategyFile:
    """Files of any one stage, or of all, with names like those of merged files."""
    devices = draw(st.integers(1, 24))
    names = st.text(max_size=8) | st.sampled_from(
        ["0-a", "1-a", "00-a", "0-1-a", "a-b", "-", "0-", "\N{ARABIC-INDIC DIGIT ONE}-a"]
    )

    def layouts() -> dict[str, Layout]:
        found = {}
        for name in draw(st.lists(names, min_size=1, max_size=4, unique=True)):
            cut = draw(cuts(devices, draw(st.integers(0, 4))))
            found[name] = Layout(cut.matrix, cut.maps, cut.step, cut.size)
        return found

    stages = draw(st.sampled_from([[0], [0], [1], [7], [0, 1], [0, 1, 2]]))
    operators = draw(st.lists(st.tuples(st.text(max_size=4), st.lists(st.tuples(st.integers(0, 2**32 - 1)))), max_size=2))
    nodes = [Node(name, stage, tuple(strategies)) for stage in stages for name, strategies in operators or [("x", [(1,)])]]
    return StrategyFile("x", {stage: layouts() for stage in stages}, tuple(nodes) if draw(st.booleans()) else ())


@examples(150)
@given(strategy_files())
def test_every_dumped_strategy_is_read_again_in_both_forms(file: StrategyFile) -> None:
    for first, second in (("protobuf", "json"), ("json", "protobuf")):
        once = parse(dump(file, first), "x")
        twice = parse(dump(once, second), "x")
        assert once.stages == twice.stages == file.stages
        if list(file.stages) == list(range(len(file.stages))):
            assert Strategy.from_files([twice]).canonical() == Strategy.from_files([file]).canonical()
    if file.nodes:
        assert parse(dump(file, "protobuf"), "x").nodes == file.nodes
    assert Map.FromString(dump(file, "protobuf")).IsInitialized()
    json.loads(dump(file, "json"))


def test_the_canonical_form_distinguishes_shardings_only() -> None:
    def canonical(*stages: dict[str, Layout]) -> bytes:
        return Strategy(stages, 8).canonical()

    same = canonical({"a": ROWS, "b": SHARD})
    assert canonical({"b": SHARD, "a": ROWS}) == same
    assert canonical({"a": Layout((2, 4), ((1,), ()), 0, 4), "b": SHARD}) == same  # a size without a step cuts nothing
    others = [
        canonical({"a": ROWS}, {"b": SHARD}),
        canonical({"a": SHARD, "b": ROWS}),
        canonical({"a": ROWS, "b": Layout((8,), ((), ()))}),
        canonical({"a": ROWS, "c": SHARD}),
        canonical({"a": Layout((4, 2), ((1,), ())), "b": SHARD}),
    ]
    assert len({same, *others}) == len(others) + 1


@pytest.mark.parametrize("form", ["protobuf", "json"])
def test_a_hundred_thousand_parameters_are_read_quickly(form: Form) -> None:
    kinds = [ROWS, BOTH, SHARD, WHOLE]
    layouts = {f"backbone.layers.{i // 9}.attention.w{i % 9}.weight": kinds[i % 4] for i in range(100_000)}
    content = dump(StrategyFile("x", {0: layouts}), form)
    start = time.process_time()
    file = parse(content, "x")
    Strategy.from_files([file]).canonical()
    assert time.process_time() - start < 2
    assert file.stages == {0: layouts}
    assert len({id(layout) for layout in file.stages[0].values()}) == len(kinds)


def test_equal_layouts_that_are_written_differently_are_one_object() -> None:
    plain, nested = (Map.FromString(message({name: ROWS}, nested=name == "b")) for name in "ab")
    plain.parallel_layout_item.extend(nested.parallel_layout_item)
    first, second = parse(plain.SerializeToString(), "x").parameters.values()
    assert first is second


def test_a_pipeline_of_sixteen_stages_is_merged_quickly() -> None:
    parts = ("wq", "wk", "wv", "wo", "w1", "w2", "w3", "attention_norm", "ffn_norm")
    files = [
        message({f"{m}layers.{i}.{w}": ROWS for m in ("", "m.", "v.") for i in range(s * 8, s * 8 + 8) for w in parts}, [s])
        for s in range(16)
    ]
    start = time.process_time()
    strategy = Strategy.from_files([parse(content, str(n)) for n, content in enumerate(files)])
    assert time.process_time() - start < 1
    assert strategy.ranks == 128
    assert [len(stage) for stage in strategy.stages] == [8 * 27] * 16


def test_a_merged_file_is_one_only_if_its_prefixes_are_its_stages() -> None:
    assert parse(message({"0-a": ROWS, "1-a-b": SHARD, "0-": WHOLE}, [0, 1]), "x").stages == {
        0: {"a": ROWS, "": WHOLE},
        1: {"a-b": SHARD},
    }
    for names, stage in ((["0-a", "1-a"], 0), (["0-a", "a"], 0), (["1-a"], 0), (["00-a"], 0), (["0-a", "1-b"], 1)):
        layouts = dict.fromkeys(names, ROWS)
        assert parse(message(layouts, [stage]), "x").stages == {stage: layouts}
    assert parse(message({"1-a": ROWS}, [1]), "x").stages == {1: {"a": ROWS}}
    error = refused(lambda: parse(message({"0-a": ROWS, "b": ROWS}, [0, 1]), "x.ckpt"))
    assert (error.reason, error.where) == ("StrategyInvalid", "x.ckpt")
    assert "[0, 1]" in error.what


def test_a_file_without_operators_is_stage_0_only_if_it_is_alone() -> None:
    alone = parse(message({"a": ROWS}, []), "s.ckpt")
    assert Strategy.from_files([alone]).stages == ({"a": ROWS},)
    error = refused(lambda: merge([parse(message({"b": ROWS}, [1]), "r.ckpt"), alone]))
    assert (error.reason, error.where) == ("StageUnknown", "s.ckpt")


def test_the_first_of_a_stages_files_is_used() -> None:
    files = [
        parse(message({name: layout}, [stage]), name)
        for name, layout, stage in (("b", ROWS, 1), ("a", ROWS, 0), ("b", ROWS, 1), ("a", ROWS, 0))
    ]
    merged = merge(files)
    assert merged.stages == {0: {"a": ROWS}, 1: {"b": ROWS}}
    assert list(merged.stages) == [0, 1]
    assert [node.stage for node in merged.nodes] == [1, 0]
    assert Strategy.from_files(files) == Strategy.from_files([parse(dump(merged, "json"), "x")])


def test_files_of_a_stage_that_contradict_each_other_are_refused() -> None:
    files = [parse(message({"a": ROWS, "b": layout}, [0]), name) for name, layout in (("s0", ROWS), ("s1", SHARD))]
    error = refused(lambda: merge(files))
    assert (error.reason, error.where) == ("StrategiesDisagree", "s1: parameter b")
    assert "s0" in error.what


def test_files_of_a_stage_that_name_other_parameters_are_refused() -> None:
    files = [parse(message(dict.fromkeys(names, ROWS), [0]), name) for name, names in (("s0", "ab"), ("s1", "abc"))]
    for order in (files, files[::-1]):
        error = refused(lambda order=order: merge(order))
        assert (error.reason, error.where) == ("StrategiesDisagree", order[1].name)
        assert "contains parameter c" in error.what


@pytest.mark.parametrize(
    ("stages", "repeated"),
    [
        (["ab", "cd"], []),
        (["ab", "cd", "c", "d"], [2, 3]),
        (["ab", "bc"], []),
        (["ab", "a", "c"], []),
        (["abcd", "ab", "cd"], [1, 2]),
        (["a"], []),
    ],
)
def test_repeated_stages_of_an_earlier_run_are_found(stages: list[str], repeated: list[int]) -> None:
    strategy = Strategy(tuple(dict.fromkeys(names, ROWS) for names in stages), 8)
    assert list(strategy.repeated_stages) == repeated


def test_a_missing_stage_is_named() -> None:
    for stages, missing in (([1], "0"), ([0, 3], "1, 2"), ([2, 5000], "0, 1, 3, 4, 5, 6, 7, 8"), ([0, 2**32 - 1], "1, 2, 3, 4")):
        error = refused(lambda at=stages: merge([parse(message({"a": ROWS}, [stage]), f"s{stage}") for stage in at]))
        assert error.reason == "StageMissing"
        assert f"no strategy file describes stage {missing}" in error.what
    assert refused(lambda: merge([])).reason == "StageMissing"


def test_stages_of_different_numbers_of_ranks_are_refused() -> None:
    files = [parse(message({"a": ROWS}, [0]), "s0"), parse(message({"b": ROWS, "c": Layout((4,), ((),))}, [1]), "s1")]
    error = refused(lambda: Strategy.from_files(files))
    assert (error.reason, error.where) == ("DevicesDisagree", "s1: parameter c")
    assert "parameter a" in error.what
    assert "s0" in error.what


def test_a_layout_that_contradicts_itself_is_refused_by_name() -> None:
    for layout, reason in (
        (Layout((2, 4), ((2,), ())), "LayoutInvalid"),
        (Layout((2, 4), ((0, 0), ())), "LayoutInvalid"),
        (Layout((), ((),)), "LayoutInvalid"),
        (Layout((2, 0), ((),)), "LayoutInvalid"),
        (Layout((1 << 16, 1 << 16), ((),)), "LayoutInvalid"),
        (Layout((8,), ((),), 1, 3), "OptimizerShardInvalid"),
        (Layout((8,), ((),), 2, 8), "OptimizerShardInvalid"),
        (Layout((8,), (), 1, 8), "LayoutInvalid"),
    ):
        for content in (
            message({"ok": ROWS, "bad": layout}),
            document({"bad": layout}, tensor_map=layout.tensor_map),
        ):
            error = refused(lambda found=content: parse(found, "s"))
            assert (error.reason, error.where) == (reason, "s: parameter bad")


def test_an_even_split_is_read_and_any_other_refused_by_name() -> None:
    quarters = Layout((2, 4), ((0,), ()))
    assert parse(message({"a": quarters}, split=[5, 5, 5, 5]), "s").stages == {0: {"a": quarters}}
    assert parse(document({"a": quarters}, param_split_shape=[5, 5, 5, 5]), "s").stages == {0: {"a": quarters}}
    for split in ([5, 5, 5, 6], [5, 5], [5] * 8, [0] * 4, [-5] * 4, [1]):
        error = refused(lambda lengths=split: parse(message({"a": quarters}, split=lengths), "s"))
        assert (error.reason, error.where) == ("UnevenCut", "s: parameter a")
        assert (
            refused(lambda lengths=split: parse(document({"a": quarters}, param_split_shape=lengths), "s")).reason == "UnevenCut"
        )
    for field in (1, 4, -1):
        assert refused(lambda n=field: parse(message({"a": quarters}, field=n), "s")).reason == "UnevenCut"
        assert refused(lambda n=field: parse(document({"a": quarters}, field=n), "s")).reason == "UnevenCut"
    assert refused(lambda: parse(message({"a": WHOLE}, split=[1]), "s")).reason == "UnevenCut"
