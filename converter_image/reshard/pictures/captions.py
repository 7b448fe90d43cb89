"""Sizes, shapes, layouts and captions of pictures as text."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from reshard.spec.ranks import format_ranks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reshard.layout import Layout
    from reshard.pictures.sharding import Sharding
    from reshard.pictures.traffic import Traffic
    from reshard.plan import Parameter

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def size(nbytes: float) -> str:
    """Return a number of bytes with a unit.

    >>> size(2_140_000_000)
    '2.14 GB'
    """
    step = 0
    while nbytes >= 999.5 and step < len(_UNITS) - 1:
        nbytes /= 1000
        step += 1
    return f"{nbytes:.3g} {_UNITS[step]}" if step else f"{nbytes:.0f} B"


def dimension_name(number: int, ndim: int) -> str:
    """Return the name of a tensor's dimension."""
    return {1: ["elements"], 2: ["rows", "columns"]}[ndim][number] if ndim in {1, 2} else f"dimension {number}"


def layout(found: Layout) -> str:
    """Return a description of a layout.

    >>> from reshard.layout import Layout
    >>> layout(Layout((4, 2, 4), ((2,), (1,)), 1, 2))
    'rows /4 x columns /2, optimizer /2, 2 replicas'
    """
    tensors = replace(found, shard_step=0, shard_size=0).parts
    cuts = " x ".join(f"{dimension_name(i, found.ndim)} /{k}" for i, k in enumerate(tensors) if k > 1)
    shards = found.parts[0] // tensors[0] if found.ndim else 1
    replicas = len(next(iter(found.holders.values())))
    texts = [cuts] if cuts else [] if shards > 1 else ["whole"]
    texts += [f"optimizer /{shards}"] if shards > 1 else []
    texts += [f"{replicas} replicas"] if replicas > 1 else []
    return ", ".join(texts)


def shape(lengths: Sequence[int]) -> str:
    """Return the lengths of a tensor's dimensions.

    >>> shape((784, 512))
    '784x512'
    """
    return "x".join(map(str, lengths)) or "scalar"


def source_layout(parameter: Parameter) -> str:
    """Return a description of the source layout of a parameter."""
    if parameter.source is not None:
        return layout(parameter.source)
    return "whole, in no strategy" if parameter.role.name == "REPLICATED" else "whole"


def ranks_to_ranks(traffic: Traffic) -> str:
    """Return the numbers of source and target ranks."""
    source, target = (sum(map(len, axis.groups)) for axis in (traffic.source, traffic.target))
    return f"{source} → {target} ranks"


def describe(traffic: Traffic) -> list[str]:
    """Return sentences that describe a picture of this traffic, also for users who cannot see it."""
    total, most = sum(traffic.nbytes.values()), max(traffic.nbytes.values(), default=0)
    texts = [f"{size(total)} read, at most {size(most)} per cell."]
    if traffic.source.size == traffic.target.size == 1:
        feeding, read = Counter(j for _, j in traffic.nbytes), sum(map(bool, traffic.by_source))
        few, many = min(feeding.values(), default=0), max(feeding.values(), default=0)
        ranks, each = len(traffic.source.groups), str(few) if few == many else f"{few} to {many}"
        unread = "" if read == ranks else f"; {ranks - read} are unused"
        texts[0] += f" Each target rank reads from {each} of {_many(ranks, 'source rank')}{unread}."
    else:
        rows, columns = _many(traffic.source.size, "source rank"), _many(traffic.target.size, "target rank")
        texts.append(f"Each row is {rows}, each column {columns}.")
    if traffic.source.stages or traffic.target.stages:
        texts.append("Dashed lines separate pipeline stages.")
    return texts


def simplifications(sharding: Sharding) -> list[str]:
    """Return notes about dimensions and cells that the picture of a parameter omits or merges."""
    ndim = len(sharding.parameter.shape)
    texts = []
    if ndim > 2:
        texts.append("shown: " + " and ".join(dimension_name(i, ndim) for i in sharding.dimensions))
    if sharding.hidden:
        texts.append("also sharded, not shown: " + " and ".join(dimension_name(i, ndim) for i in sharding.hidden))
    texts += [
        f"each {side} cell merges up to {grid.merged}"
        for side, grid in (("source", sharding.source), ("target", sharding.target))
        if grid.merged > 1
    ]
    return texts


def _many(count: int, what: str) -> str:
    return f"{count} {what}s" if count > 1 else f"one {what}"


def some_ranks(ranks: tuple[int, ...]) -> str:
    """Return a list of ranks, shortened to 60 characters for a table."""
    text = format_ranks(ranks)
    return text if len(text) <= 60 else f"{text[:57]}..."
