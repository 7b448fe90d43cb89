"""The JSON form of a strategy file."""

from __future__ import annotations

from typing import Any

import msgspec

from reshard.errors import DataError
from reshard.strategy.records import LayoutItem, Node, Record, axes_of
from reshard.strictjson import pairs_decoder


class _Node(msgspec.Struct):
    stage: int
    parallel_strategy: list[Any] = []


class _Layout(msgspec.Struct):
    dev_matrix: tuple[int, ...]
    tensor_map: tuple[int | tuple[int, ...], ...]
    param_split_shape: list[Any] = []
    field: int = 0
    opt_weight_shard_step: int = 0
    opt_weight_shard_size: int = 0


class _File(msgspec.Struct):
    parallel_layout_item: msgspec.Raw
    parallel_strategy_item: dict[str, _Node] = {}


_FILE = msgspec.json.Decoder(_File)
_LAYOUTS = pairs_decoder(_Layout)


def decode(content: bytes, name: str) -> Record:
    """Read the JSON form.

    Raises:
        DataError: it is none.
    """
    try:
        file = _FILE.decode(content)
        layouts = _LAYOUTS(file.parallel_layout_item)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise DataError(
            "StrategyInvalid",
            f"it is no strategy file in JSON: {error}",
            where=name,
            fix="give the strategy file that training wrote",
        ) from None
    return Record(
        tuple(
            LayoutItem(
                name=parameter,
                device_matrix=layout.dev_matrix,
                tensor_map=tuple(axes_of(entry) if isinstance(entry, int) else _axes(entry) for entry in layout.tensor_map),
                shard_step=layout.opt_weight_shard_step,
                shard_size=layout.opt_weight_shard_size,
                split_shape=_numbers(layout.param_split_shape),
                field=layout.field,
            )
            for parameter, layout in layouts
        ),
        tuple(
            Node(node, item.stage, tuple(_numbers([entry]) for entry in item.parallel_strategy))
            for node, item in file.parallel_strategy_item.items()
        ),
    )


def encode(record: Record) -> bytes:
    """Write the JSON form. A dimension that several axes cut has them in a list of its own."""
    return msgspec.json.encode(
        {
            "current_stage": record.nodes[0].stage,
            "parallel_strategy_item": {
                node.name: {"stage": node.stage, "parallel_strategy": node.strategies} for node in record.nodes
            },
            "parallel_layout_item": {
                item.name: {
                    "dev_matrix": item.device_matrix,
                    "tensor_map": [axes[0] if len(axes) == 1 else list(axes) or -1 for axes in item.tensor_map],
                    "param_split_shape": [],
                    "indices_offset": [],
                    "field": 0,
                    "opt_weight_shard_step": item.shard_step,
                    "opt_weight_shard_size": item.shard_size,
                }
                for item in record.layouts
            },
        }
    )


def _axes(entry: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axis for axis in entry if axis != -1)


def _numbers(nested: list[Any]) -> tuple[int, ...]:
    """The integers of a list that may hold lists."""
    flat: list[int] = []
    for entry in nested:
        flat += [n for n in (entry if isinstance(entry, list) else [entry]) if isinstance(n, int)]
    return tuple(flat)
