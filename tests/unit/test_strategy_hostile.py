"""Malicious strategy files: each is refused in one sentence."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from effort import examples
from hypothesis import example, given
from hypothesis import strategies as st

from reshard.errors import DataError, ReshardError
from reshard.layout import Layout
from reshard.strategy import Strategy, StrategyFile, dump, json_form, parse, protobuf_form, records
from reshard.strategy.groups import restore_ranks
from reshard.strategy.records import Node

FILE = StrategyFile(
    "x",
    {
        0: {"a.w": Layout((2, 4), ((1,), ())), "b-1": Layout((2, 4), ((1, 0),))},
        1: {"é": Layout((8,), ((), ()), 1, 8), "s": Layout((8,), ())},
    },
    (Node("MatMul", 0, ((2, 1), (1, 4))), Node("Add", 1)),
)
PROTOBUF, JSON = dump(FILE, "protobuf"), dump(FILE, "json")
STAGE = b"\x08\x01"
LAYOUTS = b"\x0a\x02\x08\x08\x12\x02\x08\x00\x28\x00\x30\x00\x38\x00"


def delimited(number: int, content: bytes) -> bytes:
    length, size = b"", len(content)
    while size > 0x7F:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def item(name: bytes, layouts: bytes = LAYOUTS) -> bytes:
    return delimited(3, delimited(1, name) + delimited(2, layouts))


def layout(dev_matrix: bytes, tensor_map: bytes) -> bytes:
    return delimited(1, delimited(1, dev_matrix)) + delimited(2, delimited(1, tensor_map)) + LAYOUTS[8:]


def document(entry: object = None, **fields: Any) -> dict[str, Any]:
    whole = {"dev_matrix": [8], "tensor_map": [0], "field": 0, "opt_weight_shard_step": 0, "opt_weight_shard_size": 0}
    return {"current_stage": 1, "parallel_layout_item": {"a": {**whole, **fields} if entry is None else entry}}


def reason(content: bytes, where: str = "s") -> str:
    with pytest.raises(DataError) as caught:
        parse(content, "s")
    assert str(caught.value).isprintable()
    assert caught.value.where is not None
    assert caught.value.where.startswith(where)
    return caught.value.reason


def test_the_undamaged_test_files_are_read() -> None:
    expected = {0: {"a": Layout((8,), ((0,),))}}
    assert parse(STAGE + item(b"a"), "s").stages == expected
    assert parse(STAGE + item(b"a", layout(b"\x08", b"\x00")), "s").stages == expected
    assert parse(json.dumps(document()).encode(), "s").stages == expected
    assert parse(PROTOBUF, "s").stages == parse(JSON, "s").stages == FILE.stages


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        b"hello",
        STAGE,
        STAGE * 1000,
        item(b"a"),  # no current stage
        STAGE + b"\x1a\x00",
        STAGE + b"\x1a\x05ab",
        STAGE + b"\x1a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        STAGE + b"\x1a" + b"\xff" * 20,
        STAGE + item(b"a") + b"\x1a\x7f" + item(b"b")[2:],
        STAGE + delimited(3, item(b"a")[2:] + b"\x28\x01" * (1 << 18)),
        STAGE + b"\x18\x01" + item(b"a"),
        STAGE + b"\x12\x00" + item(b"a"),
        b"\x0a\x01\x01" + item(b"a"),
        STAGE + b"\x0b" * 10_000,
        STAGE + b"\x4b" * 10_000 + item(b"a"),
        STAGE + b"\x20\x01" * 2000 + item(b"a"),
        STAGE + item(b"\xff\xfe"),
        STAGE + item(b"\xed\xa0\x80"),
        STAGE + item(b"a" * ((1 << 16) + 1)),
        STAGE + delimited(3, delimited(2, LAYOUTS)),
        STAGE + delimited(3, delimited(1, b"a")),
        STAGE + delimited(3, b"\x0a\x81" + b"\x80" * 7 + b"\x00a" + delimited(2, LAYOUTS)),  # a length of nine bytes
        STAGE + delimited(2, delimited(1, b"n") + delimited(2, b"")) + item(b"a"),
        STAGE + delimited(2, delimited(1, b"\xff") + delimited(2, b"\x08\x00")) + item(b"a"),
    ],
    ids=lambda content: repr(content[:60]),
)
def test_a_damaged_message_is_refused(content: bytes) -> None:
    assert reason(content) == "StrategyInvalid"


@pytest.mark.parametrize(
    ("layouts", "expected"),
    [
        (b"", "StrategyInvalid"),
        (LAYOUTS[:-2], "StrategyInvalid"),
        (LAYOUTS[:-1], "StrategyInvalid"),
        (LAYOUTS[4:], "StrategyInvalid"),
        (LAYOUTS + LAYOUTS[:4], "StrategyInvalid"),
        (b"\x0b" * 5000, "StrategyInvalid"),
        (layout(b"\x08", b"\x00" * 33), "StrategyInvalid"),
        (layout(b"\x01" * 65, b""), "StrategyInvalid"),
        (layout(b"\xff\xff\xff\xff\x0f" * 64, b"\x00"), "LayoutInvalid"),
        (layout(b"\x08", b"\x80\x80\x80\x80\xf8\xff\xff\xff\xff\x01"), "LayoutInvalid"),
        (layout(b"\x80\x80\x40", b"\x00" + b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01" * 7), "StrategyTooLarge"),
        (layout(b"\x81\x80\x40", b"\x00"), "LayoutInvalid"),
    ],
    ids=repr,
)
def test_a_damaged_layout_is_refused_by_name(layouts: bytes, expected: str) -> None:
    assert reason(STAGE + item(b"fine") + item(b"a\n", layouts), "s: parameter a\n") == expected


def test_a_duplicate_parameter_is_refused() -> None:
    assert reason(STAGE + item(b"a") * 2, "s: parameter a") == "StrategyInvalid"
    entry = json.dumps(document()["parallel_layout_item"])[1:-1]
    twice = f'{{"current_stage": 1, "parallel_layout_item": {{{entry}, {entry}}}}}'
    assert reason(twice.encode(), "s: parameter a") == "StrategyInvalid"


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"{}",
        b"[]",
        b"  {]",
        b"{" * 200_000,
        b'{"x":' * 200_000,
        b'{"x":' + b"[" * 200_000,
        b'{"parallel_layout_item": {}}',
        b'{"parallel_layout_item": []}',
        b'{"parallel_layout_item": null}',
        b'{"parallel_layout_item": {"\\ud800": {"dev_matrix": [1], "tensor_map": []}}}',
        b'{"parallel_layout_item": {"\xff": {"dev_matrix": [1], "tensor_map": []}}}',
        b'{"parallel_layout_item": {"a": {"dev_matrix": [1], "tensor_map": []}}, "parallel_layout_item": {}}',
        b'{"parallel_layout_item": {}, "parallel_layout_item": {"a": {"dev_matrix": [1], "tensor_map": []}}}',
        b'{"parallel_layout_item": {"a": {"dev_matrix": [1], "tensor_map": []}}} x',
        b'{"parallel_layout_item": {"a": {"dev_matrix": [1], "tensor_map": []}}, "x": NaN}',
        b'{"parallel_layout_item": {"a": {"dev_matrix": [NaN], "tensor_map": []}}}',
        b'{"parallel_layout_item": {"a": {"dev_matrix": [1], "tensor_map": []}}, "parallel_strategy_item": []}',
        b"{" + b",".join(b'"%d":0' % n for n in range(100)) + b"}",
    ],
    ids=lambda content: repr(content[:40]),
)
def test_damaged_json_is_refused(content: bytes) -> None:
    assert reason(content) == "StrategyInvalid"


@pytest.mark.parametrize(
    "fields",
    [
        {"dev_matrix": None},
        {"dev_matrix": [1 << 32]},
        {"dev_matrix": [-1]},
        {"dev_matrix": [8.0]},
        {"dev_matrix": [True]},
        {"dev_matrix": "8"},
        {"dev_matrix": {"a": 1}},
        {"dev_matrix": [1] * 65},
        {"tensor_map": [[[0]]]},
        {"tensor_map": [None]},
        {"tensor_map": [-1] * 33},
        {"tensor_map": [1 << 31]},
        {"field": None},
        {"field": 1 << 31},
        {"opt_weight_shard_step": 1 << 40},
        {"opt_weight_shard_size": 1.5},
        {"param_split_shape": [1 << 63]},
        {"unknown": "x" * (1 << 16)},
    ],
    ids=lambda fields: repr(fields)[:40],
)
def test_a_json_layout_of_wrong_types_is_refused_by_name(fields: dict[str, Any]) -> None:
    assert reason(json.dumps(document(**fields)).encode(), "s: parameter a") == "StrategyInvalid"


@pytest.mark.parametrize("entry", [[], 1, {}, {"dev_matrix": [8]}, "x"], ids=repr)
def test_an_invalid_json_layout_is_refused_by_name(entry: object) -> None:
    assert reason(json.dumps(document(entry)).encode(), "s: parameter a") == "StrategyInvalid"


def test_a_json_number_of_five_thousand_digits_is_refused_by_name() -> None:
    content = json.dumps(document(dev_matrix=["@"])).replace('"@"', "1" * 5000)
    assert reason(content.encode(), "s: parameter a") == "StrategyInvalid"


def test_a_duplicate_field_of_a_json_record_is_refused() -> None:
    content = json.dumps(document()).replace('"field": 0', '"field": 0, "dev_matrix": [4]')
    assert reason(content.encode(), "s: parameter a") == "StrategyInvalid"


@pytest.mark.parametrize(
    "node", [{}, [], {"stage": -1}, {"stage": 1 << 32}, {"stage": "0"}, {"stage": 0, "parallel_strategy": [[-1]]}]
)
def test_an_operator_of_wrong_types_is_refused_by_name(node: object) -> None:
    content = {**document(), "parallel_strategy_item": {"fine": {"stage": 0}, "n": node}}
    assert reason(json.dumps(content).encode(), "s: operator n") == "StrategyInvalid"


def test_counts_have_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (protobuf_form, json_form):
        monkeypatch.setattr(module, "MAX_PARAMETERS", 3)
    assert reason(PROTOBUF) == reason(JSON) == "StrategyInvalid"
    for module in (protobuf_form, json_form):
        monkeypatch.setattr(module, "MAX_PARAMETERS", 4)
    assert parse(PROTOBUF, "s").stages == parse(JSON, "s").stages == FILE.stages
    for limit, most in (("MAX_OPERATORS", 1), ("MAX_NUMBERS", 5)):
        with monkeypatch.context() as patched:
            patched.setattr(records, limit, most)
            assert reason(PROTOBUF) == reason(JSON) == "StrategyInvalid"


def test_more_different_layouts_than_any_model_has_are_refused() -> None:
    steps = [json.dumps(document(opt_weight_shard_step=n)["parallel_layout_item"]["a"]) for n in range(20_000)]
    content = ", ".join(f'"{n}": {entry}' for n, entry in enumerate(steps))
    assert reason(f'{{"parallel_layout_item": {{{content}}}}}'.encode(), "s: parameter 16384") == "StrategyTooLarge"


@pytest.mark.parametrize(
    "content",
    [
        STAGE + b"\x1a\x00" * (1 << 20),
        STAGE + b"\x20\x00" * (1 << 20),
        STAGE + item(b"a", delimited(1, delimited(1, b"\x01" * (1 << 21)))),
        STAGE + item(b"a", b"\x12\x00" * (1 << 20)),
        STAGE + delimited(2, delimited(1, b"a") + delimited(2, b"\x08\x00" + b"\x12\x00" * (1 << 20))),
        b'{"parallel_layout_item": {"a": {"dev_matrix": [' + b"1," * (1 << 20) + b"1]}}}",
        b"{" + b'"":0,' * (1 << 19) + b'"":0}',
    ],
    ids=lambda content: repr(content[:30]),
)
def test_a_small_file_does_not_exhaust_memory(content: bytes) -> None:
    parse(PROTOBUF, "s")  # objects that are built once are not counted
    tracemalloc.start()
    try:
        assert reason(content) == "StrategyInvalid"
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(content)


@examples(400)
@given(
    st.sampled_from([PROTOBUF, JSON]),
    st.lists(
        st.tuples(
            st.integers(0, max(len(PROTOBUF), len(JSON))),
            st.sampled_from(["set", "insert", "delete", "repeat", "cut"]),
            st.binary(min_size=1, max_size=3) | st.sampled_from([b"-1", b"[", b'"', b"\x0a", b"\x12\x00", b"99999999999"]),
            st.integers(1, 12),
        ),
        max_size=4,
    ),
)
@example(PROTOBUF, [])
def test_mutated_files_are_refused_or_read_as_something_that_can_be_written(
    content: bytes, mutations: list[tuple[int, str, bytes, int]]
) -> None:
    for at, how, piece, length in mutations:
        where = at % (len(content) + 1)
        before, after = content[:where], content[where:]
        content = {
            "set": before + piece + after[len(piece) :],
            "insert": before + piece + after,
            "delete": before + after[length:],
            "repeat": before + after[:length] * 2 + after[length:],
            "cut": before,
        }[how]
    try:
        file = parse(content, "s")
        strategy = Strategy.from_files([file])
    except ReshardError as caught:
        refusal = str(caught)
    else:
        refusal = ""
    if refusal:
        assert refusal.isprintable()
        return
    for form in ("protobuf", "json"):
        again = parse(dump(file, form), "s")
        assert again.stages == file.stages
        assert Strategy.from_files([again]).canonical() == strategy.canonical()


@examples(200)
@given(st.binary(max_size=60) | st.text(max_size=40).map(lambda text: ("{" + text).encode()))
def test_any_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(DataError):
        parse(content, "s")


GROUP = delimited(1, delimited(1, b"hccl_world_group") + delimited(2, b"\x08\x00\x08\x01"))


@pytest.mark.parametrize(
    ("content", "ranks"),
    [
        (GROUP + delimited(2, b"\x08\x00\x08\x02\x08\x80\x80\x01"), (0, 2, 16384)),
        (delimited(2, delimited(1, b"\x00\x02")) + GROUP, (0, 2)),  # packed, as proto3 writes it
        (delimited(2, b"\x08\x00") + delimited(2, b"\x08\x02"), (0, 2)),  # a message that stands twice is merged
        (delimited(2, b""), ()),
    ],
)
def test_the_ranks_to_restore_from(content: bytes, ranks: tuple[int, ...]) -> None:
    assert restore_ranks(content, "g") == ranks


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "no list of ranks"),
        (GROUP, "no list of ranks"),
        (b"\x10\x01", "no list of ranks"),
        (b"x" * 50, "no list of ranks"),
        (b"\x80", "ends within an integer"),
        (delimited(2, b"\x08\x00")[:-1], "truncated"),
        (delimited(2, b"\x08"), "damaged"),
        (b"\x0b", "wire type 3"),
        (b"\x0a\x00" * ((1 << 20) + 1), "more than 1048576 groups"),
        (delimited(2, delimited(1, b"\x00" * (8 << 20))), "the list of ranks is too long (8388613 bytes)"),
    ],
)
def test_a_malicious_file_of_groups_is_refused(content: bytes, what: str) -> None:
    with pytest.raises(DataError, match="GroupInfoInvalid") as caught:
        restore_ranks(content, "g")
    assert what in str(caught.value)
    assert caught.value.where == "g"
