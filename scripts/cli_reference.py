"""Print docs/cli.md, the reference of the command line, from its commands (`make docs`)."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING

import click

from reshard.cli.commands import cli
from reshard.cli.help import Option

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEAD = """# Command line

`make docs` generates this page from the commands. `reshard COMMAND --help` shows the same text.

Results are printed to standard output. Progress and errors are printed to standard error.
See [exit codes](architecture.md#exit-codes). Directories can be `s3://bucket/prefix` URLs ([S3](s3.md)).
"""


def reference() -> str:
    """Return the page."""
    lines = [_HEAD]
    for context in _contexts(click.Context(cli, info_name="reshard")):
        lines += _section(context)
    return "\n".join(lines).rstrip() + "\n"


def _contexts(context: click.Context) -> Iterator[click.Context]:
    """Yield the program and its commands, without groups in between."""
    command = context.command
    if context.parent is None or not isinstance(command, click.Group):
        yield context
    for name, each in getattr(command, "commands", {}).items():
        if not each.hidden:
            yield from _contexts(click.Context(each, info_name=name, parent=context))


def _section(context: click.Context) -> Iterator[str]:
    command = context.command
    yield f"## {context.command_path}\n"
    yield f"```\n{context.command_path} {' '.join(command.collect_usage_pieces(context))}\n```\n"
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        preformatted = paragraph.startswith("\b\n")
        yield f"```\n{paragraph[2:]}\n```\n" if preformatted else f"{' '.join(paragraph.split())}\n"
    groups: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(context):
        if isinstance(parameter, Option | click.Argument) and (record := parameter.get_help_record(context)) is not None:
            groups.setdefault(parameter.group if isinstance(parameter, Option) else "Argument", []).append(record)
    for title, rows in groups.items():
        yield f"| {title} | description |\n|---|---|"
        yield from (f"| `{_cell(name)}` | {_cell(text)} |" for name, text in rows)
        yield ""


def _cell(text: str) -> str:
    """Return text for a cell of a table, with preformatted lines below each other."""
    before, marked, lines = text.partition("\b\n")
    if marked:
        indented = re.sub(r"\n {2,}", " ", lines.strip())
        text = "<br>".join((before.strip(), *(re.sub(r"^(\S+) {2,}", r"`\1`: ", line) for line in indented.splitlines())))
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    print(reference(), end="")
