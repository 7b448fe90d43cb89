"""The options that give parameters other names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import msgspec

from reshard.cli.arguments import PATH
from reshard.errors import UsageError
from reshard.spec.request import RenameRule
from reshard.storage import open_store, parent_and_name
from reshard.strictjson import pairs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# No checkpoint has more parameters, see reshard.checkpoint.ckpt.
_MOST_NAMES = 1 << 20
_LARGEST_MAP = 128 << 20

OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--rename", "renames", multiple=True, metavar="OLD=NEW", help="Call a parameter NEW at the target."),
    click.option(
        "--rename-pattern",
        "patterns",
        multiple=True,
        metavar="OLD=NEW",
        help="The same for all that match, such as 'model.*.w=net.*.w'.\n\nEach * stands for any characters, as few as will do."
        " The first that matches counts; a --rename comes before.",
    ),
    click.option(
        "--rename-file",
        "map_file",
        type=PATH,
        metavar="FILE.json",
        help="The same for all in a JSON object from old names to new ones.",
    ),
)


def rules_of(arguments: dict[str, Any]) -> tuple[RenameRule, ...]:
    """The rules that these options are.

    Raises:
        UsageError: one is none.
    """
    path = arguments["map_file"]
    named = [*_both("--rename", arguments["renames"]), *(_map(path) if path else ())]
    return (
        *(RenameRule(new, name=old) for old, new in named),
        *(RenameRule(new, pattern=old) for old, new in _both("--rename-pattern", arguments["patterns"])),
    )


def _both(option: str, given: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for each in given:
        old, separator, new = each.partition("=")
        if not separator:
            raise UsageError("InvalidRename", f"{each!r} is not OLD=NEW", where=option, fix="write it like old.w=new.w")
        yield old, new


def _map(path: str) -> list[tuple[str, str]]:
    folder, name = parent_and_name(path)
    try:
        return pairs(open_store(folder).read(name, _LARGEST_MAP), _MOST_NAMES, str)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(
            "InvalidRename",
            f"it is no JSON object from names to names: {error}",
            where=path,
            fix='write it like {"old.w": "new.w"}',
        ) from error
