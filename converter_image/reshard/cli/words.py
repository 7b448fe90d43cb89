"""Layouts, shapes and pictures in words, the same on paper and in a terminal."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from reshard.cli.show import size
from reshard.plan import Role
from reshard.spec.ranks import format_ranks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reshard.layout import Layout
    from reshard.plan import Cuts, Parameter, Traffic


def dimension(number: int, ndim: int) -> str:
    """What people call a dimension of a tensor."""
    return {1: ["elements"], 2: ["rows", "columns"]}[ndim][number] if ndim in {1, 2} else f"dimension {number}"


def layout(found: Layout) -> str:
    """How a parameter is cut.

    >>> from reshard.layout import Layout
    >>> layout(Layout((4, 2, 4), ((2,), (1,)), 1, 2))
    'rows /4 x columns /2, optimizer /2, 2 replicas'
    """
    tensors = replace(found, shard_step=0, shard_size=0).parts
    cuts = " x ".join(f"{dimension(i, found.ndim)} /{k}" for i, k in enumerate(tensors) if k > 1)
    shards = found.parts[0] // tensors[0] if found.ndim else 1
    replicas = len(next(iter(found.holders.values())))
    said = [cuts] if cuts else [] if shards > 1 else ["whole"]
    said += [f"optimizer /{shards}"] if shards > 1 else []
    said += [f"{replicas} replicas"] if replicas > 1 else []
    return ", ".join(said)


def shape(lengths: Sequence[int]) -> str:
    """The lengths of a tensor's dimensions.

    >>> shape((784, 512))
    '784x512'
    """
    return "x".join(map(str, lengths)) or "scalar"


def source_layout(parameter: Parameter) -> str:
    """How the source has a parameter."""
    if parameter.source is not None:
        return layout(parameter.source)
    return "whole, in no strategy" if parameter.role is Role.REPLICATED else "whole"


def ranks_to_ranks(flow: Traffic) -> str:
    """What is resharded to what."""
    source, target = (sum(map(len, axis.groups)) for axis in (flow.source, flow.target))
    return f"{source} → {target} ranks"


def told(flow: Traffic) -> list[str]:
    """What a picture of this shows, for those who can't see it too."""
    total, most = sum(flow.nbytes.values()), max(flow.nbytes.values(), default=0)
    said = [f"{size(total)} are read, at most {size(most)} in one cell."]
    if flow.source.size == flow.target.size == 1:
        feeding, read = Counter(j for _, j in flow.nbytes), sum(map(bool, flow.by_source))
        few, many = min(feeding.values(), default=0), max(feeding.values(), default=0)
        ranks, each = len(flow.source.groups), str(few) if few == many else f"{few} to {many}"
        unread = "" if read == ranks else f"; {ranks - read} are not read"
        said[0] += f" Each target rank reads {each} of {_many(ranks, 'source rank')}{unread}."
    else:
        rows, columns = _many(flow.source.size, "source rank"), _many(flow.target.size, "target rank")
        said.append(f"Each row stands for {rows}, each column for {columns}.")
    if flow.source.stages or flow.target.stages:
        said.append("Broken lines are between pipeline stages.")
    return said


def drawn_as(drawn: Cuts) -> list[str]:
    """What of a parameter its picture leaves out, or draws as one."""
    ndim = len(drawn.parameter.shape)
    said = []
    if ndim > 2:
        said.append("shown: " + " and ".join(dimension(i, ndim) for i in drawn.dimensions))
    if drawn.hidden:
        said.append("cut as well: " + " and ".join(dimension(i, ndim) for i in drawn.hidden))
    said += [
        f"each {side} cell drawn stands for up to {grid.merged}"
        for side, grid in (("source", drawn.source), ("target", drawn.target))
        if grid.merged > 1
    ]
    return said


def _many(count: int, what: str) -> str:
    return f"{count} {what}s" if count > 1 else f"one {what}"


def some_ranks(ranks: tuple[int, ...]) -> str:
    """A list of ranks for a table, shortened."""
    text = format_ranks(ranks)
    return text if len(text) <= 60 else f"{text[:57]}..."
