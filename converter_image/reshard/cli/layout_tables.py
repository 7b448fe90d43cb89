"""Layout files, and what they give the ranks of a checkpoint, as tables or JSON."""

from __future__ import annotations

from itertools import islice, product
from math import prod
from typing import TYPE_CHECKING, Any

import msgspec

from reshard.cli import console
from reshard.mesh.stages import LayerStages
from reshard.mesh.summary import divisions, rank_bytes
from reshard.pictures.captions import shape, size
from reshard.spec.layout import axes_of, patterns_in
from reshard.spec.ranks import format_ranks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reshard.mesh.summary import Division
    from reshard.spec.layout import Derivation, LayoutDocument, LayoutRule, Zero
    from reshard.transform.resolved import ResolvedCheckpoint

_SHOWN_RANKS = 16  # rows and columns of the picture of a mesh


def show(document: LayoutDocument, *, as_json: bool) -> None:
    """Print the content of a layout file."""
    stages = _stages(document)
    if as_json:
        console.out_json(
            {
                "ranks": document.ranks,
                "devices_per_stage": document.devices,
                "stages": [{"ranks": ranks, "layers": layers} for ranks, layers in stages],
                "layout": msgspec.to_builtins(document),
            }
        )
        return
    count = "1 pipeline stage" if document.stages == 1 else f"{document.stages} pipeline stages"
    rows = [("ranks", f"{document.ranks}: {count} of {document.devices} ranks"), ("mesh", _sizes(document.axes))]
    rows += [("expert mesh", _sizes(document.expert_axes))] if document.expert_axes else []
    rows += [(f"alias {name}", " x ".join(axes_of(axes)) or "no axes") for name, axes in document.aliases.items()]
    rows += [("state", ", ".join(document.state))] if document.state else []
    rows.append(("zero", "none" if document.zero is None else _zero(document.zero)))
    rows += [("uneven", "lengths that are not multiples of an axis are divided as torch.chunk does")] if document.uneven else []
    rows += _derivation(document.derive) if document.derive else []
    console.table([("", "left"), ("", "left")], rows)
    _draw(document.axes)
    if document.expert_axes:
        _draw(document.expert_axes)
    if document.stages > 1:
        console.out()
        console.table(
            [("stage", "right"), ("ranks", "left"), ("layers", "left")],
            [(i, ranks, layers or "none") for i, (ranks, layers) in enumerate(stages)],
        )
    console.out()
    columns = [("rule", "right"), ("parameters", "left"), ("divided", "left"), ("stage", "left"), ("other", "left")]
    console.table(columns, [(i + 1, *_rule(rule)) for i, rule in enumerate(document.rules)])


def checked(found: ResolvedCheckpoint, *, as_json: bool) -> None:
    """Print how a layout file divides the parameters of a checkpoint."""
    document, resolved = found.file.document, found.resolved
    lines = divisions(resolved, found.tensors)
    stages = rank_bytes(resolved, found.tensors, found.others)
    if as_json:
        console.out_json(
            {
                "ranks": document.ranks,
                "devices_per_stage": document.devices,
                "parameters": len(resolved.assigned),
                "whole": {"tensors": len(found.others), "bytes": sum(tensor.nbytes for tensor in found.others)},
                "divisions": [_division(document, line) for line in lines],
                "stages": [
                    _bytes(stage) | {"parameters": len(s)} for stage, s in zip(stages, resolved.strategy.stages, strict=True)
                ],
                "notes": list(found.notes),
                **_bytes([nbytes for stage in stages for nbytes in stage]),
            }
        )
        return
    for note in found.notes:
        console.out(f"note: {note}")
    rows = [_row(line) for line in lines]
    if found.others:
        nbytes = sum(tensor.nbytes for tensor in found.others)
        rows.append(("", "one element, or in no strategy", len(found.others), "", "whole", "", size(nbytes)))
    columns = [("rule", "right"), ("parameters", "left"), ("count", "right"), ("shape", "right"), ("divided", "left")]
    console.table([*columns, ("slices", "right"), ("per rank", "right")], rows)
    console.out()
    columns = [("stage", "right"), ("ranks", "left"), ("parameters", "right"), ("smallest", "right"), ("largest", "right")]
    ranks = [ranks for ranks, _ in _stages(document)]
    rows = [(i, ranks[i], len(resolved.strategy.stages[i]), size(min(stage)), size(max(stage))) for i, stage in enumerate(stages)]
    console.table(columns, rows)
    total = _bytes([nbytes for stage in stages for nbytes in stage])
    extremes, factor = f"{size(total['min_bytes'])} to {size(total['max_bytes'])}", f"{total['imbalance']:.2f}"
    console.out()
    console.out(f"{document.ranks} ranks of {extremes}; the largest is {factor} times the mean")
    if resolved.unmatched:
        console.out()
        console.out("parameters without a rule:")
        for pattern in resolved.unmatched:
            console.out(f"  {pattern}")


def _stages(document: LayoutDocument) -> list[tuple[str, str]]:
    """Return the ranks and the layers of each pipeline stage.

    Raises:
        UsageError: the numbers of layers contradict each other.
    """
    layers = LayerStages(document.pipeline, document.stages) if document.pipeline else None
    found = []
    for stage in range(document.stages):
        ranks = tuple(range(stage * document.devices, (stage + 1) * document.devices))
        here = tuple(layer for layer in range(layers.count) if layers.stage(layer) == stage) if layers else ()
        found.append((format_ranks(ranks), format_ranks(here) if here else ""))
    return found


def _derivation(how: Derivation) -> list[tuple[str, str]]:
    rows = [("derived", f"from the source, whose mesh is {how.source_mesh}")]
    rows += [("", f"{', '.join(patterns_in(how.experts))} by the mesh {how.source_expert_mesh}")] if how.experts else []
    rows += [("", f"no parameter by {', '.join(axes_of(how.replicated))}")] if how.replicated else []
    if how.unsharded is not None:
        rows.append(("", f"zero does not divide: {', '.join(patterns_in(how.unsharded)) or 'none'}"))
    return rows


def _sizes(axes: Mapping[str, int]) -> str:
    return ", ".join(f"{axis}={n}" for axis, n in axes.items()) or "one rank"


def _zero(zero: Zero) -> str:
    if zero.axes:
        return f"dim {zero.dim} of every parameter by {' x '.join(axes_of(zero.axes))}"
    ranks = "all ranks" if zero.size == -1 else f"{zero.size} ranks"
    return f"dim 0 of parameters of at least {zero.threshold} bytes, among {ranks} with the same slice"


def _rule(rule: LayoutRule) -> tuple[str, str, str, str]:
    divided = ", ".join(f"dim {dim} by {' x '.join(axes_of(axes))}" for dim, axes in rule.shard.items()) or "whole"
    other = [f"order {', '.join(axes_of(rule.order))}"] if rule.order else []
    if rule.zero is not True:
        other.append("no zero" if rule.zero is False else f"zero: {_zero(rule.zero)}")
    if rule.uneven is not None:
        other.append("uneven" if rule.uneven else "even")
    return ", ".join(rule.patterns), divided, "of its layer" if rule.stage is None else str(rule.stage), "; ".join(other)


def _draw(axes: Mapping[str, int]) -> None:
    """Print the ranks of the first pipeline stage: a column for each position on the last axis, a row for the others."""
    sizes = [(axis, n) for axis, n in axes.items() if n > 1]
    if not sizes:
        return
    *outer, (last, columns) = sizes
    shown = min(columns, _SHOWN_RANKS)
    more = [".."] if columns > shown else []
    rows: list[tuple[object, ...]] = []
    positions = product(*(range(n) for _, n in outer))
    for row, position in enumerate(islice(positions, _SHOWN_RANKS)):
        heading = ", ".join(f"{axis} {at}" for (axis, _), at in zip(outer, position, strict=True))
        rows.append((heading, *(row * columns + at for at in range(shown)), *more))
    if prod(n for _, n in outer) > _SHOWN_RANKS:
        rows.append(("..",))
    console.out()
    console.table([("", "left"), *((f"{last} {at}", "right") for at in range(shown)), *((each, "right") for each in more)], rows)


def _divided(line: Division) -> str:
    """Return the axes that divide parameters, such as `dim 0 by tp, zero /2`."""
    texts = [f"dim {i} by {' x '.join(cuts)}" for i, cuts in enumerate(line.sharding.dims) if cuts]
    texts += [f"dim 0 by zero /{line.optimizer_shards}"] if line.optimizer_shards > 1 else []
    return ", ".join(texts) or "whole"


def _row(line: Division) -> tuple[object, ...]:
    slices = shape(line.layout.parts) if prod(line.layout.parts) > 1 else "1"
    number = "derived" if line.rule is None else line.rule + 1
    return number, line.pattern, len(line.names), shape(line.tensor.shape), _divided(line), slices, size(line.nbytes)


def _division(document: LayoutDocument, line: Division) -> dict[str, Any]:
    return {
        "rule": None if line.rule is None else line.rule + 1,
        "match": [] if line.rule is None else list(document.rules[line.rule].patterns),
        "names": list(line.names),
        "dtype": line.tensor.dtype,
        "shape": list(line.tensor.shape),
        "axes": [list(cuts) for cuts in line.sharding.dims],
        "optimizer_shards": line.optimizer_shards,
        "parts": list(line.layout.parts),
        "bytes": line.nbytes,
    }


def _bytes(ranks: list[int]) -> dict[str, Any]:
    imbalance = max(ranks) * len(ranks) / max(sum(ranks), 1)
    return {"min_bytes": min(ranks), "max_bytes": max(ranks), "imbalance": imbalance}
