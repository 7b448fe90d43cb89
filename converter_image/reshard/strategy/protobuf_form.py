"""The protobuf form of a strategy file (MindSpore's node_strategy.proto).

The messages have their own descriptor pool, so that they never clash with MindSpore's in one process. The content of an item is
`bytes` here, which has the same wire format as a message: each distinct layout is parsed only once, however many parameters have
it. The outermost message is read item by item, because a parser would create an object for every two bytes of a malicious file
before anything could be counted.
"""

# ruff: noqa: PLC0415 - transforms without strategy files start faster without protobuf

from __future__ import annotations

from functools import cache
from sys import intern
from typing import TYPE_CHECKING, Any

from reshard.strategy.records import (
    MAX_NAME_LENGTH,
    MAX_PARAMETERS,
    MAX_RECORD_BYTES,
    LayoutRecord,
    MalformedError,
    NodeReader,
    Record,
    axes_of,
    checked_name,
    without_padding,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from reshard.layout import Layout
    from reshard.strategy.records import Node

# name: [(field, number, type), ...]. "x*" is repeated, any other field is required. A capitalized type is a message.
_SCHEMA = {
    "Dims": [("dim*", 1, "uint32")],
    "Axes": [("dim*", 1, "int32")],
    "Lengths": [("dim*", 1, "int64")],
    "ParallelStrategys": [("stage", 1, "uint32"), ("parallel_strategy*", 2, "Dims")],
    "ParallelLayouts": [
        ("dev_matrix*", 1, "Dims"),
        ("tensor_map*", 2, "Axes"),
        ("param_split_shape*", 3, "Lengths"),
        ("indices_offset*", 4, "Lengths"),
        ("field", 5, "int32"),
        ("opt_weight_shard_step", 6, "int32"),
        ("opt_weight_shard_size", 7, "int32"),
    ],
    # If a singular message field occurs several times, the concatenated contents are its content: protobuf merges them.
    "Item": [("name", 1, "bytes"), ("content*", 2, "bytes")],
    "ParallelStrategyMap": [
        ("current_stage", 1, "uint32"),
        ("parallel_strategy_item*", 2, "Item"),
        ("parallel_layout_item*", 3, "Item"),
    ],
}
_PACKAGE = "reshard.straspb"
_STAGE, _NODE, _LAYOUT = 1, 2, 3
_RESTORE = 2  # in ParallelGroupMap
_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5
_LONG = 0x80  # a byte from here on is followed by others of the same integer
_NAME_TAG, _CONTENT_TAG = 1 << 3 | _DELIMITED, 2 << 3 | _DELIMITED  # in an item
_MAX_ITEM_BYTES = 4 * MAX_NAME_LENGTH + MAX_RECORD_BYTES + 16
_MAX_UNKNOWN_FIELDS = 1024
_MAX_FIELD = (1 << 29) - 1  # of protobuf
# The limit for communication group files: more than any cluster has ranks.
_MAX_GROUPS = 1 << 20
_MAX_RANKS_BYTES = 8 << 20


@cache
def _classes() -> dict[str, Any]:
    """Return the message classes, which are created at run time."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="reshard/node_strategy.proto", package=_PACKAGE, syntax="proto2")
    for message, fields in _SCHEMA.items():
        described = file.message_type.add(name=message)
        for name, number, kind in fields:
            label = field.LABEL_REPEATED if name.endswith("*") else field.LABEL_REQUIRED
            added = described.field.add(name=name.rstrip("*"), number=number, label=label)
            if kind in _SCHEMA:
                added.type, added.type_name = field.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
            else:
                added.type = field.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _SCHEMA}


@cache
def _errors() -> tuple[type[Exception], ...]:
    """Return the errors that a damaged message raises."""
    from google.protobuf.message import DecodeError

    return DecodeError, RecursionError, ValueError


def decode(content: bytes) -> Record:
    """Read the protobuf form.

    Raises:
        MalformedError: the content is not valid.
    """
    names: list[bytes] = []
    layouts: list[bytes] = []
    nodes = NodeReader()
    shared: dict[bytes, bytes] = {}
    staged, unknown = False, 0
    for number, kind, start, end in _fields(content):
        if number == _LAYOUT and kind == _DELIMITED:
            if len(names) == MAX_PARAMETERS:
                raise MalformedError(f"the file contains more than {MAX_PARAMETERS} parameters")
            name, raw = _usual_item(content, start, end) or _item(content, start, end)
            names.append(name)
            layouts.append(shared.setdefault(raw, raw))
        elif number == _NODE and kind == _DELIMITED:
            _add_node(nodes, *_item(content, start, end))
        elif number == _STAGE and kind == _VARINT:
            staged = True
        elif number in (_STAGE, _NODE, _LAYOUT):
            raise MalformedError(f"the file is not a strategy file: field {number} has an unexpected type")
        else:  # a field of a later version
            unknown += 1
            if unknown > _MAX_UNKNOWN_FIELDS:
                raise MalformedError("the file is not a strategy file: it contains unknown fields")
    if not staged:
        raise MalformedError("the file is not a strategy file: it has no current stage")
    if (longest := max(map(len, shared), default=0)) > MAX_RECORD_BYTES:
        raise MalformedError(f"a parameter's layout has {longest} bytes; at most {MAX_RECORD_BYTES} are supported")
    return Record(_texts(names), tuple(layouts), tuple(nodes.nodes))


def _add_node(nodes: NodeReader, name: bytes, raw: bytes) -> None:
    """Add an operator."""
    if len(raw) > MAX_RECORD_BYTES:
        raise MalformedError(f"an operator's strategies have {len(raw)} bytes; at most {MAX_RECORD_BYTES} are supported")
    (text,) = _texts([name])
    if not nodes.known(raw):
        nodes.learn(raw, *_strategys(raw, text))
    nodes.add(text, raw)


def decode_layout(raw: bytes) -> LayoutRecord:
    """Read the layout of a record.

    Raises:
        MalformedError: the content is not valid.
    """
    layouts = _parsed("ParallelLayouts", raw)
    if len(layouts.dev_matrix) != 1 or not layouts.tensor_map:
        raise MalformedError("the layout must have exactly one device matrix, and a tensor map")
    return LayoutRecord(
        device_matrix=tuple(layouts.dev_matrix[0].dim),
        tensor_map=_axes([tuple(each.dim) for each in layouts.tensor_map]),
        shard_step=layouts.opt_weight_shard_step,
        shard_size=layouts.opt_weight_shard_size,
        split_shape=tuple(n for each in layouts.param_split_shape for n in each.dim),
        field=layouts.field,
    )


def decode_restore_ranks(content: bytes) -> tuple[int, ...]:
    """Read `ckpt_restore_rank_list` of a communication group file (ParallelGroupMap).

    Raises:
        MalformedError: the content is not a valid communication group file, or has no list of ranks.
    """
    lists = []
    for count, (number, kind, start, end) in enumerate(_fields(content)):
        if count == _MAX_GROUPS:
            raise MalformedError(f"the file contains more than {_MAX_GROUPS} groups")
        if number == _STAGE and kind == _VARINT:  # every strategy file has this field, and no communication group file
            raise MalformedError("the file is a strategy file, not a communication group file")
        if number == _RESTORE and kind == _DELIMITED:
            lists.append(content[start:end])
    if not lists:
        raise MalformedError("the file has no list of ranks to restore from")
    if (nbytes := sum(map(len, lists))) > _MAX_RANKS_BYTES:
        raise MalformedError(f"the list of ranks is too long ({nbytes} bytes)")
    ranks = tuple(_parsed("Dims", b"".join(lists)).dim)
    if len(set(ranks)) < len(ranks):
        raise MalformedError("the list of ranks contains the same rank twice")
    return ranks


def encode(parameters: Iterable[tuple[str, Layout]], nodes: Iterable[Node], current_stage: int) -> bytes:
    """Write the protobuf form."""
    message = _classes()["ParallelStrategyMap"](current_stage=current_stage)
    for node in nodes:
        strategys = _classes()["ParallelStrategys"](stage=node.stage)
        for dims in node.strategies:
            strategys.parallel_strategy.add(dim=dims)
        message.parallel_strategy_item.add(name=node.name.encode(), content=[strategys.SerializeToString()])
    encoded: dict[Layout, bytes] = {}
    for name, layout in parameters:
        content = encoded.get(layout)
        if content is None:
            content = encoded[layout] = bytes(layout_message(layout).SerializeToString(deterministic=True))
        message.parallel_layout_item.add(name=name.encode(), content=[content])
    return bytes(message.SerializeToString(deterministic=True))


def layout_message(layout: Layout) -> Any:  # noqa: ANN401 - a class that is created at run time
    """Return a layout as a `ParallelLayouts` message with the fields that MindSpore writes."""
    message = _classes()["ParallelLayouts"](
        field=0, opt_weight_shard_step=layout.shard_step, opt_weight_shard_size=layout.shard_size
    )
    message.dev_matrix.add(dim=layout.device_matrix)
    for axes in _tensor_maps(layout.tensor_map):
        message.tensor_map.add(dim=axes)
    message.param_split_shape.add()  # MindSpore reads the first of each, even if it is empty
    message.indices_offset.add()
    return message


def _texts(names: Sequence[bytes]) -> tuple[str, ...]:
    """Return names as text. Both strategies and the files contain the same names, which are then the same objects."""
    try:
        found = tuple(map(intern, map(bytes.decode, names)))
    except UnicodeDecodeError as error:
        raise MalformedError(f"the name {error.object[:64]!r} is not UTF-8") from None
    checked_name(max(found, key=len, default=""))
    return found


def _usual_item(content: bytes, start: int, end: int) -> tuple[bytes, bytes] | None:
    """Return the name and the content of an item in the usual encoding: the two short fields once, in their order.

    None: the item has another encoding, or is damaged. Parsing it as a message takes longer.
    """
    if (
        start + 4 <= end
        and content[start] == _NAME_TAG
        and (length := content[start + 1]) < _LONG
        and (middle := start + 2 + length) + 1 < end
        and content[middle] == _CONTENT_TAG
        and (length := content[middle + 1]) < _LONG
        and middle + 2 + length == end
    ):
        return content[start + 2 : middle], content[middle + 2 : end]
    return None


def _item(content: bytes, start: int, end: int) -> tuple[bytes, bytes]:
    """Return the name and the content of an item in any encoding. Its length is limited, because a parser needs more memory."""
    if end - start > _MAX_ITEM_BYTES:
        raise MalformedError(f"the item at byte {start} is too long ({end - start} bytes)")
    item = _parsed("Item", content[start:end])
    if not item.content:
        raise MalformedError(f"the item at byte {start} has no content")
    return item.name, b"".join(item.content)


def _strategys(raw: bytes, name: str) -> tuple[int, tuple[tuple[int, ...], ...]]:
    try:
        message = _parsed("ParallelStrategys", raw)
    except MalformedError as error:
        raise MalformedError(error.what, f"operator {name}") from None
    return message.stage, tuple(tuple(each.dim) for each in message.parallel_strategy)


def _parsed(kind: str, raw: bytes) -> Any:  # noqa: ANN401 - a class that is created at run time
    message = _classes()[kind]()
    try:
        message.ParseFromString(raw)
        whole = message.IsInitialized()
    except _errors():
        whole = False
    if not whole:
        raise MalformedError("the file is damaged, or is not a strategy file")
    return message


def _fields(content: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield the number, wire type, start and end of the value of each field of a message."""
    at, end = 0, len(content)
    try:
        while at < end:
            tag = content[at]
            tag, at = (tag, at + 1) if tag < _LONG else _varint(content, at)
            number, kind = tag >> 3, tag & 7
            if not 0 < number <= _MAX_FIELD:
                raise MalformedError(f"the file is damaged, or is not a strategy file: it has a field with the number {number}")
            start = at
            if kind == _DELIMITED:
                length, start = content[at], at + 1
                if length >= _LONG:
                    length, start = _varint(content, at)
                at = start + length
            elif kind == _VARINT:
                _, at = _varint(content, at)
            elif kind in (_FIXED32, _FIXED64):
                at += 4 if kind == _FIXED32 else 8
            else:
                raise MalformedError(
                    f"the file is damaged, or is not a strategy file: the field at byte {start} has wire type {kind}"
                )
            if at > end:
                raise MalformedError(f"the file is truncated in the field at byte {start}")
            yield number, kind, start, at
    except IndexError:
        raise MalformedError("the file ends within an integer") from None


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """Return an integer and the position after it. Raises IndexError if the content ends first."""
    byte = content[at]
    at += 1
    value, shift = byte & 0x7F, 7
    while byte >= 0x80:
        if shift > 63:
            raise MalformedError(f"the number before byte {at} is longer than 64 bits")
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
    return value, at


def _axes(maps: list[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    """Return the axes of each dimension. One message lists one axis per dimension, several list those of one dimension each."""
    if len(maps) == 1:
        return tuple(map(axes_of, maps[0]))
    return tuple(without_padding(axes) for axes in maps if axes)


def _tensor_maps(axes: tuple[tuple[int, ...], ...]) -> list[tuple[int, ...]]:
    if all(len(each) <= 1 for each in axes):
        return [tuple(each[0] if each else -1 for each in axes)]
    maps = [each or (-1,) for each in axes]
    return [*maps, ()] if len(maps) == 1 else maps
