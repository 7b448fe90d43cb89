"""What a strategy file says, before it is checked: the same for both forms."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Node:
    """One operator.

    Attributes:
        name: of the operator.
        stage: the pipeline stage that it runs in.
        strategies: how its inputs are cut.
    """

    name: str
    stage: int
    strategies: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class LayoutItem:
    """One parameter's layout; for its fields see `reshard.layout.Layout`.

    Attributes:
        split_shape: lengths of uneven parts (`param_split_shape`).
        field: length of field slices; 0: none.
    """

    name: str
    device_matrix: tuple[int, ...]
    tensor_map: tuple[tuple[int, ...], ...]
    shard_step: int
    shard_size: int
    split_shape: tuple[int, ...] = ()
    field: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """One file."""

    layouts: tuple[LayoutItem, ...]
    nodes: tuple[Node, ...]


def axes_of(entry: int) -> tuple[int, ...]:
    """The axes that cut a dimension, from a tensor map that names one for each: -1 is none."""
    return () if entry == -1 else (entry,)
