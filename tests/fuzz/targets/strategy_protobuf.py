"""Fuzz strategy files in protobuf: what protobuf refuses is refused, and both readers of items find what protobuf finds."""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from reshard.layout import Layout
from reshard.strategy import Strategy, StrategyFile, dump, parse, protobuf_form
from reshard.strategy.records import MalformedError, Node

FILE = StrategyFile(
    "fuzz",
    {0: {"a.w": Layout((2, 4), ((1,), ())), "é": Layout((2, 4), ((1, 0),)), "s": Layout((8,), ((), ()), 1, 8)}},
    (Node("MatMul", 0, ((2, 1), (1, 4))),),
)
FIELD = descriptor_pb2.FieldDescriptorProto


@cache
def whole_message() -> Any:
    """Return the class of a whole file, with items as messages instead of bytes."""
    file = descriptor_pb2.FileDescriptorProto(name="fuzz.proto", package="fuzz", syntax="proto2")
    for message, fields in protobuf_form._SCHEMA.items():
        described = file.message_type.add(name=message)
        for name, number, kind in fields:
            label = FIELD.LABEL_REPEATED if name.endswith("*") and message != "Item" else FIELD.LABEL_OPTIONAL
            added = described.field.add(name=name.rstrip("*"), number=number, label=label)
            if kind in protobuf_form._SCHEMA:
                added.type, added.type_name = FIELD.TYPE_MESSAGE, f".fuzz.{kind}"
            else:
                added.type = FIELD.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("fuzz.ParallelStrategyMap"))


def compare(content: bytes) -> None:
    """Compare both readers of items, and all items of a file with those of protobuf."""
    try:
        quick = protobuf_form._usual_item(content, 0, len(content))
    except MalformedError:
        return
    if quick is not None:
        assert protobuf_form._item(content, 0, len(content)) == quick


SEEDS = [dump(FILE, "protobuf"), b"\n\x01a\x12\x02\n\x00"]  # the second is an item in the usual encoding


def read(content: bytes) -> None:
    compare(content)
    if content.lstrip(b" \t\r\n")[:1] in (b"{", b"["):
        return
    found = parse(content, "fuzz")
    message = whole_message()()
    try:
        message.ParseFromString(content)
    except DecodeError:
        raise AssertionError("protobuf refuses this file") from None
    record = protobuf_form.decode(content)
    assert [*record.names] == [item.name.decode() for item in message.parallel_layout_item]
    assert [node.name for node in record.nodes] == [item.name.decode() for item in message.parallel_strategy_item]
    Strategy.from_files([found])
