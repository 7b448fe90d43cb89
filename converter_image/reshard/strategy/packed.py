"""A strategy inside a document of JSON, such as an index. Unlike a strategy file, it holds uneven layouts and empty stages."""

from __future__ import annotations

from typing import Annotated

import msgspec

from reshard.errors import DataError
from reshard.layout import Layout
from reshard.strategy import Strategy
from reshard.strategy.file import check_tables

_Number = Annotated[int, msgspec.Meta(ge=0)]


class PackedLayout(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A layout, see `reshard.layout.Layout`."""

    device_matrix: tuple[int, ...]
    tensor_map: tuple[tuple[int, ...], ...]
    shard_step: int = 0
    shard_size: int = 0
    uneven: bool = False


class PackedStrategy(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A strategy.

    Attributes:
        layouts: distinct layouts.
        stages: position in `layouts` of each parameter, for each pipeline stage.
        devices: number of ranks per stage.
        first: number of the first stage.
        shapes: whole shapes that a strategy file states for each stage, see `Strategy.shapes`.
    """

    layouts: tuple[PackedLayout, ...]
    stages: tuple[dict[str, _Number], ...]
    devices: Annotated[int, msgspec.Meta(ge=1)]
    first: _Number = 0
    shapes: tuple[dict[str, tuple[_Number, ...]], ...] = ()


def pack(strategy: Strategy | None) -> PackedStrategy | None:
    """Return a strategy in this form. None means one rank with whole parameters."""
    if strategy is None:
        return None
    numbers: dict[Layout, int] = {}
    distinct = {id(layout): layout for stage in strategy.stages for layout in stage.values()}  # comparing them takes longer
    number_of = {key: numbers.setdefault(layout, len(numbers)) for key, layout in distinct.items()}
    stages = tuple(
        dict(zip(stage, map(number_of.__getitem__, map(id, stage.values())), strict=True)) for stage in strategy.stages
    )
    layouts = tuple(
        PackedLayout(each.device_matrix, each.tensor_map, each.shard_step, each.shard_size, each.uneven) for each in numbers
    )
    shapes = tuple(dict(stage) for stage in strategy.shapes)
    return PackedStrategy(layouts, stages, strategy.devices, strategy.first, shapes)


def unpack(packed: PackedStrategy | None, where: str, *, uneven: bool) -> Strategy | None:
    """Return the strategy of a document that may be damaged.

    Args:
        packed: the strategy in this form. None means one rank with whole parameters.
        where: name of the document, for messages.
        uneven: whether layouts may be uneven, as those of a target.

    Raises:
        DataError: the document contradicts itself.
    """
    if packed is None:
        return None
    layouts = [
        Layout(each.device_matrix, each.tensor_map, each.shard_step, each.shard_size, each.uneven) for each in packed.layouts
    ]
    check_tables(layouts, where)
    exists = all(number < len(layouts) for stage in packed.stages for number in stage.values())
    agrees = all(layout.devices == packed.devices for layout in layouts) and len(packed.shapes) in (0, len(packed.stages))
    agrees = agrees and not any(layout.uneven and (layout.shard_size or not uneven) for layout in layouts)
    if not (packed.stages and exists and agrees):
        raise DataError(
            "StrategyInvalid", "the strategy in the document contradicts itself", where=where, fix="create the document again"
        )
    stages = tuple({name: layouts[number] for name, number in stage.items()} for stage in packed.stages)
    return Strategy(stages, packed.devices, packed.first, shapes=packed.shapes)
