"""Apply the rules of a request to parameters: which are written, under which names, and as which types."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, get_args

from reshard.errors import MissingInputError, RequestError
from reshard.spec.rules import FloatType

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from reshard.plan.model import Model, Parameter
    from reshard.spec.rules import CastRule, RenameRule

_FLOATS = get_args(FloatType)
# The types that have all values of another one.
_WIDER = {"BFloat16": ("Float32", "Float64"), "Float16": ("Float32", "Float64"), "Float32": ("Float64",)}


def excluded_by(names: Iterable[str], include: Sequence[str], exclude: Sequence[str]) -> dict[str, None]:
    """Return the names that no pattern of `include` matches (unless it is empty), or that a pattern of `exclude` matches."""
    if not (include or exclude):
        return {}
    is_wanted = selection(include, exclude)
    return {name: None for name in names if not is_wanted(name)}


def selection(include: Sequence[str], exclude: Sequence[str]) -> Callable[[str], bool]:
    """Return a function that decides whether a pattern of `include` (unless it is empty) and none of `exclude` matches a name."""
    wanted, unwanted = [list(map(NamePattern, patterns)) for patterns in (include, exclude)]

    def is_wanted(name: str) -> bool:
        included = not wanted or any(pattern.matches(name) for pattern in wanted)
        return included and not any(pattern.matches(name) for pattern in unwanted)

    return is_wanted


def matching(names: Iterable[str], patterns: Sequence[str]) -> set[str]:
    """Return the names that at least one pattern matches."""
    compiled = list(map(NamePattern, patterns))
    return {name for name in names if any(pattern.matches(name) for pattern in compiled)} if compiled else set()


def refuse_nothing(parameters: Collection[object], excluded: Collection[str]) -> None:
    """Check that the source contains parameters other than the excluded ones.

    Raises:
        RequestError: all parameters are excluded.
    """
    if excluded and not parameters:
        raise RequestError(
            "NothingToWrite",
            "all parameters of the source are excluded from the target",
            where="source",
            fix="keep at least one parameter; check --include and --exclude (spec.parameters.include, exclude), rename rules and"
            " choice_func",
        )


def renamed(
    names: Collection[str], rules: Sequence[RenameRule], *, excluded: Collection[str] = (), all_there: bool = True
) -> dict[str, str]:
    """Return the new name of each name that neither `excluded` nor a rule omits, in order.

    A rule with the exact name takes precedence over patterns. Among patterns, the first one that matches applies. New names are
    not renamed again, so rules can swap two names.

    Args:
        names: names of the source's parameters.
        rules: rules that rename parameters.
        excluded: names that are omitted. Rules may name them.
        all_there: whether these are the names of all parameters, so that the name in a rule must be one of them. This is not the
            case for one of several pipeline stages.

    Raises:
        MissingInputError: the name in a rule does not exist.
        RequestError: two parameters would have the same name.
    """
    compiled = _Rules(rules)
    for name in compiled.exact:
        if all_there and name not in names:
            raise MissingInputError(
                "RenamedMissing",
                "a rename rule names this parameter, but no source file contains it",
                where=f"parameter {name}",
                fix="run `reshard inspect` to list the parameters",
            )
    if not rules:
        return {name: name for name in names if name not in excluded}
    found: dict[str, str] = {}
    origin: dict[str, str] = {}
    for name in names:
        new = None if name in excluded else compiled.new_name(name)
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


def new_names(names: Iterable[str], rules: Sequence[RenameRule]) -> set[str]:
    """Return the names that rules give to these, which may be equal."""
    compiled = _Rules(rules)
    return {new for name in names if (new := compiled.new_name(name)) is not None}


class _Rules:
    """Renaming rules, by name and by pattern."""

    def __init__(self, rules: Sequence[RenameRule]) -> None:
        self.exact = {rule.name: rule.to for rule in rules if rule.name is not None}
        self._patterns = [(NamePattern(rule.pattern), rule.to) for rule in rules if rule.pattern is not None]

    def new_name(self, name: str) -> str | None:
        """Return the new name of a parameter, or None if it is left out."""
        if name in self.exact:
            return self.exact[name]
        for pattern, to in self._patterns:
            if pattern.matches(name):
                return to and pattern.apply(name, to)
        return name


def unapplied(names: Iterable[str], rules: Sequence[RenameRule]) -> tuple[RenameRule, ...]:
    """Return the rules that give no parameter its new name.

    They match none of these names, or other rules that take precedence give other names.
    """
    if not rules:
        return ()
    compiled = _Rules(rules)
    new = {name: compiled.new_name(name) for name in names}

    def is_applied(rule: RenameRule) -> bool:
        if rule.pattern is None:
            return rule.name in new
        pattern = NamePattern(rule.pattern)
        return any(pattern.matches(name) and (rule.to and pattern.apply(name, rule.to)) == to for name, to in new.items())

    return tuple(rule for rule in rules if not is_applied(rule))


def unmatched_patterns(names: Collection[str], patterns: Iterable[str]) -> tuple[str, ...]:
    """Return the patterns that match none of these names, each once."""
    known = set(names)
    return tuple(
        pattern
        for pattern in dict.fromkeys(patterns)
        if pattern not in known and not ("*" in pattern and any(map(NamePattern(pattern).matches, known)))
    )


def unapplied_casts(model: Model, rules: Sequence[CastRule]) -> tuple[CastRule, ...]:
    """Return the rules that apply to no parameter of a floating-point type, as for `unapplied`."""
    compiled = [(NamePattern(rule.pattern), rule) for rule in rules]
    names = (p.source_name for p in model.parameters if p.dtype in _FLOATS) if rules else ()
    applied = {next((rule for pattern, rule in compiled if pattern.matches(name)), None) for name in names}
    return tuple(rule for rule in rules if rule not in applied)


def with_casts(model: Model, rules: Sequence[CastRule]) -> Model:
    """Return a model in which rules cast parameters of floating-point types. The first rule whose pattern matches applies."""
    if not rules:
        return model
    compiled = [(NamePattern(rule.pattern), rule.to) for rule in rules]
    cast_kind = cache(lambda kind, to: replace(kind, cast=to))

    def cast(parameter: Parameter) -> Parameter:
        to = next((to for pattern, to in compiled if pattern.matches(parameter.source_name)), None)
        return parameter if to is None or to == parameter.dtype else parameter.of_kind(cast_kind(parameter.kind, to))

    return replace(model, parameters=tuple(cast(p) if p.dtype in _FLOATS else p for p in model.parameters))


def rounded(model: Model) -> tuple[str, ...]:
    """Return the names of the parameters that are cast to a type without some of the values of their own."""
    lossy = (p.name for p in model.parameters if p.cast is not None and p.cast not in _WIDER.get(p.dtype, ()))
    return tuple(dict.fromkeys(lossy))


class NamePattern:
    """A pattern in which `*` matches any characters, non-greedy.

    Patterns are matched from left to right without backtracking, so that no pattern takes exponential time.
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
