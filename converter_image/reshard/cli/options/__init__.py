"""The options of every command, in the groups that the help shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from reshard.cli.help import Option
from reshard.cli.options import inputs, outputs, running

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")

_GROUPS = {
    "Source": inputs.SOURCE,
    "Target": outputs.TARGET,
    "Output": outputs.OUTPUT,
    "Parameters": outputs.PARAMETERS,
    "Picture": running.PICTURE,
    "Volumes": inputs.VOLUMES,
    "Verification and safety": running.SAFETY,
    "Performance": running.PERFORMANCE,
    "Storage": inputs.STORAGE,
    "Encryption": inputs.ENCRYPTION,
    "Console": running.CONSOLE,
}


def options(command: str) -> Callable[[F], F]:
    """Return a decorator that adds a command's options, in groups."""

    def decorate(function: F) -> F:
        for title, group in reversed(_GROUPS.items()):
            for commands, names, settings in reversed(group):
                if command in commands:
                    click.option(*names, cls=Option, group=title, **settings)(function)
        return function

    return decorate
