"""Apply a layout file to the slices in the rank files of a source, whose whole shapes are not known."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from reshard.errors import DataError, RequestError
from reshard.mesh.problems import Problems, raise_all
from reshard.mesh.resolve import SHOWN, Assigned, Resolved, Rules
from reshard.mesh.sharding import Whole, optimizer_sharded, shard_count
from reshard.mesh.states import UndeclaredStates
from reshard.strategy import Strategy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from reshard.layout import Layout
    from reshard.spec.layout import LayoutDocument, Zero


def resolve_slices(
    document: LayoutDocument,
    stages: Sequence[Mapping[str, Whole]],
    where: str,
    is_wanted: Callable[[str], bool] = lambda _: True,
) -> Resolved:
    """Return the layouts of parameters, given their slices.

    The length of a whole dimension is that of the slice times the number of slices.

    Args:
        document: layout file.
        stages: slices of all parameters in the files of each pipeline stage, by name.
        where: name of the file, for messages.
        is_wanted: whether a parameter needs a layout, by its name.

    Raises:
        RequestError: as for `resolve`; or a layout is uneven, or the slice does not determine whether the parameter is divided by
            optimizer parallelism.
        UsageError: pipeline stages contradict each other.
    """
    rules = Rules(document, where)
    layouts: tuple[dict[str, Layout], ...] = tuple({} for _ in range(document.stages))
    layout_of: dict[str, Layout] = {}
    assigned: dict[str, Assigned] = {}
    unmatched, done = set(), set()
    problems = Problems(where)
    for tensors in stages:
        for name, tensor in tensors.items():
            if not tensor.shape or name in done or not is_wanted(name):
                continue
            try:
                found = rules.assign(name, tensors)
                if found is None:
                    unmatched |= {name} if tensor.size > 1 else set()
                    continue
                done.add(name)
                assigned[name] = found
                layout = layout_of[name] = _layout(rules, found, name, tensor, where)
            except (DataError, RequestError) as error:
                done.add(name)
                problems.add(name, error)
                continue
            for stage in found.stages:
                layouts[stage][name] = layout
    slices = {name: tensor for tensors in reversed(stages) for name, tensor in tensors.items()}
    states = UndeclaredStates(slices, {name: rules.owner(name, slices) for name in slices}, where)
    for name, refusal in states.differing(assigned, layout_of).items():
        problems.add(name, refusal)
    errors = [error for _, error in problems.grouped(slices)]
    raise_all([*errors, *states.unmatched(unmatched, SHOWN), *rules.missing_layers(slices)])
    return Resolved(Strategy(layouts, document.devices), assigned, rules.unused(assigned, slices))


def _layout(rules: Rules, found: Assigned, name: str, part: Whole, where: str) -> Layout:
    """Return the layout of a parameter, given the slice of a rank."""
    plain = rules.divided(replace(found.sharding, uneven=False))
    if found.sharding.uneven and prod(plain.parts) > 1:
        raise RequestError(
            "LayoutAmbiguous",
            "the whole length of a dimension does not follow from a slice if the dimension may be divided unevenly",
            where=f"{where}: parameter {name}",
            fix="set `uneven: false` in its rule if all slices have equal lengths",
        )
    if found.zero is None:
        return plain
    by_dtype = [_candidates(plain, part, dtype, found.zero) for dtype in found.dtypes]
    candidates = by_dtype[0].union(*by_dtype)
    if len(candidates) == 1:
        return candidates.pop()
    if len(found.dtypes) > 1:
        raise rules.orphan(name)
    what = "the slice is possible both with and without optimizer shards"
    if not candidates:
        what = "the slice is possible neither with nor without optimizer shards, given the threshold and size in `zero`"
    raise RequestError(
        "LayoutAmbiguous",
        what,
        where=f"{where}: parameter {name}",
        fix="use the strategy that the source was trained with; or set `zero: false` or `zero: {threshold: 0}` in its rule",
    )


def _candidates(plain: Layout, part: Whole, dtype: str, zero: Zero) -> set[Layout]:
    """Return the layouts with which a rank has this slice, with and without optimizer shards of a parameter of a type."""
    shape = tuple(n * k for n, k in zip(part.shape, plain.parts, strict=True))
    size = shard_count(plain, zero)
    found = set()
    if (layout := optimizer_sharded(plain, Whole(dtype, shape), zero)) == plain:
        found.add(layout)
    if shape and size > 1:
        sharded = optimizer_sharded(plain, Whole(dtype, (shape[0] * size, *shape[1:])), zero)
        if sharded != plain:
            found.add(sharded)
    return found
