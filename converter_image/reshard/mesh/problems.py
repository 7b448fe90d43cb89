"""Collect what is wrong with a layout file, so that one error states all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reshard.errors import listed
from reshard.mesh.patterns import patterns_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from reshard.errors import ReshardError

_MOST = 64  # problems in one message


class Problems:
    """Errors about parameters. Equal errors about several parameters are one.

    Args:
        where: name of the layout file, for messages.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._names: dict[tuple[type[ReshardError], str, str, str | None], list[str]] = {}

    def add(self, name: str, error: ReshardError) -> None:
        """Add an error about a parameter."""
        self._names.setdefault((type(error), error.reason, error.what, error.fix), []).append(name)

    def grouped(self, names: Collection[str]) -> list[tuple[tuple[str, ...], ReshardError]]:
        """Return the errors, each with the names of its parameters.

        Args:
            names: names of all parameters, so that patterns match no others.
        """
        found = []
        for (kind, reason, what, fix), some in self._names.items():
            patterns = tuple(some) if len(some) == 1 else patterns_of(some, {*names} - {*some})
            found.append((tuple(some), kind(reason, what, where=place(self._where, patterns), fix=fix)))
        return found


def place(where: str, patterns: Sequence[str]) -> str:
    """Return the layout file and the parameters that a message is about.

    Args:
        where: name of the layout file.
        patterns: patterns that match the names of these parameters.
    """
    plural = "s" if len(patterns) > 1 or "*" in patterns[0] else ""
    return f"{where}: parameter{plural} {listed(patterns)}"


def raise_all(errors: Sequence[ReshardError]) -> None:
    """Raise an error that states all of these, with the reason and the exit code of the first one.

    Raises:
        ReshardError: there is an error.
    """
    if not errors:
        return
    first, *others = errors
    if not others:
        raise first
    what = "; ".join([f"{first.what}; {first.fix}", *map(str, others[: _MOST - 1])])
    of = f"the first {_MOST} of {len(errors)}" if len(errors) > _MOST else f"{len(errors)}"
    raise type(first)(first.reason, what, where=first.where, fix=f"solve each of these problems ({of})")
