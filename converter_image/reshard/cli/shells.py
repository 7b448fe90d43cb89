"""Completion of commands, options and values in shells."""

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

_PROGRAM, _COMPLETE_VARIABLE = "reshard", "_RESHARD_COMPLETE"  # the completion script sets the variable


def script(cli: click.Command, shell: str) -> str:
    """Return the completion script for a shell, or "" if the shell is unknown."""
    found = get_completion_class(shell)
    return "" if found is None else found(cli, {}, _PROGRAM, _COMPLETE_VARIABLE).source()


def complete(cli: click.Command) -> int | None:
    """Print completions and return the exit code if the completion script requests them, otherwise return None."""
    instruction = os.environ.get(_COMPLETE_VARIABLE)
    return None if instruction is None else shell_complete(cli, {}, _PROGRAM, _COMPLETE_VARIABLE, instruction)


def _shortened(item: CompletionItem[Any]) -> CompletionItem[Any]:
    """Return an item with only the first sentence of its help, because line breaks break click's protocol for zsh (8.5.1)."""
    first, end, _ = (item.help or "").partition("\n")[0].partition(". ")
    return CompletionItem(item.value, item.type, first + end.strip() or None)


@add_completion_class
class _Zsh(ZshComplete):
    def format_completion(self, item: CompletionItem[Any]) -> str:
        return super().format_completion(_shortened(item))


@add_completion_class
class _Fish(FishComplete):
    def format_completion(self, item: CompletionItem[Any]) -> str:
        return super().format_completion(_shortened(item))
