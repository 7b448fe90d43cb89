"""What arguments can be, beyond what click knows."""

from __future__ import annotations

import os
import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import click

from reshard.errors import MissingInputError, UsageError

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


class Word(click.Choice[str]):
    """One of a resource's words, as a command line writes them: per-rank for PerRank."""

    def __init__(self, *words: str) -> None:
        self._words = {kebab(word): word for word in words}
        super().__init__(tuple(self._words))

    def convert(self, value: str, param: Parameter | None, ctx: Context | None) -> str:
        """The resource's word."""
        return self._words[super().convert(value, param, ctx)]


def kebab(name: str) -> str:
    """A name as the command line writes it.

    >>> kebab("PerRank"), kebab("filePrefix"), kebab("file_prefix")
    ('per-rank', 'file-prefix', 'file-prefix')
    """
    return re.sub("(?<=[a-z])(?=[A-Z])", "-", name).replace("_", "-").lower()


PATH = _Path()
MOST_RANKS = 1 << 20
json_option = click.option(
    "--json", "as_json", is_flag=True, help="End with one JSON object on standard output, and nothing else there."
)


def rank_in(variable: str) -> int:
    """The rank that an environment variable says: each process that a launcher starts finds its own there.

    Raises:
        UsageError: it is not set, or is no rank.
    """
    value = os.environ.get(variable, "")
    if not value:
        raise UsageError("VariableMissing", "it is not set", where=variable, fix="name the one that says the rank")
    if not (value.isascii() and value.isdecimal() and len(value) < 10 and int(value) < MOST_RANKS):
        raise UsageError("InvalidVariable", f"{value[:20]!r} is no rank", where=variable, fix="name the one that says the rank")
    return int(value)


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
