"""The protobuf form of a strategy file (MindSpore's node_strategy.proto).

The messages live in a pool of their own, so that they never clash with MindSpore's in one process.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from reshard.errors import DataError
from reshard.strategy.records import LayoutItem, Node, Record, axes_of

# name: [(field, number, type), ...]; "x*" is repeated, any other required; a type in capitals is a message.
_SCHEMA = {
    "ParallelStrategy": [("dim*", 1, "uint32")],
    "ParallelStrategys": [("stage", 1, "uint32"), ("parallel_strategy*", 2, "ParallelStrategy")],
    "ParallelStrategyItem": [("node_name", 1, "string"), ("parallel_strategys", 2, "ParallelStrategys")],
    "DevMatrix": [("dim*", 1, "uint32")],
    "TensorMap": [("dim*", 1, "int32")],
    "ParamSplitShape": [("dim*", 1, "int64")],
    "IndicesOffset": [("dim*", 1, "int64")],
    "ParallelLayouts": [
        ("dev_matrix*", 1, "DevMatrix"),
        ("tensor_map*", 2, "TensorMap"),
        ("param_split_shape*", 3, "ParamSplitShape"),
        ("indices_offset*", 4, "IndicesOffset"),
        ("field", 5, "int32"),
        ("opt_weight_shard_step", 6, "int32"),
        ("opt_weight_shard_size", 7, "int32"),
    ],
    "ParallelLayoutItem": [("param_name", 1, "string"), ("parallel_layouts", 2, "ParallelLayouts")],
    "ParallelStrategyMap": [
        ("current_stage", 1, "uint32"),
        ("parallel_strategy_item*", 2, "ParallelStrategyItem"),
        ("parallel_layout_item*", 3, "ParallelLayoutItem"),
    ],
}
_PACKAGE = "reshard.straspb"


@cache
def _map_class() -> Any:  # noqa: ANN401 - a class that exists at run time only
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
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.ParallelStrategyMap"))


def decode(content: bytes, name: str) -> Record:
    """Read the protobuf form.

    Raises:
        DataError: it is none.
    """
    message = _map_class()()
    try:
        message.ParseFromString(content)
        whole = message.IsInitialized()
    except (DecodeError, RecursionError, ValueError):
        whole = False
    if not whole:
        hint = "it looks like a checkpoint; " if content[:1] == b"\x0a" else ""
        raise DataError(
            "StrategyInvalid", "it is no strategy file", where=name, fix=f"{hint}give the strategy file that training wrote"
        )
    try:
        return Record(
            tuple(_layout(item, name) for item in message.parallel_layout_item),
            tuple(
                Node(
                    item.node_name,
                    item.parallel_strategys.stage,
                    tuple(tuple(each.dim) for each in item.parallel_strategys.parallel_strategy),
                )
                for item in message.parallel_strategy_item
            ),
        )
    except UnicodeDecodeError:
        raise DataError("StrategyInvalid", "a name in it is not UTF-8", where=name) from None


def encode(record: Record) -> bytes:
    """Write the protobuf form."""
    message = _map_class()(current_stage=record.nodes[0].stage)
    for node in record.nodes:
        strategys = message.parallel_strategy_item.add(node_name=node.name).parallel_strategys
        strategys.stage = node.stage
        for dims in node.strategies:
            strategys.parallel_strategy.add(dim=dims)
    for item in record.layouts:
        layouts = message.parallel_layout_item.add(param_name=item.name).parallel_layouts
        layouts.dev_matrix.add(dim=item.device_matrix)
        for axes in _tensor_maps(item.tensor_map):
            layouts.tensor_map.add(dim=axes)
        layouts.param_split_shape.add()
        layouts.indices_offset.add()
        layouts.field = 0
        layouts.opt_weight_shard_step = item.shard_step
        layouts.opt_weight_shard_size = item.shard_size
    return bytes(message.SerializeToString(deterministic=True))


def _layout(item: Any, file: str) -> LayoutItem:  # noqa: ANN401 - a message
    layouts = item.parallel_layouts
    if len(layouts.dev_matrix) != 1 or not layouts.tensor_map:
        raise DataError(
            "StrategyInvalid", "its layout has no device matrix or no tensor map", where=f"{file}: parameter {item.param_name}"
        )
    return LayoutItem(
        name=item.param_name,
        device_matrix=tuple(layouts.dev_matrix[0].dim),
        tensor_map=_axes([list(each.dim) for each in layouts.tensor_map]),
        shard_step=layouts.opt_weight_shard_step,
        shard_size=layouts.opt_weight_shard_size,
        split_shape=tuple(n for each in layouts.param_split_shape for n in each.dim),
        field=layouts.field,
    )


def _axes(maps: list[list[int]]) -> tuple[tuple[int, ...], ...]:
    """One message: an axis for each dimension. Several: one for each dimension, with its axes; an empty one only fills up."""
    if len(maps) == 1:
        return tuple(axes_of(entry) for entry in maps[0])
    return tuple(tuple(axis for axis in dims if axis != -1) for dims in maps if dims)


def _tensor_maps(axes: tuple[tuple[int, ...], ...]) -> list[list[int]]:
    if all(len(each) <= 1 for each in axes):
        return [[each[0] if each else -1 for each in axes]]
    maps = [list(each) or [-1] for each in axes]
    return [*maps, []] if len(maps) == 1 else maps
