"""Pad parameters with zeros, or trim zeros, to other lengths of their dimensions. Pure."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from reshard.checkpoint.dtypes import DTYPES, OBJECT, STRING
from reshard.errors import MissingInputError, RequestError
from reshard.layout.box import Box

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from reshard.checkpoint.inventory import TensorEntry
    from reshard.spec.rules import PadRule

Lengths = dict[int, int]


def lengths_by_name(names: Collection[str], rules: Sequence[PadRule], *, all_there: bool = True) -> Mapping[str, Lengths]:
    """Return the new length of each dimension that rules change, by source name.

    Args:
        names: names of the source's parameters.
        rules: rules that pad parameters.
        all_there: whether `names` contains all names that rules may refer to. False for one of several pipeline stages.

    Raises:
        MissingInputError: a rule names a parameter that does not exist.
    """
    found: defaultdict[str, Lengths] = defaultdict(dict)
    for rule in rules:
        if all_there and rule.name not in names:
            raise MissingInputError(
                "PaddedMissing",
                "a padding rule names this parameter, but no source file contains it",
                where=f"parameter {rule.name}",
                fix="run `reshard inspect` to list the parameters",
            )
        found[rule.name][rule.dimension] = rule.length
    return found


def padded(entry: TensorEntry, shape: tuple[int, ...], lengths: Lengths) -> tuple[int, ...]:
    """Return the new shape of a parameter.

    Args:
        entry: entry of the parameter in a file.
        shape: shape of the whole parameter, in elements.
        lengths: new length of each dimension that changes.

    Raises:
        RequestError: the parameter has no such dimension, or its elements cannot be zero.
    """
    for dimension in lengths:
        if dimension >= len(shape):
            raise RequestError(
                "CannotPad",
                f"dimension {dimension} does not exist: the parameter has the shape {list(shape)}",
                where=f"parameter {entry.name}",
                fix="correct the dimension; the first one is 0",
            )
    dtype = DTYPES.get(entry.dtype)
    if lengths and (dtype is None or dtype.name in (STRING, OBJECT) or dtype.values != 1):
        raise RequestError(
            "CannotPad",
            f"a parameter of type {entry.dtype} cannot be padded or trimmed",
            where=f"parameter {entry.name}",
            fix="omit the rule",
        )
    return tuple(lengths.get(dimension, length) for dimension, length in enumerate(shape))


def beyond(box: Box, shape: tuple[int, ...]) -> Iterator[Box]:
    """Yield disjoint boxes that make up the elements of a box that are not in a tensor of this shape.

    >>> [*beyond(Box((2, 0), (3, 4)), (4, 3))]
    [Box(start=(4, 0), shape=(1, 4)), Box(start=(2, 3), shape=(2, 1))]
    """
    start, end = list(box.start), [a + n for a, n in zip(box.start, box.shape, strict=True)]
    for axis, length in enumerate(shape):
        inside = min(max(length, start[axis]), end[axis])
        if inside < end[axis] and all(a < b for a, b in zip(start, end, strict=True)):
            first = (*start[:axis], inside, *start[axis + 1 :])
            yield Box(first, tuple(b - a for a, b in zip(first, end, strict=True)))
        end[axis] = inside


def within(box: Box, shape: tuple[int, ...]) -> Box:
    """Return the elements of a box that are in a tensor of this shape. There may be none."""
    start = tuple(map(min, box.start, shape))
    return Box(start, tuple(min(a + n, m) - b for a, n, m, b in zip(box.start, box.shape, shape, start, strict=True)))
