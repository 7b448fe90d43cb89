"""Keys on the command line: where they are, never themselves, for others can read a command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from reshard.cli.arguments import PATH
from reshard.errors import UsageError
from reshard.spec.keys import KEY_BYTES, Encryption, Key

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")
_SIDES = {"decryption": "The file with the key of the source's files.", "encryption": "Encrypt the target with this file's key."}


def key_options(*kinds: str) -> Callable[[F], F]:
    """Options for `encryption_of`, of "decryption" and "encryption"."""

    def decorate(command: F) -> F:
        for kind in reversed(kinds):
            for option in (
                click.option(
                    f"--{kind}-mode", type=click.Choice(list(KEY_BYTES)), help=f"The mode of the {kind}. Default: AES-GCM."
                ),
                click.option(f"--{kind}-key-env", metavar="NAME", help="The same from an environment variable."),
                click.option(f"--{kind}-key-file", type=PATH, metavar="FILE", help=_SIDES[kind]),
            ):
                command = option(command)
        return command

    return decorate


def encryption_of(arguments: dict[str, Any], kind: str) -> Encryption | None:
    """What these options say, which are taken out of the arguments; None when they name no key.

    Raises:
        UsageError: they name two, or a mode and none.
    """
    file, variable, mode = (arguments.pop(f"{kind}_{name}") for name in ("key_file", "key_env", "mode"))
    if file is not None and variable is not None:
        raise UsageError(
            "InvalidKey", "one key is wanted, two are given", where=f"--{kind}-key-file, --{kind}-key-env", fix="give one of them"
        )
    if file is not None or variable is not None:
        return Encryption(Key(file=file, variable=variable), mode or "AES-GCM")
    if mode is not None:
        fix = f"add --{kind}-key-file or --{kind}-key-env, or leave the mode out"
        raise UsageError("InvalidKey", "a mode is given, but no key", where=f"--{kind}-mode", fix=fix)
    return None
