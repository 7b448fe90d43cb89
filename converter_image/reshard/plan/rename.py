"""Rename parameters for the target. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reshard.errors import MissingInputError, RequestError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from reshard.spec.request import RenameRule


def renamed(names: Collection[str], rules: Sequence[RenameRule], *, all_there: bool = True) -> dict[str, str]:
    """Return the new name of each name that is not excluded, in order.

    A rule for the very name comes first, then the first pattern that matches; what comes out is not renamed again, so that two
    can change places.

    Args:
        names: names of the source's parameters.
        rules: renaming rules.
        all_there: whether these are all names that rules can be for; not so for one pipeline stage of several.

    Raises:
        MissingInputError: the name in a rule does not exist.
        RequestError: two names would become equal.
    """
    exact = {rule.name: rule.to for rule in rules if rule.name is not None}
    patterns = [(NamePattern(rule.pattern), rule.to) for rule in rules if rule.pattern is not None]
    for name in exact:
        if all_there and name not in names:
            raise MissingInputError(
                "RenamedMissing",
                "a rename rule names this parameter, but no source file contains it",
                where=f"parameter {name}",
                fix="run `reshard inspect` to list the parameters",
            )
    found: dict[str, str] = {}
    origin: dict[str, str] = {}
    for name in names:
        new = exact[name] if name in exact else _by_pattern(name, patterns)
        if new is None:
            continue
        if (other := origin.setdefault(new, name)) is not name:
            raise RequestError(
                "NamesClash",
                f"{other} and {name} would both be renamed to {new}",
                where="rename",
                fix="give one of them another name",
            )
        found[name] = new
    return found


def _by_pattern(name: str, patterns: list[tuple[NamePattern, str | None]]) -> str | None:
    for pattern, to in patterns:
        if pattern.matches(name):
            return to and pattern.apply(name, to)
    return name


def unmatched(names: Collection[str], rules: Sequence[RenameRule]) -> tuple[RenameRule, ...]:
    """Return the rules that match none of these names."""
    return tuple(rule for rule in rules if not _matches_any(rule, names))


def _matches_any(rule: RenameRule, names: Collection[str]) -> bool:
    return rule.name in names if rule.pattern is None else any(map(NamePattern(rule.pattern).matches, names))


class NamePattern:
    """A pattern in which `*` matches any characters, non-greedy.

    It is matched from left to right without backtracking, unlike a regular expression, which may take forever.
    """

    def __init__(self, text: str) -> None:
        self._first, *self._rest = text.split("*")

    def matches(self, name: str) -> bool:
        """Return whether a name matches."""
        return self._stars(name) is not None

    def apply(self, name: str, to: str) -> str:
        """Return `to` with each `*` replaced by the text that the same `*` of the pattern matches in a name."""
        first, *rest = to.split("*")
        return first + "".join(star + text for star, text in zip(self._stars(name) or (), rest, strict=True))

    def _stars(self, name: str) -> list[str] | None:
        if not self._rest:
            return [] if name == self._first else None
        *middle, last = self._rest
        at, end = len(self._first), len(name) - len(last)
        if end < at or not (name.startswith(self._first) and name.endswith(last)):
            return None
        found = []
        for text in middle:
            there = name.find(text, at, end)
            if there < 0:
                return None
            found.append(name[at:there])
            at = there + len(text)
        return [*found, name[at:end]]
