"""Group parameters with equal shardings into rules of a layout file, with few patterns."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reshard.mesh.patterns import grouped, suffixes
from reshard.plan.rules import NamePattern

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping


@dataclass(frozen=True, slots=True)
class Draft:
    """The content of a parameter's rule, apart from patterns.

    Attributes:
        shard: dimensions that are divided, and the axes that divide each of them.
        order: order of the axes, unless it is that of the mesh.
        stage: pipeline stage, unless it is that of the layer in the name.
        zero: whether optimizer parallelism applies. None means that this makes no difference.
    """

    shard: tuple[tuple[int, tuple[str, ...]], ...]
    order: tuple[str, ...]
    stage: str | int | None
    zero: bool | None


def drafted(drafts: Mapping[str, Draft]) -> list[tuple[Draft, tuple[str, ...], tuple[str, ...]]]:
    """Return rules for parameters, in an order in which the first rule that matches a name is that of the parameter.

    Args:
        drafts: content of the rule of each parameter.

    Returns:
        For each rule: its content, its patterns, and the names of its parameters.
    """
    rules: dict[Draft, list[str]] = {}
    patterns: dict[Draft, dict[str, list[str]]] = {}
    merged = _without_indifference(drafts)
    for pattern, names in grouped(merged).items():
        ((usual, _), *_) = Counter(merged[name] for name in names).most_common(1)
        for name in names:
            draft = merged[name]
            rules.setdefault(draft, []).append(name)
            patterns.setdefault(draft, {}).setdefault(pattern if draft == usual else name, []).append(name)
    short = {draft: _shortened(found, merged, draft) for draft, found in patterns.items()}
    return [(draft, tuple(found), tuple(rules[draft])) for draft, found in _ordered(short, merged)]


def _without_indifference(drafts: Mapping[str, Draft]) -> dict[str, Draft]:
    """Return drafts in which those that optimizer parallelism makes no difference to are equal to others where possible."""
    kinds = Counter((draft.shard, draft.order, draft.stage, draft.zero) for draft in drafts.values() if draft.zero is not None)
    found = {}
    for pattern_names in grouped(drafts).values():
        near = {drafts[name].zero for name in pattern_names} - {None}
        for name in pattern_names:
            draft = drafts[name]
            zero = draft.zero
            if zero is None:
                only = near or {value for value in (True, False) if (draft.shard, draft.order, draft.stage, value) in kinds}
                zero = False not in only or True in only
            found[name] = Draft(draft.shard, draft.order, draft.stage, zero)
    return found


def _shortened(patterns: Mapping[str, Collection[str]], drafts: Mapping[str, Draft], draft: Draft) -> dict[str, list[str]]:
    """Return patterns, each replaced by one that matches the ends of names if it matches no other parameter."""
    others = [name for name, other in drafts.items() if other != draft]
    found: dict[str, list[str]] = {}
    for pattern, names in patterns.items():
        allowed = suffixes(pattern) if "*" in pattern else iter(())
        short = next((each for each in allowed if not _matched(each, others)), pattern)
        found.setdefault(short, []).extend(names)
    return found


def _ordered(rules: dict[Draft, dict[str, list[str]]], drafts: Mapping[str, Draft]) -> list[tuple[Draft, dict[str, list[str]]]]:
    """Return rules in an order in which no pattern matches a parameter of a later rule.

    If there is none, patterns are replaced by the names of their parameters.
    """
    left, found = dict(rules), []
    while left:
        conflicts = {draft: _conflicts(patterns, draft, left, drafts) for draft, patterns in left.items()}
        draft = min(left, key=lambda each: len(conflicts[each]))
        patterns = left.pop(draft)
        for pattern in conflicts[draft]:
            patterns |= {name: [name] for name in patterns.pop(pattern)}
        found.append((draft, patterns))
    return found


def _conflicts(patterns: Iterable[str], draft: Draft, left: Mapping[Draft, object], drafts: Mapping[str, Draft]) -> list[str]:
    others = [name for name, other in drafts.items() if other != draft and other in left]
    return [pattern for pattern in patterns if _matched(pattern, others)]


def _matched(pattern: str, names: Iterable[str]) -> bool:
    return any(map(NamePattern(pattern).matches, names))
