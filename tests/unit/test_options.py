"""The options of the command line: readable."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, get_args

import click
import pytest

from reshard.cli.commands import cli
from reshard.spec.request import TargetLayout

if TYPE_CHECKING:
    from collections.abc import Iterator

_LONGEST = 140  # characters of one paragraph: some four lines, in the half of a terminal that help has


def commands(group: click.Group = cli, path: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{path}{name} ")
        else:
            yield f"{path}{name}", command


COMMANDS = dict(commands())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_short_or_in_paragraphs(name: str) -> None:
    for option in COMMANDS[name].params:
        for paragraph in re.split(r"\n\n", getattr(option, "help", None) or ""):
            lines = paragraph.splitlines()
            assert len(paragraph) <= _LONGEST or lines[0] == "\b", option.name


@pytest.mark.parametrize("width", [80, 110])
def test_every_layout_has_its_line(width: int) -> None:
    command = COMMANDS["transform"]
    shown = command.get_help(click.Context(command, terminal_width=width)).splitlines()
    assert max(map(len, shown)) <= width
    layouts = [re.sub("(?<=.)(?=[A-Z])", "-", layout).lower() for layout in get_args(TargetLayout)]
    (said,) = [line.strip() for line in shown if "|unified|" in line]
    assert said == f"--layout [{'|'.join(layouts)}]"
    for layout in layouts:
        assert any(re.fullmatch(rf" {{20,}}{layout} {{2,}}\w.*", line) for line in shown), layout
