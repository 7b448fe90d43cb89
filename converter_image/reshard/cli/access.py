"""The options that say how an object store is reached. None of them holds a secret."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import click

from reshard.cli.arguments import Word
from reshard.spec.access import Access, Accesses, Addressing, Checksums

if TYPE_CHECKING:
    from collections.abc import Callable


def _options(side: str = "") -> tuple[Callable[[Any], Any], ...]:
    """The options of one side, or of all that a command reaches."""
    prefix, of = (f"--{side}-", f"For the {side} only.") if side else ("--", "")
    return (
        click.option(f"{prefix}profile", metavar="NAME", help=of or "AWS profile. Default: AWS CLI resolution."),
        click.option(f"{prefix}endpoint-url", metavar="URL", help=of or "URL of the S3 server. Default: AWS CLI resolution."),
        click.option(
            f"{prefix}addressing-style",
            type=Word(*get_args(Addressing)),
            help=of or "Put the bucket into the URL's path or into its host name. Default: AWS CLI resolution.",
        ),
    )


ACCESS = _options()
SOURCE_ACCESS = _options("source")
TARGET_ACCESS = _options("target")
CHECKSUMS = click.option(
    "--checksums",
    type=Word(*get_args(Checksums)),
    help="Checksum that uploads to S3 carry. Default: auto, the strongest of CRC32, MD5 and none that the server accepts.",
)


def access_of(arguments: dict[str, Any], side: str | None = None) -> Access:
    """The access that the options of a command describe. Those of a side come before those of all."""

    def value(name: str) -> Any:
        return arguments.get(f"{side}_{name}") or arguments.get(name)

    return Access(
        profile=value("profile"),
        endpoint=value("endpoint_url"),
        addressing=value("addressing_style") or "Auto",
        checksums=arguments.get("checksums") or "Auto",
    )


def accesses_of(arguments: dict[str, Any]) -> Accesses:
    """The access of both sides."""
    return Accesses(source=access_of(arguments, "source"), target=access_of(arguments, "target"))


def access_options(command: Any, *, uploads: bool = False) -> Any:
    """Add the options of a command that reaches one place."""
    for option in reversed((*ACCESS, *([CHECKSUMS] if uploads else []))):
        command = option(command)
    return command
