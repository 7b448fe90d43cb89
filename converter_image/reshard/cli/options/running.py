"""Options of how a command runs: checks, speed, and what it prints."""

from __future__ import annotations

import click

from reshard.cli.arguments import PATH, kebab
from reshard.cli.options.declaration import DEFAULTS, PLAN, RANKS, RESULTS, SHARED, WRITE, Declared, option, words
from reshard.spec.request import CopyMode, LinkReplicas, Replicas, Verification
from reshard.spec.storage_options import Io, StorageOptions

_VERIFICATION_HELP = """Verification of the written files, and of copies in the source:

\b
none    only some copies in the source
sample  blocks of every parameter (default)
full    every byte, and CRCs in the source
"""

PICTURE: tuple[Declared, ...] = (
    option("plan", "--picture", is_flag=True, help="Draw the traffic between source ranks and target ranks."),
    option("plan", "--svg", type=PATH, metavar="FILE", help="Write the picture to this SVG file instead of the terminal."),
    option(
        "plan",
        "--parameter",
        "parameters",
        multiple=True,
        metavar="PATTERN",
        help="Draw the sharding of these parameters, such as `*.weight`. Repeatable.",
    ),
)
SAFETY: tuple[Declared, ...] = (
    option(
        WRITE,
        "--verification",
        **words(Verification),
        default=kebab(DEFAULTS.verification),
        help=_VERIFICATION_HELP,
    ),
    option(
        RANKS,
        "--replicas",
        **words(Replicas, DEFAULTS.replicas),
        help="Handling of replicas in the source: `identical` fails if they differ, and `lowest-rank` reads each slice from"
        " its lowest rank.",
    ),
    option(
        RANKS,
        "--allow-inconsistent",
        multiple=True,
        metavar="PATTERN",
        help="Pattern of parameters that no strategy names. Repeatable.\n\n"
        "Reshard accepts them even if their copies differ, or if hyper_param.safetensors may contain only a slice.",
    ),
    option(
        RANKS,
        "--allow-equal-slices",
        is_flag=True,
        help="Accept ranks with equal content, even if the source strategy assigns them different slices.",
    ),
    option(
        WRITE,
        "--overwrite",
        is_flag=True,
        help="Replace an existing checkpoint in the target. A file system keeps the old one until the new one is complete;"
        " an object store does not.",
    ),
    option(
        "transform",
        "--no-commit",
        is_flag=True,
        help="Write ranks, but do not complete the checkpoint. Run `reshard commit` to complete it.",
    ),
)
PERFORMANCE: tuple[Declared, ...] = (
    option(
        f"{WRITE} run verify diff",
        "--workers",
        type=click.IntRange(1, 256),
        metavar="N",
        help="Number of files processed in parallel. Default: the number of CPUs, at most 8.",
    ),
    option(
        "plan",
        "--parallelism",
        type=click.IntRange(1, 100_000),
        metavar="N",
        default=8,
        show_default=True,
        help="Number of pods that write ranks at the same time, on a cluster.",
    ),
    option(
        f"{WRITE} verify",
        "--io",
        **words(Io, StorageOptions().io),
        help="Use of the page cache for large local files: none (`direct`), always (`buffered`), or only if needed or"
        " if it has the data (`auto`).",
    ),
    option(
        SHARED,
        "--copy-mode",
        **words(CopyMode, DEFAULTS.copy_mode),
        help="Method of copying data between S3 locations: through this process (`client`) or, where possible, by the S3"
        " server (`server`).",
    ),
    option(
        PLAN,
        "--link-replicas",
        **words(LinkReplicas, DEFAULTS.link_replicas),
        help="Links between the files of ranks whose content is equal: none (`never`), clones, or hard links.\n\n"
        "Where the file system does not support them, each file is written in full.",
    ),
)
CONSOLE: tuple[Declared, ...] = (
    option(
        RESULTS,
        "--json",
        "as_json",
        is_flag=True,
        help="Print the result or the error as one JSON object on standard output.",
    ),
)
