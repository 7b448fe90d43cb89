"""Convert the arguments of a command to values for the library."""

from __future__ import annotations

import os
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
import msgspec
from click.shell_completion import CompletionItem

from reshard.errors import MissingInputError, UsageError
from reshard.spec.keys import Encryption, Key
from reshard.spec.layout import Mesh, axes_and_sizes
from reshard.spec.request import FORMATS, LEAST_MODE, Options, Request
from reshard.spec.rules import CastRule, FloatType, PadRule, RenameRule
from reshard.spec.storage_options import RequestStorageOptions, StorageOptions
from reshard.spec.urls import local_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from click import Context, Parameter

MOST_RANKS = 1 << 20


class _Path(click.ParamType[str]):
    """A path or URL. An empty path is refused, because it would name the working directory or the root."""

    name = "path"

    def __init__(self, completion: str) -> None:
        self._completion = completion

    def convert(self, value: str, param: Parameter | None, ctx: Context | None) -> str:
        if not value:
            self.fail("the path is empty", param, ctx)
        if any("\ud800" <= character <= "\udfff" for character in value):  # no document can hold it
            self.fail("the path is not in UTF-8", param, ctx)
        return value

    def shell_complete(self, ctx: Context, param: Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002 - click's
        """Make the shell complete local paths."""
        return [CompletionItem(incomplete, type=self._completion)]


class Word(click.Choice[str]):
    """A value of an enumeration in the resource, in the spelling of the command line, such as per-rank for PerRank."""

    def __init__(self, *words: str) -> None:
        self._words = {kebab(word): word for word in words}
        super().__init__(tuple(self._words))

    def convert(self, value: str, param: Parameter | None, ctx: Context | None) -> str:
        """Return the resource's value."""
        return self._words[super().convert(value, param, ctx)]


class Format(Word):
    """An output format: one of Reshard's, in the spelling of the command line, or one of another package by its name."""

    def __init__(self) -> None:
        super().__init__(*FORMATS)

    def convert(self, value: str, param: Parameter | None, ctx: Context | None) -> str:
        """Return the value of `Options.format`."""
        if value in self.choices:
            return super().convert(value, param, ctx)
        from reshard.formats.registry import added_outputs  # noqa: PLC0415 - it takes time, and is rarely needed

        return Word(*FORMATS, *added_outputs()).convert(value, param, ctx)


class _Mesh(click.ParamType[str]):
    """Axes and their sizes, such as dp=2,tp=4."""

    name = "mesh"

    def convert(self, value: str, param: Parameter | None, ctx: Context | None) -> str:
        """Return the mesh unchanged, or refuse it."""
        try:
            axes_and_sizes(msgspec.convert(value, Mesh))
        except (msgspec.ValidationError, ValueError):
            self.fail(f"{value[:100]!r} is not a list of axes and sizes such as dp=2,tp=4", param, ctx)
        return value


def kebab(name: str) -> str:
    """Return a name in the spelling of the command line.

    >>> kebab("PerRank"), kebab("filePrefix"), kebab("file_prefix"), kebab("HuggingFace")
    ('per-rank', 'file-prefix', 'file-prefix', 'huggingface')
    """
    return re.sub("(?<=[a-z])(?=[A-Z])", "-", name.replace("HuggingFace", "Huggingface")).replace("_", "-").lower()


PATH, DIRECTORY, MESH = _Path("file"), _Path("dir"), _Mesh()


def request_of(arguments: dict[str, Any]) -> Request:
    """Return the request that a command's arguments describe. Options that the command does not have keep their defaults.

    Raises:
        UsageError: a value is invalid, or two values contradict each other.
    """
    chosen = {name: arguments[name] for name in Options.__struct_fields__ if name in arguments}
    chosen |= {
        "rename": _rename_rules(arguments),
        "cast": tuple(_cast_rule(each) for each in arguments["casts"]),
        "pad": tuple(_pad_rule(each) for each in arguments.get("pads", ())),
        "file_mode": _mode(arguments.get("file_mode")),
        "overwrite": "Replace" if arguments.get("overwrite") else "Never",
    }
    return Request(
        source=arguments["source"],
        target=arguments["target"],
        source_strategy=arguments.get("source_strategy"),
        target_strategy=arguments.get("target_strategy"),
        scale=arguments.get("scale"),
        index=arguments.get("index"),
        options=Options(**chosen),
        storage_options=RequestStorageOptions(
            source=storage_options_of(arguments, "source"), target=storage_options_of(arguments, "target")
        ),
        decryption=encryption_of(arguments, "decryption"),
        encryption=encryption_of(arguments, "encryption"),
    )


def storage_options_of(arguments: dict[str, Any], side: str | None = None) -> StorageOptions:
    """Return the storage options in a command's arguments. Options for one side take precedence over those for both."""

    def value(name: str) -> Any:
        return arguments.get(f"{side}_{name}") or arguments.get(name)

    return StorageOptions(
        profile=value("profile"),
        endpoint=value("endpoint_url"),
        addressing=value("addressing_style") or "Auto",
        checksums=arguments.get("checksums") or "Auto",
        io=arguments.get("io") or "Auto",
    )


def encryption_of(arguments: dict[str, Any], kind: str) -> Encryption | None:
    """Return the key and mode of `kind` ("decryption" or "encryption"), or None if no key is specified.

    Raises:
        UsageError: two keys, or a mode without a key, are specified.
    """
    file, variable, mode = (arguments.get(f"{kind}_{name}") for name in ("key_file", "key_env", "mode"))
    if file is not None and variable is not None:
        raise UsageError(
            "InvalidKey", "two keys are given", where=f"--{kind}-key-file, --{kind}-key-env", fix="remove one of the two options"
        )
    if file is not None or variable is not None:
        return Encryption(Key(file=file, variable=variable), mode or "AES-GCM")
    if mode is not None:
        fix = f"add --{kind}-key-file or --{kind}-key-env, or remove --{kind}-mode"
        raise UsageError("InvalidKey", "the mode requires a key", where=f"--{kind}-mode", fix=fix)
    return None


def rank_in(variable: str) -> int:
    """Return the rank in an environment variable that a launcher sets for each process.

    Raises:
        UsageError: the variable is not set, or is not a rank.
    """
    value = os.environ.get(variable, "")
    fix = "set it, or name another variable in --rank-from"
    if not value:
        raise UsageError("VariableMissing", "the environment variable is not set", where=variable, fix=fix)
    if not (value.isascii() and value.isdecimal() and len(value) < 10 and int(value) < MOST_RANKS):
        raise UsageError("InvalidVariable", f"{value[:20]!r} is not a rank", where=variable, fix=fix)
    return int(value)


def matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Return the names that match one of the patterns, without duplicates, in the order of the patterns.

    Raises:
        MissingInputError: a pattern matches no name.
    """
    every, found = list(dict.fromkeys(names)), dict[str, None]()
    for pattern in patterns:
        fitting = [pattern] if pattern in every else [name for name in every if fnmatchcase(name, pattern)]
        if not fitting:
            raise MissingInputError(
                "ParameterMissing",
                f"no parameter matches {pattern!r}",
                where="--parameter",
                fix="use a name that `reshard inspect` lists, or a pattern such as '*.weight'",
            )
        found |= dict.fromkeys(fitting)
    return list(found)


def directories(option: str, given: tuple[str, ...]) -> dict[str, str]:
    """Return the directories of NAME=DIR arguments, by name.

    Raises:
        UsageError: an argument has another form.
        MissingInputError: a directory does not exist.
    """
    found = {}
    for each in given:
        name, separator, folder = each.partition("=")
        if not name or not separator or not folder:
            fix = f"use the form {option} checkpoints=/data"
            raise UsageError("InvalidVolume", f"{each!r} is not of the form NAME=DIR", where=option, fix=fix)
        folder = local_path(folder)
        if not Path(folder).is_dir():
            raise MissingInputError(
                "NotFound", "the directory does not exist", where=folder, fix=f"create it, or correct {option}"
            )
        found[name] = folder
    return found


def text_of(path: str) -> str:
    """Return the content of a YAML file.

    Raises:
        UsageError: the file is not in UTF-8.
        StorageError: the file cannot be read.
    """
    try:
        return _read(path, 1 << 20).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError("NotYaml", "the file is not UTF-8 text", where=path, fix="save it as UTF-8") from error


def _read(path: str, most: int) -> bytes:
    from reshard.storage import open_store, parent_and_name  # noqa: PLC0415 - see reshard.cli.commands

    folder, name = parent_and_name(path)
    return open_store(folder).read(name, most)


def _rename_rules(arguments: dict[str, Any]) -> tuple[RenameRule, ...]:
    """Return the rules in the rename options.

    Raises:
        UsageError: a rule is invalid.
    """
    return (
        *(RenameRule(new, name=old) for old, new in _pairs("--rename", arguments["renames"])),
        *(RenameRule(new, pattern=old) for old, new in _pairs("--rename-pattern", arguments["patterns"])),
        *_rules_in(arguments["rename_file"]),
    )


def _rules_in(path: str | None) -> tuple[RenameRule, ...]:
    if path is None:
        return ()
    from reshard.spec.resource import parse_rename_rules  # noqa: PLC0415 - see reshard.cli.commands

    return parse_rename_rules(text_of(path), path)


def _pairs(option: str, given: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for each in given:
        old, separator, new = each.partition("=")
        if not separator:
            fix = f"use the form {option} old.w=new.w"
            raise UsageError("InvalidRename", f"{each!r} is not of the form OLD=NEW", where=option, fix=fix)
        yield old, new


def _cast_rule(text: str) -> CastRule:
    pattern, separator, word = text.rpartition("=")
    types = {kebab(name): name for name in get_args(FloatType)}
    if not separator or word not in types:
        fix = f"use the form --cast 'model.*=bfloat16'; the types are {', '.join(types)}"
        raise UsageError("InvalidCast", f"{text!r} is not of the form PATTERN=TYPE", where="--cast", fix=fix)
    return CastRule(pattern, types[word])


def _pad_rule(text: str) -> PadRule:
    found = re.fullmatch(r"(.+):([0-9]{1,4})=([0-9]{1,18})", text, re.ASCII | re.DOTALL)
    if found is None:
        fix = "use the form --pad embed.weight:0=32768"
        raise UsageError("InvalidPad", f"{text!r} is not of the form NAME:DIM=LENGTH", where="--pad", fix=fix)
    return PadRule(found[1], int(found[2]), int(found[3]))


def _mode(text: str | None) -> int | None:
    """Return permission bits.

    Raises:
        UsageError: the text is not an octal number.
    """
    if text is None:
        return None
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not LEAST_MODE <= mode <= 0o777:
        what = f"{text!r} is not an octal mode that allows the owner to read"
        raise UsageError("InvalidMode", what, where="--file-mode", fix="use a number from 0400 to 0777, such as 0640")
    return mode
