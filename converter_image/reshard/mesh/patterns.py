"""Patterns of names, for rules that are written for the user."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reshard.plan.rules import NamePattern
from reshard.spec.layout import patterns_in

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from reshard.spec.layout import Patterns


def pattern_of(name: str) -> str:
    """Return a name with each component that is a number replaced by `*`.

    >>> pattern_of("model.layers.17.experts.3.w1")
    'model.layers.*.experts.*.w1'
    """
    return ".".join("*" if _is_number(part) else part for part in name.split("."))


def matching(patterns: Patterns) -> Callable[[str], bool]:
    """Return a function that decides whether one of the patterns of a field matches a name."""
    compiled = [NamePattern(pattern) for pattern in patterns_in(patterns)]
    return lambda name: any(pattern.matches(name) for pattern in compiled)


def patterns_of(names: Iterable[str], others: Collection[str]) -> tuple[str, ...]:
    """Return patterns that match all of these names and none of the others: with a name itself where no pattern can."""
    found: dict[str, None] = {}
    for pattern, members in grouped(names).items():
        matches = NamePattern(pattern).matches
        found |= dict.fromkeys(members if any(map(matches, others)) else [pattern])
    return tuple(found)


def grouped(names: Iterable[str]) -> dict[str, list[str]]:
    """Return names by their patterns, in order."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(pattern_of(name), []).append(name)
    return found


def suffixes(pattern: str) -> Iterator[str]:
    """Yield patterns that match the ends of the same names, shortest first, with at least two components of the name.

    >>> list(suffixes("layers.*.attention.wq.weight"))
    ['*.wq.weight', '*.attention.wq.weight']
    """
    parts = pattern.split(".")
    for start in range(len(parts) - 2, 0, -1):
        if "*" not in parts[start:]:
            yield ".".join(["*", *parts[start:]])


def owner_of(name: str, equal: Mapping[str, object]) -> str:
    """Return the name of the parameter whose optimizer state a tensor is, or its own name.

    A state has the name of its parameter after a prefix that ends with a dot, such as `adam_m.`, and the same layout and shape.

    Args:
        name: name of a tensor.
        equal: values by name, which are equal if layouts and shapes are.
    """
    end = name.find(".")
    while end >= 0:
        rest = name[end + 1 :]
        if rest in equal and equal[rest] == equal[name]:
            return rest
        end = name.find(".", end + 1)
    return name


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
