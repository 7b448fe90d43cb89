"""The pickle reader: it returns the data that Python pickled, runs nothing, and bounds memory by the length."""

from __future__ import annotations

import pickle
import pickletools
import struct
import tracemalloc
from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch_files import DATA, metadata, name, size, text

from reshard.errors import DataError
from reshard.formats.torch.dcp import ALLOWED, read_metadata
from reshard.formats.torch.unpickle import Global, Limits, Record, load

SCALARS = st.none() | st.booleans() | st.integers(-(1 << 80), 1 << 80) | st.floats(allow_nan=False) | st.text() | st.binary()
KEYS = st.text() | st.integers(-(1 << 59), 1 << 59) | st.none() | st.booleans() | st.binary()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner) | st.tuples(inner, inner) | st.lists(inner).map(tuple)
)
RULES = {**ALLOWED, "collections.OrderedDict": "pairs", "_codecs.encode": "record", "x.Thing": "record", "x.name": "name"}
PLAIN = Limits(depth=1 << 20)


def refusal(data: bytes, **limits: int) -> str:
    with pytest.raises(DataError) as caught:
        load(data, RULES, "m", limits=Limits(**limits))
    assert caught.value.where == "m"
    assert caught.value.fix
    assert str(caught.value).isprintable()
    return caught.value.reason


@given(VALUES, st.integers(3, 5))
def test_data_is_read_as_it_was_pickled(value: Any, protocol: int) -> None:
    for data in (pickle.dumps(value, protocol), pickletools.optimize(pickle.dumps(value, protocol))):
        assert load(data, RULES, "m", limits=PLAIN) == value


@given(st.recursive(SCALARS.filter(lambda x: not isinstance(x, bytes)), lambda inner: st.lists(inner) | st.tuples(inner, inner)))
def test_protocol_2_is_read_too(value: Any) -> None:
    assert load(pickle.dumps(value, 2), RULES, "m", limits=PLAIN) == value


def test_shared_and_long_objects() -> None:
    inner = {"k": (1 << 40, 2.5, b"x" * 300)}
    value = [inner, inner, OrderedDict(a=inner, b=[]), list(range(5000)), {str(i): i for i in range(3000)}, "é" * 300]
    found = load(pickle.dumps(value, 4), RULES, "m")
    assert found == [inner, inner, {"a": inner, "b": []}, *value[3:]]
    assert found[0] is found[1] is found[2]["a"]


def test_globals_are_names_and_calls_are_records() -> None:
    found = load(b"\x80\x02" + name("x", "Thing") + text("argument") + b"\x85R" + text("state") + b"b.", RULES, "m")
    assert isinstance(found, Record)
    assert (found.name, found.args, found.state) == ("x.Thing", ("argument",), "state")
    found = load(b"\x80\x02" + name("x", "name") + b".", RULES, "m")
    assert isinstance(found, Global)
    assert load(b"\x80\x02" + size((2, 3)) + b".", RULES, "m") == (2, 3)


@pytest.mark.parametrize(
    "data",
    [
        name("os", "system") + text("true") + b"\x85R.",
        name("builtins", "eval") + b".",
        text("os") + text("system") + b"\x93.",
        name("x", "name") + b")R.",  # a name that is called
        name("x", "name") + b")\x81.",
        text("os.system") + b")R.",
        b"\x80\x06N.",
        b"i" + b"x\nThing\n.",  # INST
        b"(" + name("x", "Thing") + b"o.",  # OBJ
        b"\x82\x01.",  # EXT1
        name("x", "Thing") + b")}\x92.",  # NEWOBJ_EX
        name("torch", "load") + b".",
        name("torch.nn", "Module") + b".",
        b"\x97.",
        b"I1\n.",
    ],
)
def test_globals_outside_the_list_are_refused(data: bytes) -> None:
    assert refusal(data) == "PickleNotAllowed"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"N",
        b"N\x94",
        b"h\x00.",
        b"j\xff\xff\xff\xff.",
        b"(N",
        b"u.",
        b"]N]u.",
        b"](Nu.",
        b"}(Nu.",
        b"}]Ns.",  # a list cannot be a key
        b"})Ns.",
        b"}G\x3f\xf0\x00\x00\x00\x00\x00\x00Ns.",
        b"}\x8a\x09\xff\xff\xff\xff\xff\xff\xff\x7f\x00Ns.",  # an integer whose hash can be chosen
        b"Na.",
        b"N)b.",
        b"\x8c\xffx.",
        b"X\xff\xff\xff\xffx.",
        b"X\x01\x00\x00\x00\xff.",
        b"\x8d" + b"\xff" * 8 + b"x.",
        b"cos\nsystem.",
        b"]" + name("x", "Thing") + b"\x93.",
        name("x", "Thing") + b"NR.".replace(b"N", b"]"),
        b"G\x00.",
    ],
)
def test_other_bytes_than_a_pickle_are_refused(data: bytes) -> None:
    assert refusal(data) in {"PickleInvalid", "PickleNotAllowed"}


@pytest.mark.parametrize(
    ("data", "limits"),
    [
        (b"N." + bytes(100), {"nbytes": 101}),
        (b"N0" * 5000 + b"N.", {"opcodes": 4096}),
        (b"(" * 300 + b".", {}),
        (b"N" * 10000 + b".", {"stack": 5000}),
        (b"}" * 10000 + b".", {"objects": 1000}),
        (b"".join(b"}(" + b"M" + struct.pack("<H", i) + b"N" + b"u0" for i in range(300)) + b"].", {"objects": 100}),
        (b"].", {"nbytes": 1}),
    ],
)
def test_limits(data: bytes, limits: dict[str, int]) -> None:
    assert refusal(data, **limits) == "PickleTooLarge"


def strings(count: int) -> bytes:
    return b"".join(b"\x8c\x02" + struct.pack("<H", 0x6161 + i % 20000) for i in range(count))


LONG = 1 << 17
BOMBS = {
    "dicts": b"}" * LONG,
    "lists in lists": b"]" + b"]a" * LONG,
    "tuples around tuples": b")" + b"\x85" * LONG + b".",
    "marks": b"(" * LONG,
    "short strings": b"](" + strings(LONG // 4) + b"e.",
    "numbers": b"](" + b"M\xff\xff" * (LONG // 3) + b"e.",
    "small numbers": b"](" + b"K\x01" * LONG + b"e.",
    "none": b"N" * LONG,
    "entries": b"}(" + b"".join(b"J" + struct.pack("<i", i) + b"N" for i in range(LONG // 6)) + b"u.",
    "memo": b"N" + b"".join(b"r" + struct.pack("<I", i) + b"j" + struct.pack("<I", i) + b"0" for i in range(LONG // 11)) + b".",
    "long memo": b"Nr\xff\xff\xff\xffj\xff\xff\xff\xff.",
    "gets": b"j" * LONG,
    "long text": b"X" + struct.pack("<I", LONG) + b"x" * LONG + b".",
    "wide text": b"X" + struct.pack("<I", LONG) + "\U0001f600".encode() + b"x" * (LONG - 4) + b".",
    "records": b"".join(name("x", "Thing") + b")\x81" for _ in range(LONG // 12)) + b".",
    "floats": b"](" + b"G" + b"?\xf0\x00\x00\x00\x00\x00\x00" * (LONG // 9) + b"e.",
    "truncated length": b"\x8e" + b"\xff" * 7 + b"\x00" + b"x" * LONG,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_memory_is_bounded_by_the_length(bomb: str) -> None:
    data = BOMBS[bomb]
    tracemalloc.start()
    try:
        load(data, RULES, "m", limits=Limits(objects=1 << 13, stack=1 << 14))
    except DataError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 10 * len(data) + (2 << 20)


def test_deep_nesting_is_read_and_freed() -> None:
    found = load(b")" + b"\x85" * 100_000 + b".", RULES, "m")
    assert len(found) == 1
    del found


REAL = sorted(DATA.glob("*/*.metadata")) + sorted(DATA.glob("*/.metadata"))


def outcome(data: bytes) -> str:
    try:
        return str(len(read_metadata([("m", data)]).tensors))
    except DataError as refusal:
        error = refusal
    assert str(error).isprintable()
    return error.reason


def test_truncated_metadata_is_refused() -> None:
    whole = (DATA / "placements" / ".metadata").read_bytes()
    assert outcome(whole) == "15"
    for length in range(0, len(whole), 7):
        assert outcome(whole[:length]) in {"PickleInvalid", "PickleNotAllowed"}, length


@given(st.sampled_from(REAL), st.data())
def test_damaged_metadata_is_only_refused(path: Any, data: st.DataObject) -> None:
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    outcome(bytes(whole))


@given(st.binary(max_size=200))
def test_any_bytes_are_only_refused(data: bytes) -> None:
    outcome(data)
    outcome(metadata({"w": ((1,), [((0,), (1,))])})[:-1] + data)
