"""The JSON form of a strategy file.

MindSpore's reader supports one axis per dimension in this form. If several axes split a dimension, MindSpore's compiler writes
one dimension for each axis, and states the whole shape accordingly (`tensor_shape`). Without that shape it does not load a file,
see `reshard.layout.regroup`. Only reshard supports nested lists for several axes. Use the protobuf form for a file with several
axes that MindSpore's transforms must read.
"""

from __future__ import annotations

from sys import intern
from typing import TYPE_CHECKING, Annotated, TypeVar

import msgspec

from reshard.strategy.records import (
    MAX_OPERATORS,
    MAX_PARAMETERS,
    MAX_RECORD_BYTES,
    UINT32_MAX,
    LayoutRecord,
    MalformedError,
    NodeReader,
    Record,
    axes_of,
    checked_name,
    without_padding,
)
from reshard.strictjson import pairs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from reshard.layout import Layout
    from reshard.strategy.records import Node

# The types of the protobuf form, so that each file can be written in either form.
_UInt32 = Annotated[int, msgspec.Meta(ge=0, le=UINT32_MAX)]
_Int32 = Annotated[int, msgspec.Meta(ge=-(1 << 31), le=(1 << 31) - 1)]
_Int64 = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]

_LAYOUTS, _NODES = "parallel_layout_item", "parallel_strategy_item"
_MAX_FIELDS = 64  # of a file, and of a record in it
_PROBLEMS = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)


class _Node(msgspec.Struct):
    stage: _UInt32
    parallel_strategy: tuple[tuple[_UInt32, ...], ...] = ()


class _Layout(msgspec.Struct):
    dev_matrix: tuple[_UInt32, ...]
    tensor_map: tuple[_Int32 | tuple[_Int32, ...], ...]
    param_split_shape: tuple[_Int64, ...] = ()
    field: _Int32 = 0
    opt_weight_shard_step: _Int32 = 0
    opt_weight_shard_size: _Int32 = 0
    tensor_shape: tuple[Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)], ...] = ()


_NODE = msgspec.json.Decoder(_Node)
_LAYOUT = msgspec.json.Decoder(_Layout)

_S = TypeVar("_S", bound=msgspec.Struct)


def decode(content: bytes) -> Record:
    """Read the JSON form.

    Raises:
        MalformedError: the content is not valid.
    """
    sections: dict[str, msgspec.Raw] = {}
    for name, section in _pairs(content, _MAX_FIELDS):
        if name in sections:
            raise MalformedError(f"{name} occurs twice")
        sections[name] = section
    if _LAYOUTS not in sections:
        raise MalformedError(f"the key {_LAYOUTS} is missing")
    shared: dict[bytes, bytes] = {}
    names, layouts = [], []
    for name, raw in _pairs(sections[_LAYOUTS], MAX_PARAMETERS):
        text = _bounded(raw, f"parameter {name}")
        names.append(intern(checked_name(name)))
        layouts.append(shared.setdefault(text, text))
    nodes = NodeReader()
    for name, raw in _pairs(sections[_NODES], MAX_OPERATORS) if _NODES in sections else ():
        text = _bounded(raw, f"operator {name}")
        if not nodes.known(text):
            try:
                node = _struct(text, _NODE)
            except MalformedError as error:
                raise MalformedError(error.what, f"operator {name}") from None
            nodes.learn(text, node.stage, node.parallel_strategy)
        nodes.add(name, text)
    return Record(tuple(names), tuple(layouts), tuple(nodes.nodes))


def decode_layout(raw: bytes) -> LayoutRecord:
    """Read the layout of a record.

    Raises:
        MalformedError: the content is not valid.
    """
    layout = _struct(raw, _LAYOUT)
    return LayoutRecord(
        device_matrix=layout.dev_matrix,
        tensor_map=tuple(axes_of(each) if isinstance(each, int) else without_padding(each) for each in layout.tensor_map),
        shard_step=layout.opt_weight_shard_step,
        shard_size=layout.opt_weight_shard_size,
        split_shape=layout.param_split_shape,
        field=layout.field,
        tensor_shape=layout.tensor_shape,
    )


def encode(
    parameters: Iterable[tuple[str, Layout]],
    nodes: Iterable[Node],
    current_stage: int,
    shapes: Mapping[str, tuple[int, ...]],
) -> bytes:
    """Write the JSON form. If several axes split a dimension, it has a nested list of them."""
    named: dict[str, object] = {}
    for node in nodes:
        name = node.name
        while name in named:  # stages may have operators with equal names, but keys of an object are unique
            name += f"-stage{node.stage}"
        named[name] = {"stage": node.stage, "parallel_strategy": node.strategies}
    encoded: dict[tuple[Layout, tuple[int, ...]], msgspec.Raw] = {}
    layouts: dict[str, msgspec.Raw] = {}
    for name, layout in parameters:
        key = layout, shapes.get(name, ())
        content = encoded.get(key)
        if content is None:
            content = encoded[key] = msgspec.Raw(_encode_layout(*key))
        layouts[name] = content
    return msgspec.json.encode({"current_stage": current_stage, _NODES: named, _LAYOUTS: layouts})


def _encode_layout(layout: Layout, shape: tuple[int, ...]) -> bytes:
    stated = {"tensor_shape": shape} if shape else {}
    return msgspec.json.encode(
        {
            "dev_matrix": layout.device_matrix,
            "tensor_map": [axes[0] if len(axes) == 1 else list(axes) or -1 for axes in layout.tensor_map],
            "param_split_shape": [],
            "indices_offset": [],
            "field": 0,
            "opt_weight_shard_step": layout.shard_step,
            "opt_weight_shard_size": layout.shard_size,
            **stated,
        }
    )


def _pairs(content: bytes | msgspec.Raw, most: int) -> list[tuple[str, msgspec.Raw]]:
    try:
        return pairs(content, most, msgspec.Raw)
    except _PROBLEMS as error:
        raise MalformedError(f"the file is not a strategy file in JSON: {error}") from None


def _struct(raw: bytes, decoder: msgspec.json.Decoder[_S]) -> _S:
    try:
        names = [name for name, _ in pairs(raw, _MAX_FIELDS, msgspec.Raw)]
        if len(set(names)) < len(names):
            raise MalformedError("the record contains the same field twice")
        return decoder.decode(raw)
    except _PROBLEMS as error:
        raise MalformedError(f"the JSON record is invalid: {error}") from None


def _bounded(raw: msgspec.Raw, where: str) -> bytes:
    content = bytes(raw)
    if len(content) > MAX_RECORD_BYTES:
        raise MalformedError(f"the record is too long ({len(content)} bytes)", where)
    return content
