"""Rules that select, rename, cast and pad parameters, as frozen and validated data."""

from __future__ import annotations

from reprlib import repr as shortened
from typing import Annotated, Literal, get_args

import msgspec

from reshard.errors import UsageError

ParameterPattern = Annotated[str, msgspec.Meta(min_length=1, max_length=1 << 10)]
FloatType = Literal["Float64", "Float32", "Float16", "BFloat16"]
Patterns = Annotated[tuple[ParameterPattern, ...], msgspec.Meta(max_length=1 << 10)]

_LONGEST_NAME = 1 << 14
_MOST_DIMENSIONS = 64
_LARGEST_LENGTH = (1 << 48) - 1


class RenameRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The new name of a parameter, or of all parameters that match a pattern.

    Attributes:
        to: the new name. Each `*` is replaced by the text that the pattern's `*` at this position matched. None omits the
            parameter.
        name: the name of one parameter in the source.
        pattern: a pattern of names in the source. `*` matches any characters, non-greedy.

    Raises:
        UsageError: the rule is invalid.
    """

    to: str | None
    name: str | None = msgspec.field(default=None, name="from")
    pattern: str | None = None

    def __post_init__(self) -> None:
        """Validate the rule."""
        problem = None
        texts = [text for text in (self.to, self.name, self.pattern) if text is not None]
        if (self.name is None) == (self.pattern is None):
            problem = "a rule requires either a name or a pattern"
        elif not all(isinstance(text, str) and 0 < len(text) <= _LONGEST_NAME for text in texts):
            problem = f"a name must have 1 to {_LONGEST_NAME} characters"
        elif any("\ud800" <= character <= "\udfff" for text in texts for character in text):
            problem = "a name must be encodable as UTF-8"
        elif self.pattern is not None and self.to is not None and self.pattern.count("*") != self.to.count("*"):
            problem = "the new name and the pattern have different numbers of `*`"
        if problem is not None:
            old = self.name if self.pattern is None else self.pattern
            raise UsageError(
                "InvalidRename",
                f"{shortened(old)} to {shortened(self.to)}: {problem}",
                where="rename",
                fix="correct this rename rule",
            )


class CastRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The type to which the parameters that match a pattern are cast, if they have another floating-point type.

    Attributes:
        pattern: a pattern of names in the source. `*` matches any characters, non-greedy.
        to: the type.

    Raises:
        UsageError: the rule is invalid.
    """

    pattern: str
    to: FloatType

    def __post_init__(self) -> None:
        """Validate the rule, also for callers without a type checker."""
        problem = None
        if not isinstance(self.pattern, str) or not 0 < len(self.pattern) <= _LONGEST_NAME:
            problem = f"a pattern must have 1 to {_LONGEST_NAME} characters"
        elif self.to not in get_args(FloatType):
            problem = f"the type must be one of {', '.join(get_args(FloatType))}"
        if problem is not None:
            what = f"{shortened(self.pattern)} to {shortened(self.to)}: {problem}"
            raise UsageError("InvalidCast", what, where="cast", fix="correct this cast")


class PadRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The length of one dimension of a parameter in the target. It is padded with zeros, or zeros are trimmed.

    Attributes:
        name: the name of the parameter in the source.
        dimension: the dimension. 0 is the first.
        length: the length, in elements.

    Raises:
        UsageError: the rule is invalid.
    """

    name: str
    dimension: int
    length: int

    def __post_init__(self) -> None:
        """Validate the rule, also for callers without a type checker."""
        problem = None
        if not isinstance(self.name, str) or not 0 < len(self.name) <= _LONGEST_NAME:
            problem = f"a name must have 1 to {_LONGEST_NAME} characters"
        elif not (type(self.dimension) is int and 0 <= self.dimension < _MOST_DIMENSIONS):
            problem = f"a dimension must be a number from 0 to {_MOST_DIMENSIONS - 1}"
        elif not (type(self.length) is int and 1 <= self.length <= _LARGEST_LENGTH):
            problem = f"a length must be a number from 1 to {_LARGEST_LENGTH}"
        if problem is not None:
            what = f"dimension {shortened(self.dimension)} of {shortened(self.name)}: {problem}"
            raise UsageError("InvalidPad", what, where="pad", fix="correct this padding rule")


def check_renames(rules: tuple[RenameRule, ...]) -> None:
    """Check that no two rules rename the same parameter.

    Raises:
        UsageError: two rules rename the same parameter.
    """
    seen: dict[str, str | None] = {}
    for rule in rules:
        if rule.name is not None and seen.setdefault(rule.name, rule.to) != rule.to:
            raise UsageError(
                "InvalidOption",
                f"two rules rename {rule.name!r}, to {seen[rule.name]!r} and to {rule.to!r}",
                where="rename",
                fix="remove one of the rules",
            )


def check_pads(rules: tuple[PadRule, ...]) -> None:
    """Check that padding rules do not contradict each other.

    Raises:
        UsageError: two rules are for one dimension.
    """
    seen: dict[tuple[str, int], int] = {}
    for rule in rules:
        if seen.setdefault((rule.name, rule.dimension), rule.length) != rule.length:
            raise UsageError(
                "InvalidOption",
                f"two rules give dimension {rule.dimension} of {rule.name!r} different lengths",
                where="pad",
                fix="remove one of the rules",
            )
