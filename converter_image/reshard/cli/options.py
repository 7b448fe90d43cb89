"""The options that make a request: what `transform` and `plan` have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from reshard.cli import renaming
from reshard.cli.access import ACCESS, CHECKSUMS, SOURCE_ACCESS, TARGET_ACCESS, accesses_of
from reshard.cli.arguments import PATH, Word, json_option, kebab
from reshard.cli.keys import encryption_of, key_options
from reshard.errors import UsageError
from reshard.spec.request import CopyMode, Options, OutputFormat, OutputKind, Replicas, Request, Unplaced, Verification

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")
_DEFAULTS = Options()
# Read beside 34 columns of options, so its lines are short.
_OUTPUT_HELP = """What the target's files are:

\b
per-rank  one for each rank, as the
          target's strategy cuts
stage     what one pipeline stage of
          the source holds of each
unified   whole parameters, in files
          of bounded size with a map
same      the source's files, each
          by itself
index     none: an index of the source,
          for ranks to load or fetch by

The README tells which strategies each takes.
"""


# How ranks are cut, and what becomes of parameters that only one side names.
_CUT: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--source",
        required=True,
        type=PATH,
        metavar="DIR",
        help="The folder with rank_0, rank_1, ..., or one file; or s3://bucket/prefix.",
    ),
    click.option(
        "--source-strategy",
        type=PATH,
        metavar="PATH",
        help="How the source is cut: a file, or a folder of pipeline stages. Default: one whole rank.",
    ),
    click.option("--target-strategy", type=PATH, metavar="PATH", help="How the target is to be cut. Default: one whole rank."),
    click.option(
        "--allow-single-rank",
        is_flag=True,
        help="Read one rank's folder or file as a whole checkpoint although other ranks are next to it.",
    ),
    click.option(
        "--allow-equal-slices",
        is_flag=True,
        help="Accept that source ranks hold equal content where the source's strategy gives them different slices.",
    ),
    click.option(
        "--index",
        type=PATH,
        metavar="DIR",
        help="Where --output index has indexed this source: it is read instead of strategies and headers.",
    ),
    click.option(
        "--format",
        type=Word(*get_args(OutputFormat)),
        default=kebab(_DEFAULTS.format),
        show_default=True,
        help="Of the target's files.",
    ),
    click.option(
        "--file-prefix",
        default=_DEFAULTS.file_prefix,
        show_default=True,
        help="Files are named rank_<r>/<prefix><r>.<format>, or ..._part<stage>.<format>.",
    ),
    click.option(
        "--unplaced",
        type=Word(*get_args(Unplaced)),
        default=kebab(_DEFAULTS.unplaced),
        show_default=True,
        help="What only the source's strategy names: leave it out, or carry it whole.",
    ),
    click.option("--allow-missing", is_flag=True, help="Leave out what only the target's strategy names."),
    click.option(
        "--allow-inconsistent",
        multiple=True,
        metavar="PATTERN",
        help="Accept that copies of these parameters, which no strategy names, differ between source ranks. * matches anything.",
    ),
    click.option(
        "--replicas",
        type=Word(*get_args(Replicas)),
        default=kebab(_DEFAULTS.replicas),
        show_default=True,
        help="Replicas of the source must be identical; or take each slice from the lowest rank that holds it.",
    ),
    click.option(
        "--remove-redundancy",
        is_flag=True,
        help="Of the ranks that hold the same slice let one write it, as MindSpore's remove_redundancy.",
    ),
)
# What else can be said of a target than that it is cut so.
_TARGET: tuple[Callable[[Any], Any], ...] = (
    click.option("--target", required=True, type=PATH, metavar="DIR", help="The folder to write to; or s3://bucket/prefix."),
    click.option(
        "--output",
        type=Word(*get_args(OutputKind)),
        default=kebab(_DEFAULTS.output),
        show_default=True,
        help=_OUTPUT_HELP,
    ),
    click.option(
        "--max-file-size-bytes",
        type=click.IntRange(min=1 << 10),
        metavar="BYTES",
        help="The most that a unified file holds, unless one parameter alone is longer. Default: 3 GiB.",
    ),
    click.option(
        "--hugging-face-index",
        is_flag=True,
        help="Write unified files that Hugging Face's libraries load, with model.safetensors.index.json.",
    ),
    click.option(
        "--stages",
        type=click.IntRange(1, 65536),
        help="With --output stage: how many there are. Default: as many as the source has ranks for.",
    ),
)
# How any of it is carried out.
_COMMON: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--step",
        type=click.IntRange(min=0),
        help="Read the files of this training step. Default: the newest that every rank has.",
    ),
    click.option(
        "--files",
        metavar="PATTERN",
        help="Read the files whose names match, such as 'net-*.ckpt', or whose paths do, such as 'rank_*/ckpt/*'.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(1, 256),
        help="Ranks at a time. Default: one for each processor, at most 8.",
    ),
    click.option(
        "--verification",
        type=Word(*get_args(Verification)),
        default=kebab(_DEFAULTS.verification),
        show_default=True,
        help="How much of what was written is compared with the source.",
    ),
    *renaming.OPTIONS,
    click.option("--crc", is_flag=True, help="Write the CRC32 that MindSpore's crc_check reads."),
    click.option(
        "--file-mode",
        metavar="OCTAL",
        help="Permission bits of files, such as 0640. Default: 0666 less the umask.",
    ),
    *ACCESS,
    *SOURCE_ACCESS,
    key_options("decryption", "encryption"),
    click.option("--overwrite", is_flag=True, help="Replace what is at the target, once the new one is complete."),
    json_option,
)
# The same of a target that many may write to.
_SHARED: tuple[Callable[[Any], Any], ...] = (
    click.option("--ranks", metavar="LIST", help="Only these target ranks, such as 0,2-5."),
    click.option(
        "--copy-mode",
        type=Word(*get_args(CopyMode)),
        default=kebab(_DEFAULTS.copy_mode),
        show_default=True,
        help="From S3 to S3: let the server copy by itself what it can.",
    ),
    *TARGET_ACCESS,
    CHECKSUMS,
    click.option("--owner", metavar="NAME", hidden=True, help="Processes of one owner share the target's lock."),
)


def request_options(command: F) -> F:
    """What `transform` and `plan` have in common."""
    return _with(command, *_CUT, *_TARGET, *_COMMON, *_SHARED)


def convert_options(command: F) -> F:
    """What of these a conversion has."""
    return _with(command, *_COMMON, *_SHARED)


def fetch_options(command: F) -> F:
    """What of these a fetch has: its target is a folder of one pod."""
    return _with(command, *_CUT, *_COMMON)


def _with(command: F, *options: Callable[[Any], Any]) -> F:
    for option in reversed(options):
        command = option(command)
    return command


def request_of(arguments: dict[str, Any]) -> Request:
    """The request that these options are. Those that a command does not have say what is the default.

    Raises:
        UsageError: a value is none that there can be.
    """
    said = {name: arguments[name] for name in Options.__struct_fields__ if name in arguments}
    said |= {
        "rename": renaming.rules_of(arguments),
        "file_mode": _mode(arguments["file_mode"]),
        "overwrite": "Replace" if arguments["overwrite"] else "Never",
    }
    return Request(
        source=arguments["source"],
        target=arguments["target"],
        source_strategy=arguments.get("source_strategy"),
        target_strategy=arguments.get("target_strategy"),
        index=arguments.get("index"),
        options=Options(**said),
        access=accesses_of(arguments),
        decryption=encryption_of(arguments, "decryption"),
        encryption=encryption_of(arguments, "encryption"),
    )


def _mode(text: str | None) -> int | None:
    """Return the permission bits that an option names.

    Raises:
        UsageError: it is not an octal number.
    """
    if text is None:
        return None
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if mode < 0:
        raise UsageError("InvalidMode", f"{text!r} is not an octal mode", where="--file-mode", fix="write it like 0640")
    return mode
