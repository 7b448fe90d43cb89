"""Commands whose help lists options in groups, and subcommands in sections.

click has neither. Packages that add them take longer to import than all that `reshard --version` needs.
"""

from __future__ import annotations

from typing import Any

import click

# Sections of the commands of the program.
WRITE, READ, OTHER = "Write checkpoints", "Inspect and verify", "Other"
_LONGEST_FIRST_COLUMN = 30
_Sections = dict[str, list[tuple[str, str]]]


class Option(click.Option):
    """An option in a group of the help.

    Attributes:
        group: title of the group.
    """

    def __init__(self, *names: Any, group: str, **settings: Any) -> None:
        super().__init__(*names, **settings)
        self.group = group


class Command(click.Command):
    """A command in a section of the help of its group.

    Attributes:
        section: title of the section.
    """

    def __init__(self, *names: Any, section: str = "Commands", **settings: Any) -> None:
        super().__init__(*names, **settings)
        self.section = section

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options in their groups. The descriptions of all groups begin in the same column."""
        sections: _Sections = {}
        for each in self.get_params(ctx):
            if isinstance(each, click.Option) and (record := each.get_help_record(ctx)) is not None:
                title = each.group if isinstance(each, Option) else "Other options"
                sections.setdefault(title, []).append(record)
        _write(sections, formatter)


class Group(Command, click.Group):
    """A group whose help lists its commands in sections."""

    command_class = Command
    group_class = type

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options in their groups, and the commands in their sections."""
        super().format_options(ctx, formatter)
        sections: _Sections = {}
        for name, command in self.commands.items():
            if isinstance(command, Command) and not command.hidden:
                sections.setdefault(command.section, []).append((name, command.get_short_help_str(limit=formatter.width)))
        _write(sections, formatter)


def _write(sections: _Sections, formatter: click.HelpFormatter) -> None:
    lengths = [len(first) for rows in sections.values() for first, _ in rows]
    width = max((length for length in lengths if length <= _LONGEST_FIRST_COLUMN), default=0)
    for title, rows in sections.items():
        with formatter.section(title):
            formatter.write_dl([(first.ljust(width), second) for first, second in rows], col_max=width)
