"""Shell completion for bash, zsh and fish, with click's scripts and short descriptions."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from click.shell_completion import (
    CompletionItem,
    FishComplete,
    ZshComplete,
    add_completion_class,
    get_completion_class,
    shell_complete,
)

if TYPE_CHECKING:
    import click

_PROGRAM, _VARIABLE = "reshard", "_RESHARD_COMPLETE"  # the script's function sets the variable


def script(cli: click.Command, shell: str) -> str:
    """Return the script that makes a shell complete the arguments of `cli`."""
    found = get_completion_class(shell)
    return "" if found is None else found(cli, {}, _PROGRAM, _VARIABLE).source()


def complete(cli: click.Command) -> int | None:
    """Print completions and return the exit code if the completion script requests them, otherwise return None."""
    instruction = os.environ.get(_VARIABLE)
    return None if instruction is None else shell_complete(cli, {}, _PROGRAM, _VARIABLE, instruction)


def _described(item: CompletionItem[Any]) -> CompletionItem[Any]:
    """Return an item with only the first sentence of its help, because line breaks break click's protocol for zsh (8.5.1)."""
    first, end, _ = (item.help or "").partition("\n")[0].partition(". ")
    return CompletionItem(item.value, item.type, first + end.strip() or None)


@add_completion_class
class _Zsh(ZshComplete):
    def format_completion(self, item: CompletionItem[Any]) -> str:
        return super().format_completion(_described(item))


@add_completion_class
class _Fish(FishComplete):
    def format_completion(self, item: CompletionItem[Any]) -> str:
        return super().format_completion(_described(item))
