"""What arguments can be, beyond what click knows."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import click

from reshard.errors import MissingInputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from click import Context, Parameter


class _Path(click.ParamType[str]):
    """A path that says something: an empty one would be read as the working folder, or as the root."""

    name = "path"

    def convert(self, value: str, param: Parameter | None, ctx: Context | None) -> str:
        if not value:
            self.fail("the path is empty", param, ctx)
        if any("\ud800" <= character <= "\udfff" for character in value):  # no document can hold it
            self.fail("the path is not in UTF-8", param, ctx)
        return value


PATH = _Path()


def matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The names that are one of the patterns or match it, each once, in the order of the patterns.

    Raises:
        MissingInputError: to one of them there is no name.
    """
    every, found = list(dict.fromkeys(names)), dict[str, None]()
    for pattern in patterns:
        fitting = [pattern] if pattern in every else [name for name in every if fnmatchcase(name, pattern)]
        if not fitting:
            raise MissingInputError(
                "ParameterMissing",
                f"there is no parameter {pattern!r}",
                where="--parameter",
                fix="name one that `reshard inspect` lists, or a pattern such as '*.weight'",
            )
        found |= dict.fromkeys(fitting)
    return list(found)
