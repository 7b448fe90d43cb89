"""The options of the command line: readable, and named as in Python and in a resource."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, get_args

import click
import pytest

from reshard.cli.arguments import kebab
from reshard.cli.commands import cli
from reshard.cli.help import Option
from reshard.spec.outputs import OUTPUTS, OutputKind
from reshard.spec.request import Options, Request, request_key
from reshard.spec.resource import FilesSpec, ParametersSpec, SourceSpec, TargetSpec, TransformSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

# One thing has one name, in kebab-case, snake_case and camelCase. Names that are not in all three places, and why:
_KEYS = {f"{side}-{what}" for side in ("decryption", "encryption") for what in ("key-file", "key-env", "mode")}
_STORAGE_OPTIONS = {
    f"{side}{what}" for side in ("", "source-", "target-") for what in ("profile", "endpoint-url", "addressing-style")
}
ONLY_ON_THE_COMMAND_LINE = {
    "how this process works: arguments of the functions": {"workers", "no-commit", "owner", "json"},
    "other ways to say `only_ranks` and `rename`": {"rank-from", "rename-pattern", "rename-file"},
    "an option for each field of `decryption`, `encryption` and `storage_options`": {
        *_KEYS,
        *_STORAGE_OPTIONS,
        "checksums",
        "io",
    },
}
NOT_ON_THE_COMMAND_LINE = {
    "as above": {"decryption", "encryption", "storage-options"},
    "for names that MindSpore gives": {"numbered"},
}
ONLY_IN_A_RESOURCE = {
    "what a URL and `storage_options` are elsewhere": {"source-storage", "target-storage"},
    "`files` elsewhere, where it holds no step": {"pattern"},
    "a layout file inside the resource: the value of the strategy elsewhere": {"layout"},
    "what the operator does": {"execution", "suspend"},
    "a command by itself: `reshard plan`": {"dry-run"},
}
NOT_IN_A_RESOURCE = {
    "as above": {"source", "target", "storage-options", "files", "numbered"},
    "what pods have that fetch or load, and write no checkpoint": {"index"},
}
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


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_in_a_named_group_of_limited_size(name: str) -> None:
    groups: dict[str, list[str]] = {}
    for option in COMMANDS[name].params:
        if isinstance(option, Option):
            groups.setdefault(option.group, []).append(option.opts[0])
    assert max(map(len, groups.values()), default=0) <= 10


@pytest.mark.parametrize("name", cli.commands)
def test_the_list_of_commands_shows_whole_sentences(name: str) -> None:
    assert "..." not in cli.commands[name].get_short_help_str(limit=64)


@pytest.mark.parametrize("width", [80, 110])
def test_every_output_has_its_line(width: int) -> None:
    command = COMMANDS["transform"]
    shown = command.get_help(click.Context(command, terminal_width=width, max_content_width=width)).splitlines()
    assert max(map(len, shown)) <= width
    outputs = [kebab(output) for output in get_args(OutputKind)]
    (said,) = [line.strip() for line in shown if "|unified|" in line]
    assert said == f"--output [{'|'.join(outputs)}]"
    for output in outputs:
        assert any(re.fullmatch(rf" {{20,}}{output} {{2,}}\w.*", line) for line in shown), output


def test_outputs_refuse_fields_that_exist() -> None:
    assert tuple(OUTPUTS) == get_args(OutputKind)
    fields = {*Options.__struct_fields__, *Request.__struct_fields__}
    assert all(fields >= output.refused.keys() for output in OUTPUTS.values())


def in_python() -> set[str]:
    return {kebab(name) for name in (*Options.__struct_fields__, *Request.__struct_fields__) if name != "options"}


def on_the_command_line() -> set[str]:
    return {name.removeprefix("--") for option in COMMANDS["transform"].params for name in option.opts}


def in_a_resource() -> set[str]:
    found = set()
    for side, kind in (
        ("source-", SourceSpec),
        ("target-", TargetSpec),
        ("", ParametersSpec),
        ("", FilesSpec),
        ("", TransformSpec),
    ):
        for name in map(kebab, kind.__struct_encode_fields__):
            on_a_side = name in ("storage", "strategy") or (side, name) in (("source-", "format"), ("target-", "ranks"))
            found.add(f"{side}{name}" if on_a_side else name)
    return found - {"source", "target", "parameters", "files"}  # which hold the others


def test_one_thing_has_one_name() -> None:
    line, python, resource = on_the_command_line(), in_python(), in_a_resource()
    assert line - python == set().union(*ONLY_ON_THE_COMMAND_LINE.values())
    assert python - line == set().union(*NOT_ON_THE_COMMAND_LINE.values())
    assert resource - python == set().union(*ONLY_IN_A_RESOURCE.values())
    assert python - resource == set().union(*NOT_IN_A_RESOURCE.values())


def test_the_manifest_has_the_same_names() -> None:
    assert {kebab(name) for name in request_key(Request("a", "b"))} <= in_python()
